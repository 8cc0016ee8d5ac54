"""Checkpoints in the Hub's layout: read, written, and accounted for."""

from mlmlab.checkpoints.load import (
    LoadedModel,
    LoadReport,
    check_vocabularies,
    load_model,
    load_pretrained,
)
from mlmlab.checkpoints.save import save_pretrained

__all__ = [
    "LoadReport",
    "LoadedModel",
    "check_vocabularies",
    "load_model",
    "load_pretrained",
    "save_pretrained",
]
