"""Masking: a policy, a vocabulary, and the kernel that applies one to the other."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlmlab.masking.config import (
    UNITS,
    Budget,
    Corrupt,
    EvalMaskingConfig,
    MaskingConfig,
    MaskingMode,
    MaskingPolicy,
    RateSchedule,
    VocabularyInfo,
)

if TYPE_CHECKING:
    from mlmlab.masking.kernel import MaskedBatch, mask_batch
    from mlmlab.masking.policy import PolicyBatch

__all__ = [
    "UNITS",
    "Budget",
    "Corrupt",
    "EvalMaskingConfig",
    "MaskedBatch",
    "MaskingConfig",
    "MaskingMode",
    "MaskingPolicy",
    "PolicyBatch",
    "RateSchedule",
    "VocabularyInfo",
    "mask_batch",
]


def __getattr__(name: str) -> Any:
    """Imports the kernel when it is first used: checking a config needs no compiler."""
    if name not in __all__:
        raise AttributeError(f"module 'mlmlab.masking' has no attribute {name!r}")
    module = "policy" if name == "PolicyBatch" else "kernel"
    return getattr(import_module(f"mlmlab.masking.{module}"), name)
