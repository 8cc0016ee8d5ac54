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
)

if TYPE_CHECKING:
    from mlmlab.masking.kernel import MaskedBatch, mask_batch
    from mlmlab.masking.policy import PolicyBatch
    from mlmlab.masking.vocabulary import VocabularyInfo

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


_MODULES = {
    "MaskedBatch": "kernel",
    "mask_batch": "kernel",
    "PolicyBatch": "policy",
    "VocabularyInfo": "vocabulary",
}


def __getattr__(name: str) -> Any:
    """Imports when it is first used what a config does not need: compiler, PyTorch, NumPy."""
    if name not in _MODULES:
        raise AttributeError(f"module 'mlmlab.masking' has no attribute {name!r}")
    return getattr(import_module(f"mlmlab.masking.{_MODULES[name]}"), name)
