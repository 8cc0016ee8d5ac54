"""One transformer layer, normalized after each sublayer (Vaswani et al. 2017; Devlin et al. 2019).

B sequences   T positions   C hidden   M predicted positions
"""

import torch
import torch.nn.functional as F
from torch import nn

from mlmlab.model.attention import SelfAttention
from mlmlab.model.config import ModelConfig


class FeedForward(nn.Module):
    """Two projections around an exact (erf) GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.down(F.gelu(self.up(hidden)))
        return projected


class EncoderLayer(nn.Module):
    """Attention, then feed-forward; each with dropout, a residual and a norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden: torch.Tensor,
        visible: torch.Tensor | None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[B, T, C]` to `[B, T, C]`; with `positions` (flat, int64 `[M]`) to `[M, C]`."""
        mixed = self.dropout(self.attention(hidden, visible, positions))
        if positions is not None:
            hidden = hidden.flatten(0, 1)[positions]  # [M, C]
        hidden = self.attention_norm(hidden + mixed)
        processed = self.dropout(self.feed_forward(hidden))
        normalized: torch.Tensor = self.feed_forward_norm(hidden + processed)
        return normalized
