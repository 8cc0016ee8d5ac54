"""The masked language model: embeddings, layers and head, chosen by its family's record.

B sequences   T positions   N tokens of all groups   C hidden   E width of the tables
V vocabulary   M predicted positions
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mlmlab.model.attention import Group, visible_by_layer
from mlmlab.model.config import ModelConfig
from mlmlab.model.embeddings import EMBEDDINGS, Tokens
from mlmlab.model.families import Norms
from mlmlab.model.layer import LAYERS
from mlmlab.model.mlm_head import MaskedLMHead

_LAST_PROJECTIONS = (".attention.output", ".feed_forward.down")
"""Ends of the names of a sublayer's last projection."""


class MaskedLanguageModel(nn.Module):
    """A bidirectional encoder that predicts tokens from both sides of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = EMBEDDINGS[config.architecture.positions](config)
        layer = LAYERS[config.architecture.norms]
        self.layers = nn.ModuleList(layer(config, number) for number in range(config.layers))
        self.head = MaskedLMHead(config)
        self.gradient_checkpointing = False
        """Keep each layer's input alone for backward and compute the rest again there: the same
        gradients with the same dropout noise, for less memory and a forward pass more."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        groups: Sequence[tuple[int, int]] | None = None,
    ) -> torch.Tensor:
        """Logits over the vocabulary: `[B, T, V]`, or `[M, V]` with `positions`.

        Arguments and errors are those of `encode`.
        """
        hidden, table = self._encode(input_ids, attention_mask, positions, documents, groups)
        logits: torch.Tensor = self.head(hidden, table)
        return logits

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        groups: Sequence[tuple[int, int]] | None = None,
    ) -> torch.Tensor:
        """The last layer's hidden states.

        Args:
            input_ids: int64 `[B, T]`.
            attention_mask: bool `[B, T]`, True for a real token; None: no padding.
            positions: int64 `[M]`, flat indices into B*T. Where given, the last layer's queries
                and feed-forward (and in `forward` the head) run on these rows only, with the same
                result.
            documents: int64 `[B, T]`, ascending in a row; where given, tokens of different
                documents do not see each other, and each document's positions begin at its start.
            groups: where given, `input_ids` and `attention_mask` are flat, `[N]`: the tokens of
                groups of rows, one group after the other. Each has its number of rows and their
                length, so that short rows need not be padded to the longest of all.

        Returns:
            `[B, T, C]` (with `groups`, `[N, C]`), or `[M, C]` with `positions`.

        Raises:
            ValueError: a mask that is not bool (a float one would be added to the scores), padding
                and documents at once, or rows longer than the model's positions.
        """
        return self._encode(input_ids, attention_mask, positions, documents, groups)[0]

    def _encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        documents: torch.Tensor | None,
        groups: Sequence[tuple[int, int]] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `encode` returns, and the table for the head."""
        if attention_mask is not None and attention_mask.dtype is not torch.bool:
            raise ValueError(f"attention_mask: bool, not {attention_mask.dtype}; use mask.bool()")
        if attention_mask is not None and documents is not None:
            raise ValueError("documents: packed rows have no padding, and need no attention_mask")
        tokens = [Tokens(input_ids, attention_mask, documents)]
        if groups is not None:
            tokens = _grouped(input_ids, attention_mask, groups)
        shapes = [(len(t.input_ids), t.input_ids.shape[1]) for t in tokens]  # B, T
        length, longest = max(length for _, length in shapes), self.config.max_positions
        if length > longest:
            raise ValueError(f"{length} tokens in a row; the model has {longest}")
        hidden, table = self.embeddings(tokens)  # [N, C], [V, E]
        visible = [visible_by_layer(self.config, *of_group) for of_group in tokens]
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            rows = positions if number == last else None
            views = [
                Group(*sizes, by_layer[number])
                for sizes, by_layer in zip(shapes, visible, strict=True)
            ]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, views, rows, use_reentrant=False)
            else:
                hidden = layer(hidden, views, rows)
        if positions is None and groups is None:
            hidden = hidden.view(*input_ids.shape, -1)  # [B, T, C]
        return hidden, table

    def initialize(self, seed: int) -> None:
        """Fresh weights: a normal distribution cut at two standard deviations, biases zero, norms
        one (Devlin et al. 2019, modeling.py).

        In pre-norm layers, what 2L sublayers add to the residual stream is never normalized there:
        their last projections start smaller by sqrt(2L) (Radford et al. 2019; Warner et al. 2024).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, module in self.named_modules():
            std = self.config.initializer_range
            if self.config.architecture.norms is Norms.PRE and name.endswith(_LAST_PROJECTIONS):
                std /= math.sqrt(2 * self.config.layers)
            initialize_module(module, std, generator)

    def parameter_count(self) -> int:
        """Numbers, frozen ones included; the tied table counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def _grouped(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, groups: Sequence[tuple[int, int]]
) -> list[Tokens]:
    """Flat ids and mask `[N]`, a group at a time, `[B, T]` each."""
    sizes = [rows * length for rows, length in groups]
    masks: Sequence[torch.Tensor | None] = [None] * len(groups)
    if attention_mask is not None:
        masks = attention_mask.split_with_sizes(sizes)
    return [
        Tokens(ids.view(shape), None if mask is None else mask.view(shape))
        for ids, mask, shape in zip(input_ids.split_with_sizes(sizes), masks, groups, strict=True)
    ]


def initialize_module(module: nn.Module, std: float, generator: torch.Generator) -> None:
    """Initializes a module's own parameters, not those of its children."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, MaskedLMHead):
        nn.init.zeros_(module.decoder_bias)
