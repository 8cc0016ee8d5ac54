"""The norm of a residual stream, in the precision of the products around it."""

import torch
import torch.nn.functional as F
from torch import nn


class ResidualNorm(nn.LayerNorm):
    """LayerNorm whose result is the next sublayer's input and the residual at once: on CUDA in half
    precision, under autocast.

    autocast alone gives fp32, which each product has to cast, and each later norm to keep for its
    backward pass (benchmarks/NOTES.md). RoBERTa was trained like this (fairseq, --fp16). Not on the
    CPU, whose kernel would sum up the weights' gradients in half precision, too: off by 3% for
    1,024 tokens.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]`, any floating type; the same type back, or autocast's."""
        if not (x.is_cuda and torch.is_autocast_enabled("cuda")):
            return super().forward(x)
        weight, bias = (p if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        with torch.autocast("cuda", enabled=False):  # mean and variance are fp32 in any case
            normalized = F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
        return normalized.to(torch.get_autocast_dtype("cuda"))
