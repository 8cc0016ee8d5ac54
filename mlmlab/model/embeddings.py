"""Token, position and token-type embeddings.

B sequences   T positions   N tokens of all groups, B * T of one   C hidden
E width of the tables (C but for ELECTRA)   V vocabulary
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mlmlab.model.config import ModelConfig
from mlmlab.model.dropout import Dropout
from mlmlab.model.families import Positions
from mlmlab.model.norm import ResidualNorm


class Tokens(NamedTuple):
    """The tokens of rows of one length."""

    input_ids: torch.Tensor
    """int64 `[B, T]`."""
    attention_mask: torch.Tensor | None = None
    """bool `[B, T]`, True for a real token; None: no padding."""
    documents: torch.Tensor | None = None
    """int64 `[B, T]`, ascending in a row; None: a row is one document."""


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other, without a copy where there is one alone."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _TiedTable(torch.autograd.Function):
    """The token table at both ends of the model: rows for the embeddings, all of it for the head.

    Its gradient is the head's, to which the rows' are added where they are. Autograd alone would
    fill a table with zeros for the rows, and then add two tables: three times 154 MB for
    DistilRoBERTa's, where a step of 8x128 has three MB of rows.
    """

    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, input_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[V, E]` and int64 `[N]` to rows `[N, E]` and the table."""
        ctx.save_for_backward(input_ids)
        return F.embedding(input_ids, table), table

    @staticmethod
    def backward(ctx: Any, rows: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradients of both, to that of the table."""
        (input_ids,) = ctx.saved_tensors
        return table.index_add_(0, input_ids, rows), None


def rows_and_table(
    token: nn.Embedding, input_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows `[N, E]` of ids `[N]`, and the table as the head should see it, `[V, E]`."""
    if not torch.is_grad_enabled():
        return token(input_ids), token.weight
    both: tuple[torch.Tensor, torch.Tensor]
    both = _TiedTable.apply(token.weight, input_ids)  # type: ignore[no-untyped-call]
    return both


class EmbeddingTable(nn.Embedding):
    """nn.Embedding that starts at zero, until `initialize` or a checkpoint fills it.

    On the meta device, where a checkpoint's model is built, PyTorch's own `normal_` would import
    its compiler, which takes almost a second.
    """

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)


class Embeddings(nn.Module):
    """The sum of the tables, normalized: tokens to vectors `[N, C]`, and the token table for the
    head.

    Tables of another width, as ELECTRA has them, are followed by a projection.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, biases = config.table_width, config.architecture.biases
        self.token = EmbeddingTable(config.vocabulary_size, width)
        self.position = EmbeddingTable(config.max_positions + config.position_offset, width)
        self.token_type: nn.Embedding | None = None
        if config.token_types:
            self.token_type = EmbeddingTable(config.token_types, width)
        self.norm = ResidualNorm(width, eps=config.layer_norm_eps, bias=biases)
        self.dropout = Dropout(config.dropout)
        self.position_offset = config.position_offset
        self.projection: nn.Linear | None = None
        if config.embedding_size is not None:
            self.projection = nn.Linear(width, config.hidden_size)

    def forward(self, groups: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, C]` and `[V, E]`."""
        ids = joined([group.input_ids.flatten() for group in groups])  # [N]
        tokens, table = rows_and_table(self.token, ids)  # [N, E]
        sizes = [group.input_ids.numel() for group in groups]
        parts = [tokens] if len(groups) == 1 else tokens.split_with_sizes(sizes)
        hidden = joined(
            [
                (part.view(*group.input_ids.shape, -1) + self.position(self._rows(group))).flatten(
                    0, 1
                )
                for part, group in zip(parts, groups, strict=True)
            ]
        )  # [N, E]
        if self.token_type is not None:
            hidden = hidden + self.token_type.weight[0]  # one segment, as in all MLM training
        normalized: torch.Tensor = self.dropout(self.norm(hidden))
        if self.projection is not None:
            normalized = self.projection(normalized)
        return normalized, table  # [N, C]

    def _rows(self, group: Tokens) -> torch.Tensor:
        """Of the position table, int64 `[T]` or `[B, T]`."""
        return self._places(group) + self.position_offset

    def _places(self, group: Tokens) -> torch.Tensor:
        """Each token's index in its row or document, int64 `[T]` or `[B, T]`."""
        place = torch.arange(group.input_ids.shape[1], device=group.input_ids.device)  # [T]
        if group.documents is None:
            return place
        begins = group.documents != group.documents.roll(1, dims=1)  # [B, T]
        return place - torch.where(begins, place, 0).cummax(1).values  # [B, T]


class RealTokenEmbeddings(Embeddings):
    """The same, with positions that count real tokens only.

    They are known from the attention mask, never from the pad id: a real token may carry it.
    Padding gets the row before the first token's, pad_id.
    """

    def _places(self, group: Tokens) -> torch.Tensor:
        if group.attention_mask is None:
            return super()._places(group)
        real = group.attention_mask.long()
        return real.cumsum(1) * real - 1  # [B, T]


class TokenEmbeddings(nn.Module):
    """The token table alone, normalized, and as it is for the head: attention knows the
    positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, biases = config.hidden_size, config.architecture.biases
        self.token = EmbeddingTable(config.vocabulary_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps, bias=biases)
        self.dropout = Dropout(config.dropout)

    def forward(self, groups: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, C]` and `[V, C]`."""
        ids = joined([group.input_ids.flatten() for group in groups])  # [N]
        tokens, table = rows_and_table(self.token, ids)
        return self.dropout(self.norm(tokens)), table


EMBEDDINGS: Mapping[Positions, type[Embeddings] | type[TokenEmbeddings]] = {
    Positions.LEARNED: Embeddings,
    Positions.LEARNED_AFTER_PAD: RealTokenEmbeddings,
    Positions.ROTARY: TokenEmbeddings,
}
