"""The encoder and its masked-LM head."""

from mlmlab.model.config import Family, ModelConfig, ModelSettings
from mlmlab.model.encoder import MaskedLanguageModel
from mlmlab.model.mlm_head import token_losses

__all__ = ["Family", "MaskedLanguageModel", "ModelConfig", "ModelSettings", "token_losses"]
