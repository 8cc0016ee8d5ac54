"""Masking: a policy, a vocabulary, and the kernel that applies one to the other."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlmlab.masking.config import (
    Budget,
    Corrupt,
    EvalMaskingConfig,
    MaskingConfig,
    MaskingMode,
    MaskingPolicy,
    RateSchedule,
    Unit,
    VocabularyInfo,
)

if TYPE_CHECKING:
    from mlmlab.masking.kernel import MaskedBatch, mask_batch

__all__ = [
    "Budget",
    "Corrupt",
    "EvalMaskingConfig",
    "MaskedBatch",
    "MaskingConfig",
    "MaskingMode",
    "MaskingPolicy",
    "RateSchedule",
    "Unit",
    "VocabularyInfo",
    "mask_batch",
]


def __getattr__(name: str) -> Any:
    """Imports the kernel when it is first used: checking a config needs no compiler."""
    if name not in __all__:
        raise AttributeError(f"module 'mlmlab.masking' has no attribute {name!r}")
    return getattr(import_module("mlmlab.masking.kernel"), name)
