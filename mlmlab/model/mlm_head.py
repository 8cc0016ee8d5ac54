"""The masked-LM head and its loss.

C hidden   E width of the table (C but for ELECTRA)   V vocabulary   M predicted positions
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mlmlab.model.config import ModelConfig


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
    """F.cross_entropy, whose gradient takes the place of the log-softmax that forward leaves.

    Autograd alone would have three tables `[M, V]` at once, the largest tensors of most steps.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        log_softmax = logits.log_softmax(-1)
        ctx.save_for_backward(log_softmax, labels)
        losses = -log_softmax.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return losses.masked_fill(labels < 0, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """A second backward pass is refused: the saved tensor has changed."""
        log_softmax, labels = ctx.saved_tensors
        gradient = gradient.masked_fill(labels < 0, 0.0)  # [M]
        softmax = log_softmax.exp_().mul_(gradient[:, None])
        rows = torch.arange(len(labels), device=labels.device)
        softmax[rows, labels.clamp(min=0)] -= gradient
        return softmax, None


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each predicted token's negative log-likelihood, computed in fp32.

    Args:
        logits: `[M, V]`, any floating type.
        labels: int64 `[M]`, the original ids; -100: no prediction, a loss of 0.

    Returns:
        fp32 `[M]`. Its sum is the loss, to be divided once by the masked count of the full
        step; the sum of no tokens is a zero that still reaches every parameter.
    """
    losses: torch.Tensor = _CrossEntropy.apply(logits.float(), labels)  # type: ignore[no-untyped-call]
    return losses
