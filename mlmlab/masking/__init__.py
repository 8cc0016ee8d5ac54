"""Masking: a policy, a vocabulary, and the kernel that applies one to the other."""

from mlmlab.masking.config import MaskingConfig, MaskingMode, Unit, VocabularyInfo
from mlmlab.masking.kernel import MaskedBatch, mask_batch

__all__ = [
    "MaskedBatch",
    "MaskingConfig",
    "MaskingMode",
    "Unit",
    "VocabularyInfo",
    "mask_batch",
]
