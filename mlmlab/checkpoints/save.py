"""A model and its tokenizer as a folder in the Hub's layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mlmlab.checkpoints.hub_config import hub_config
from mlmlab.checkpoints.key_maps import hub_names
from mlmlab.checkpoints.weights import SINGLE_FILE
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.model import MaskedLanguageModel


def hub_tensors(model: MaskedLanguageModel) -> dict[str, torch.Tensor]:
    """The model's parameters under the Hub's names, on the CPU; tied ones once."""
    parameters = dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = {}
    for ours, theirs in hub_names(model).items():
        parts = parameters[ours].detach().cpu().chunk(len(theirs))
        tensors |= {name: part.clone() for name, part in zip(theirs, parts, strict=True)}
    return tensors


def save_pretrained(model: MaskedLanguageModel, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files.

    `transformers.AutoModelForMaskedLM.from_pretrained(folder)` opens the result without a missing
    or unexpected key and gives the same logits.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(hub_config(model.config), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    save_file(hub_tensors(model), str(folder / SINGLE_FILE), metadata={"format": "pt"})
    tokenizer.save(folder)
