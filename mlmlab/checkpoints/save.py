"""A model and its tokenizer as a folder in the Hub's layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mlmlab.checkpoints.hub_config import hub_config
from mlmlab.checkpoints.key_maps import hub_names
from mlmlab.checkpoints.weights import SINGLE_FILE
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.model import MaskedLanguageModel, ModelConfig


def hub_tensors(model: MaskedLanguageModel) -> dict[str, torch.Tensor]:
    """The model's parameters under the Hub's names, on the CPU; tied ones once."""
    parameters = dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = {}
    for ours, theirs in hub_names(model).items():
        parts = parameters[ours].detach().cpu().chunk(len(theirs))
        tensors |= {name: part.clone() for name, part in zip(theirs, parts, strict=True)}
    return tensors


def save_checkpoint(model: MaskedLanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", hub_config(model.config))
    save_file(hub_tensors(model), str(folder / SINGLE_FILE), metadata={"format": "pt"})
    tokenizer.save(folder)


def save_pretrained(model: MaskedLanguageModel, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes a folder that transformers and sentence-transformers open.

    `transformers.AutoModelForMaskedLM.from_pretrained(folder)` opens it without a missing or
    unexpected key and gives the same logits. `sentence_transformers.SentenceTransformer(folder)`
    embeds a text as the mean of its last hidden states, special tokens included.
    """
    folder = Path(folder)
    save_checkpoint(model, tokenizer, folder)
    _save_mean_pooling(model.config, folder)


def _save_mean_pooling(config: ModelConfig, folder: Path) -> None:
    """The files by which sentence-transformers knows its modules, in the spelling of its version 2,
    which later ones read as well. Left to itself it would cut texts at the number of rows in the
    position table, and RoBERTa has fewer positions than rows."""
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"))
    content = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (path, name) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", content)
    limits = {"max_seq_length": config.max_positions, "do_lower_case": False}
    _write_json(folder / "sentence_bert_config.json", limits)
    pooling = folder / "1_Pooling"
    pooling.mkdir(exist_ok=True)
    mean = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    _write_json(pooling / "config.json", mean)


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
