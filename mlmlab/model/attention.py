"""Multi-head self-attention.

B sequences   T positions   H heads   D head width   C hidden = H * D   M predicted positions
"""

import torch
import torch.nn.functional as F
from torch import nn

from mlmlab.model.config import ModelConfig


class SelfAttention(nn.Module):
    """Every token attends to every token that it may see."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: torch.Tensor,
        visible: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mixes values over the sequence.

        Args:
            hidden: `[B, T, C]`.
            visible: bool, broadcasts to `[B, H, T, T]`: whether a query sees a key; None: always.
            positions: int64 `[M]`, flat indices into B*T; where given, only these are computed.

        Returns:
            `[B, T, C]`, or `[M, C]` with `positions`.
        """
        batch, length, width = hidden.shape
        if positions is None:
            q, k, v = self.qkv(hidden).chunk(3, dim=-1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q_rows = F.linear(hidden.flatten(0, 1)[positions], weight[:width], bias[:width])
            # Attention itself is cheap next to the projections: the other queries stay zero.
            q = q_rows.new_zeros(batch * length, width).index_copy(0, positions, q_rows)
            k, v = F.linear(hidden, weight[width:], bias[width:]).chunk(2, dim=-1)
        context = F.scaled_dot_product_attention(
            self._heads_first(q, batch, length),
            self._heads_first(k, batch, length),
            self._heads_first(v, batch, length),
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
        )  # [B, H, T, D]
        context = context.transpose(1, 2).reshape(batch, length, width)  # [B, T, C]
        if positions is not None:
            context = context.flatten(0, 1)[positions]  # [M, C]
        mixed: torch.Tensor = self.output(context)
        return mixed

    def _heads_first(self, projected: torch.Tensor, batch: int, length: int) -> torch.Tensor:
        return projected.view(batch, length, self.heads, -1).transpose(1, 2)  # [B, H, T, D]
