"""The masked-LM head and its loss.

C hidden   V vocabulary   M predicted positions
"""

import torch
import torch.nn.functional as F
from torch import nn

from mlmlab.model.config import ModelConfig


class MaskedLMHead(nn.Module):
    """Dense, GELU, norm, then the tied token table as the decoder, with its own bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocabulary_size))

    def forward(self, hidden: torch.Tensor, token_table: torch.Tensor) -> torch.Tensor:
        """`[..., C]` and the tied table `[V, C]` to logits `[..., V]`."""
        transformed = self.norm(F.gelu(self.dense(hidden)))
        return F.linear(transformed, token_table, self.decoder_bias)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each predicted token's negative log-likelihood, computed in fp32.

    Args:
        logits: `[M, V]`, any floating type.
        labels: int64 `[M]`, the original ids.

    Returns:
        fp32 `[M]`. Its sum is the loss, to be divided once by the masked count of the whole
        step; the sum of no tokens is a zero that still reaches every parameter.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")
