"""A transformer layer and its feed-forward.

N tokens   C hidden   I inner   M predicted positions
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mlmlab.model.attention import Group, SelfAttention
from mlmlab.model.config import ModelConfig
from mlmlab.model.dropout import Dropout
from mlmlab.model.families import FeedForwards, Norms
from mlmlab.model.norm import ResidualNorm


class FeedForward(nn.Module):
    """Two projections around an exact (erf) GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        biases = config.architecture.biases
        self.up = nn.Linear(width, inner, bias=biases)
        self.down = nn.Linear(inner, width, bias=biases)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.down(F.gelu(self.up(hidden)))
        return projected


class GatedFeedForward(nn.Module):
    """GEGLU: the first projection has two halves, and the GELU of one is gated by the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        biases = config.architecture.biases
        self.up = nn.Linear(width, 2 * inner, bias=biases)
        self.dropout = Dropout(config.dropout)
        self.down = nn.Linear(inner, width, bias=biases)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        value, gate = self.up(hidden).chunk(2, dim=-1)  # [..., I] each
        projected: torch.Tensor = self.down(self.dropout(F.gelu(value) * gate))
        return projected


FEED_FORWARDS: Mapping[FeedForwards, type[nn.Module]] = {
    FeedForwards.GELU: FeedForward,
    FeedForwards.GEGLU: GatedFeedForward,
}


class PostNormLayer(nn.Module):
    """Attention, then feed-forward; each with dropout, a residual and a norm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, eps, biases = config.hidden_size, config.layer_norm_eps, config.architecture.biases
        self.attention = SelfAttention(config, layer)
        self.attention_norm = ResidualNorm(width, eps=eps, bias=biases)
        self.feed_forward = FEED_FORWARDS[config.architecture.feed_forward](config)
        self.feed_forward_norm = ResidualNorm(width, eps=eps, bias=biases)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        hidden: torch.Tensor,
        groups: Sequence[Group],
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[N, C]` to `[N, C]`; with `positions` (int64 `[M]`) to `[M, C]`."""
        mixed = self.dropout(self.attention(hidden, groups, positions))
        if positions is not None:
            hidden = hidden.index_select(0, positions)  # [M, C]
        hidden = self.attention_norm(hidden + mixed)
        processed = self.dropout(self.feed_forward(hidden))
        normalized: torch.Tensor = self.feed_forward_norm(hidden + processed)
        return normalized


class PreNormLayer(nn.Module):
    """Attention, then feed-forward; each with a norm before it and a residual.

    As in ModernBERT, the first layer's attention has no norm, since the embeddings have
    just been normalized, and the last layer ends with the model's final norm.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, eps, biases = config.hidden_size, config.layer_norm_eps, config.architecture.biases
        norm = partial(nn.LayerNorm, width, eps=eps, bias=biases)
        self.attention_norm = nn.Identity() if layer == 0 else norm()
        self.attention = SelfAttention(config, layer)
        self.dropout = Dropout(config.attention_dropout)
        self.feed_forward_norm = norm()
        self.feed_forward = FEED_FORWARDS[config.architecture.feed_forward](config)
        self.final_norm = norm() if layer == config.layers - 1 else nn.Identity()

    def forward(
        self,
        hidden: torch.Tensor,
        groups: Sequence[Group],
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[N, C]` to `[N, C]`; with `positions` (int64 `[M]`) to `[M, C]`."""
        mixed = self.dropout(self.attention(self.attention_norm(hidden), groups, positions))
        if positions is not None:
            hidden = hidden.index_select(0, positions)  # [M, C]
        hidden = hidden + mixed
        hidden = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        normalized: torch.Tensor = self.final_norm(hidden)
        return normalized


LAYERS: Mapping[Norms, type[nn.Module]] = {Norms.POST: PostNormLayer, Norms.PRE: PreNormLayer}
