"""Multi-head self-attention, and what each token may see.

B sequences   T positions   H heads   D head width   C hidden = H * D   M predicted positions
N tokens of all groups, B * T of one
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mlmlab.model.config import ModelConfig
from mlmlab.model.dropout import Dropout


class Group(NamedTuple):
    """Rows of one length, whose tokens lie next to each other among all N."""

    rows: int
    length: int
    visible: torch.Tensor | None
    """bool, broadcasts to `[B, H, T, T]`: whether a query sees a key; None: always."""


def keeps_weights(rate: float, device: torch.device, length: int, *, in_half: bool) -> bool:
    """Whether training computes attention product by product, and so keeps `[T, T]` weights.

    PyTorch's fused kernels for the CPU have no dropout, and in half precision their backward pass
    is slow for short rows: 2 to 4 times as slow as the products (benchmarks/NOTES.md).
    """
    return device.type == "cpu" and (rate > 0 or (in_half and length <= 512))


class SelfAttention(nn.Module):
    """Every token attends to every token that it may see.

    Args:
        config: the model.
        layer: the number of the layer, from 0.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, biases = config.hidden_size, config.architecture.biases
        self.heads = config.heads
        is_global = config.is_global(layer)
        self.rope_theta = config.global_rope_theta if is_global else config.local_rope_theta
        self.dropout = Dropout(config.attention_dropout)
        self.qkv = nn.Linear(width, 3 * width, bias=biases)
        self.output = nn.Linear(width, width, bias=biases)

    def forward(
        self, hidden: torch.Tensor, groups: Sequence[Group], positions: torch.Tensor | None
    ) -> torch.Tensor:
        """Mixes values over each row.

        Args:
            hidden: `[N, C]`.
            groups: of rows, which see nothing of each other.
            positions: int64 `[M]`, indices into N; where given, only these are computed.

        Returns:
            `[N, C]`, or `[M, C]` with `positions`.
        """
        projected = self._project(hidden, positions)  # [N, C], three times
        by_group = [[x] for x in projected]
        if len(groups) > 1:
            sizes = [group.rows * group.length for group in groups]
            by_group = [list(x.split_with_sizes(sizes)) for x in projected]
        contexts = []
        for group, *parts in zip(groups, *by_group, strict=True):
            shape = (group.rows, group.length, self.heads, -1)
            q, k, v = (x.view(shape).transpose(1, 2) for x in parts)  # [B, H, T, D] each
            if self.rope_theta is not None:
                q, k = rotate(q, k, self.rope_theta)
            context = self._attend(q, k, v, group.visible)  # [B, H, T, D]
            contexts.append(context.transpose(1, 2).reshape(-1, hidden.shape[-1]))  # [B * T, C]
        context = contexts[0] if len(groups) == 1 else torch.cat(contexts)  # [N, C]
        if positions is not None:
            context = context.index_select(0, positions)  # [M, C]
        mixed: torch.Tensor = self.output(context)
        return mixed

    def _project(
        self, hidden: torch.Tensor, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, `[N, C]` each; queries at `positions` only."""
        if positions is None:
            projected: torch.Tensor = self.qkv(hidden)
            return projected.chunk(3, dim=-1)
        width = hidden.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        q_rows = F.linear(hidden.index_select(0, positions), weight[:width], q_bias)
        # Attention itself is cheap next to the projections: the other queries stay zero.
        q = q_rows.new_zeros(hidden.shape).index_copy(0, positions, q_rows)
        return q, *F.linear(hidden, weight[width:], kv_bias).chunk(2, dim=-1)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None
    ) -> torch.Tensor:
        """The values `[B, H, T, D]`, weighted by softmax(q k^T / sqrt(D))."""
        rate = self.dropout.rate if self.training else 0.0
        in_half = q.dtype != torch.float32
        in_steps = self.training and keeps_weights(rate, q.device, q.shape[-2], in_half=in_half)
        if not in_steps or torch.compiler.is_compiling():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=rate)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, H, T, T]
        if visible is not None:
            scores = scores.masked_fill_(~visible, -math.inf)
        weights: torch.Tensor = self.dropout(scores.softmax(-1))
        return weights @ v


def rotate(q: torch.Tensor, k: torch.Tensor, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions (Su et al. 2021): q and k, `[B, H, T, D]`, rotated by the token's index.

    Coordinates d and d + D/2 are a point of the plane, which token t turns by the angle
    t / theta^(2d/D). A product of q and k then depends on the distance of their tokens, wherever
    they are: rows need no other indices for padding, nor for isolated documents.
    """
    length, width = q.shape[-2:]
    index = torch.arange(length, device=q.device, dtype=torch.float32)  # [T]
    exponent = torch.arange(0, width, 2, device=q.device, dtype=torch.float32) / width  # [D/2]
    angle = index[:, None] * (1.0 / theta**exponent)  # [T, D/2]
    cos, sin = angle.cos(), angle.sin()

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.float().chunk(2, dim=-1)  # [B, H, T, D/2]
        points = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat(points, dim=-1).to(x.dtype)  # [B, H, T, D]

    return rotated(q), rotated(k)


def visible_by_layer(
    config: ModelConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    documents: torch.Tensor | None,
) -> list[torch.Tensor | None]:
    """What each token sees, a mask a layer: bool, broadcasts to `[B, H, T, T]` (query, key).

    None: all.

    Args:
        config: the model.
        input_ids: int64 `[B, T]`.
        attention_mask: bool `[B, T]`, True for a real token; None: no padding.
        documents: int64 `[B, T]`, ascending in a row; None: a row is one document.
    """
    visible = None
    if documents is not None:
        visible = (documents[:, :, None] == documents[:, None, :])[:, None]  # [B, 1, T, T]
    elif attention_mask is not None:
        visible = attention_mask[:, None, None, :]  # [B, 1, 1, T]
    if config.local_attention is None:
        return [visible] * config.layers
    index = torch.arange(input_ids.shape[1], device=input_ids.device)  # [T]
    distance = (index[:, None] - index).abs()  # [T, T]
    near = distance <= config.local_attention // 2
    if visible is not None:
        # Far from a row's last real token, padding would see nothing, and softmax has no value
        # there: it sees itself, as real tokens do in any case.
        near = (visible & near) | (distance == 0)  # [B, 1, T, T]
    return [visible if config.is_global(layer) else near for layer in range(config.layers)]
