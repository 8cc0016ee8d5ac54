"""The masked-LM head and its loss.

C hidden   E width of the table (C but for ELECTRA)   V vocabulary   M predicted positions
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mlmlab.model.config import ModelConfig

_AT_A_TIME = 2**19
"""Logits, 2 MB in fp32: 10 rows of a vocabulary of 50,000."""


class MaskedLMHead(nn.Module):
    """Dense, GELU, norm, then the tied token table as the decoder, with its own bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, biases = config.table_width, config.architecture.biases
        self.dense = nn.Linear(config.hidden_size, width, bias=biases)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps, bias=biases)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocabulary_size))

    def forward(self, hidden: torch.Tensor, token_table: torch.Tensor) -> torch.Tensor:
        """`[..., C]` and the tied table `[V, E]` to logits `[..., V]`."""
        transformed = self.norm(F.gelu(self.dense(hidden)))  # [..., E]
        rows = len(token_table)
        # On CUDA, half-precision products are slow unless the table has a multiple of 8 rows; with
        # RoBERTa's 50,265 a full step took a quarter longer on an H200.
        extra = -rows % 64 if token_table.is_cuda else 0
        if not extra:
            return F.linear(transformed, token_table, self.decoder_bias)
        table, bias = F.pad(token_table, (0, 0, 0, extra)), F.pad(self.decoder_bias, (0, extra))
        return F.linear(transformed, table, bias)[..., :rows]


class _CrossEntropy(torch.autograd.Function):
    """F.cross_entropy in fp32, of logits of any precision, and all that it keeps.

    Autograd alone would keep their log-softmax, too, and have their gradient in fp32: up to three
    tables `[M, V]` at once, the largest tensors of most steps.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, labels)
        losses = [
            -some.log_softmax(-1, dtype=torch.float32).gather(1, ids[:, None])[:, 0]
            for some, ids in _a_few_at_a_time(logits, labels.clamp(min=0))
        ]
        return torch.cat(losses).masked_fill(labels < 0, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Softmax, less one at the true ids, times the gradient `[M]`: in fp32 until its end."""
        logits, labels = ctx.saved_tensors
        gradient = gradient.masked_fill(labels < 0, 0.0)
        result = torch.empty_like(logits)
        parts = _a_few_at_a_time(logits, labels.clamp(min=0), gradient, result)
        for some, ids, weights, part in parts:
            softmax = some.log_softmax(-1, dtype=torch.float32).exp_().mul_(weights[:, None])
            softmax[torch.arange(len(ids), device=ids.device), ids] -= weights
            part.copy_(softmax)
        return result, None


def _a_few_at_a_time(
    logits: torch.Tensor, *others: torch.Tensor
) -> Iterable[tuple[torch.Tensor, ...]]:
    """The same rows of each: what is computed of a few stays in a CPU's caches. On CUDA all."""
    rows = len(logits) if logits.is_cuda else _AT_A_TIME // logits.shape[1]
    return zip(*(torch.split(x, max(1, rows)) for x in (logits, *others)), strict=True)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each predicted token's negative log-likelihood, computed in fp32.

    Args:
        logits: `[M, V]`, any floating type.
        labels: int64 `[M]`, the original ids; -100: no prediction, a loss of 0.

    Returns:
        fp32 `[M]`. Its sum is the loss, to be divided once by the masked count of the full
        step; the sum of no tokens is a zero that still reaches every parameter.
    """
    losses: torch.Tensor = _CrossEntropy.apply(logits, labels)  # type: ignore[no-untyped-call]
    return losses
