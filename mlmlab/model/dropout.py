"""Dropout, with fewer random bits on the CPU."""

import math

import torch
import torch.nn.functional as F
from torch import nn

_LEVELS = 2**16
"""The CPU draws 16 bits for each number, and its rate is the nearest multiple of 1 / 65,536."""


class Dropout(nn.Module):
    """Drops numbers at a rate while it trains, and scales up the others to keep the mean.

    PyTorch draws a random double for each number on the CPU, on one core: of a fp32 step of
    DistilRoBERTa, 7% (benchmarks/NOTES.md).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape and floating type; the same back."""
        if not self.training or not self.rate:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.rate)
        kept = max(1, round((1.0 - self.rate) * _LEVELS))
        # The product keeps a byte of each number for its backward pass.
        return (x * _keeps(x.shape, kept)).mul_(_LEVELS / kept)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def _keeps(shape: torch.Size, kept: int) -> torch.Tensor:
    """uint8, 1 for each number that is kept: `kept` of 65,536 are expected to be."""
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(shape)  # -32,768 to 32,767
    # A comparison with 32,768, all of them, would be in another type.
    return (bits <= kept - 1 - _LEVELS // 2).view(torch.uint8)
