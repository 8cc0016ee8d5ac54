"""Multi-head self-attention, and what each token may see.

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
        width, biases = config.hidden_size, config.architecture.biases
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=biases)
        self.output = nn.Linear(width, width, bias=biases)

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
        q, k, v = self._project(hidden, positions)  # [B, H, T, D] each
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=self.dropout if self.training else 0.0
        )  # [B, H, T, D]
        context = context.transpose(1, 2).reshape(hidden.shape)  # [B, T, C]
        if positions is not None:
            context = context.flatten(0, 1)[positions]  # [M, C]
        mixed: torch.Tensor = self.output(context)
        return mixed

    def _project(
        self, hidden: torch.Tensor, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, `[B, H, T, D]` each; queries at `positions` only."""
        batch, length, width = hidden.shape
        if positions is None:
            q, k, v = self.qkv(hidden).chunk(3, dim=-1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
            q_rows = F.linear(hidden.flatten(0, 1)[positions], weight[:width], q_bias)
            # Attention itself is cheap next to the projections: the other queries stay zero.
            q = q_rows.new_zeros(batch * length, width).index_copy(0, positions, q_rows)
            k, v = F.linear(hidden, weight[width:], kv_bias).chunk(2, dim=-1)
        return tuple(x.view(batch, length, self.heads, -1).transpose(1, 2) for x in (q, k, v))


def visible_by_layer(
    config: ModelConfig, attention_mask: torch.Tensor | None, documents: torch.Tensor | None
) -> list[torch.Tensor | None]:
    """What each token sees, a mask a layer: bool, broadcasts to `[B, H, T, T]` (query, key).

    None: all. Every family so far has the same mask in all layers.

    Args:
        config: the model.
        attention_mask: bool `[B, T]`, True for a real token; None: no padding.
        documents: int64 `[B, T]`, ascending in a row; None: a row is one document.
    """
    visible = None
    if documents is not None:
        visible = (documents[:, :, None] == documents[:, None, :])[:, None]  # [B, 1, T, T]
    elif attention_mask is not None:
        visible = attention_mask[:, None, None, :]  # [B, 1, 1, T]
    return [visible] * config.layers
