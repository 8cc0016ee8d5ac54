"""A checkpoint's config.json, read strictly and written again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlmlab.errors import Problem, UserError
from mlmlab.model import Family, ModelConfig

_MODEL_TYPES: Mapping[str, Family] = {
    "bert": Family.BERT,
    "roberta": Family.ROBERTA,
    "camembert": Family.ROBERTA,
    "xlm-roberta": Family.ROBERTA,
    "distilbert": Family.DISTILBERT,
}

_BERT_NAMES: Mapping[str, str] = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "pad_id": "pad_token_id",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}
_DISTILBERT_NAMES: Mapping[str, str] = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "pad_id": "pad_token_id",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}
_NAMES: Mapping[Family, Mapping[str, str]] = {
    Family.BERT: _BERT_NAMES,
    Family.ROBERTA: _BERT_NAMES,
    Family.DISTILBERT: _DISTILBERT_NAMES,
}

_DEFAULTS: Mapping[str, Any] = {
    "layer_norm_eps": 1e-12,
    "token_types": 2,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
}
"""What the Hub's own reader assumes where a file is silent (old files leave these out)."""
_FIXED: Mapping[Family, Mapping[str, Any]] = {
    Family.BERT: {},
    Family.ROBERTA: {},
    Family.DISTILBERT: {"token_types": 0, "layer_norm_eps": 1e-12},
}
_PAD_IDS: Mapping[Family, int] = {Family.BERT: 0, Family.ROBERTA: 1, Family.DISTILBERT: 0}

_REQUIRED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "activation": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "tie_word_embeddings": (True,),
}
"""Options of the Hub's format that change the model, with the values this encoder implements."""


def read_hub_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`.

    Raises:
        UserError: no such file, or an architecture that is not one of ours.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError.of(
            "checkpoint",
            found=f"{folder}: {'no config.json in it' if folder.is_dir() else 'no such folder'}",
            expected="a folder with config.json, the weights and the tokenizer",
            remedy="checkpoint=DIR, or owner/name[@revision] for one on the Hub",
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model_type = content.get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError.of(
            str(file),
            found=f"{error}",
            expected="a JSON object",
            remedy="fetch or save the checkpoint again",
        ) from error
    if model_type not in _MODEL_TYPES:
        raise UserError.of(
            f"checkpoint {file}",
            found=f"model_type={model_type}",
            expected=f"one of {', '.join(_MODEL_TYPES)}",
            remedy="choose a checkpoint of the BERT family",
        )
    family = _MODEL_TYPES[model_type]
    return _model_config(family, content, file)


def _model_config(family: Family, content: Mapping[str, Any], file: Path) -> ModelConfig:
    problems = [
        Problem(
            f"checkpoint {file}",
            f"{key}={content[key]}",
            " or ".join(str(value) for value in allowed),
            "choose another checkpoint: this encoder has no such option",
        )
        for key, allowed in _REQUIRED_VALUES.items()
        if content.get(key) is not None and content[key] not in allowed
    ]
    values: dict[str, Any] = {**_DEFAULTS, "pad_id": _PAD_IDS[family], **_FIXED[family]}
    for ours, theirs in _NAMES[family].items():
        if content.get(theirs) is not None:
            values[ours] = content[theirs]
        value = values.get(ours)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            found = f"no {theirs}" if value is None else f"{theirs}={value!r}"
            remedy = "fetch or save the checkpoint again"
            problems.append(Problem(f"checkpoint {file}", found, "a number", remedy))
    if problems:
        raise UserError(problems)
    offset = values["pad_id"] + 1 if family is Family.ROBERTA else 0
    values["max_positions"] -= offset  # the Hub counts rows of the table, we count tokens
    if (
        values["heads"] < 1
        or values["hidden_size"] % values["heads"]
        or values["max_positions"] < 1
    ):
        raise UserError.of(
            f"checkpoint {file}",
            found=f"{values['heads']} heads for a width of {values['hidden_size']}, "
            f"{values['max_positions']} positions",
            expected="heads that divide the width, and positions for at least one token",
            remedy="fetch or save the checkpoint again",
        )
    return ModelConfig(family=family, position_offset=offset, **values)


_ARCHITECTURES: Mapping[Family, str] = {
    Family.BERT: "BertForMaskedLM",
    Family.ROBERTA: "RobertaForMaskedLM",
    Family.DISTILBERT: "DistilBertForMaskedLM",
}


def hub_config(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json for a model of ours."""
    values = {theirs: getattr(config, ours) for ours, theirs in _NAMES[config.family].items()}
    values["max_position_embeddings"] += config.position_offset
    activation = "activation" if config.family is Family.DISTILBERT else "hidden_act"
    return {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family.value,
        activation: "gelu",
        **values,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
