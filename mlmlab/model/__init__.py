"""The encoder and its masked-LM head."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlmlab.model.config import ModelConfig, ModelSettings
from mlmlab.model.families import Family

if TYPE_CHECKING:
    from mlmlab.model.encoder import MaskedLanguageModel
    from mlmlab.model.mlm_head import token_losses

__all__ = ["Family", "MaskedLanguageModel", "ModelConfig", "ModelSettings", "token_losses"]

_HOMES = {"MaskedLanguageModel": "mlmlab.model.encoder", "token_losses": "mlmlab.model.mlm_head"}


def __getattr__(name: str) -> Any:
    """Imports PyTorch when it is first used: checking a config does not need it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mlmlab.model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
