"""A checkpoint's config.json, read strictly and written again."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlmlab.data.json_file import Kind, number, read_json_object, whole_number, wrong_values
from mlmlab.errors import Code, Problem, UserError
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

_KINDS: Mapping[str, Kind] = {
    "vocabulary_size": whole_number(1, 10**8),
    "hidden_size": whole_number(1, 10**5),
    "layers": whole_number(1, 1000),
    "heads": whole_number(1, 10**5),
    "intermediate_size": whole_number(1, 10**6),
    "max_positions": whole_number(1, 10**8),
    "token_types": whole_number(0, 10**5),
    "layer_norm_eps": number(0, 1),
    "pad_id": whole_number(0, 10**8),
    "dropout": number(0, 1),
    "attention_dropout": number(0, 1),
    "initializer_range": number(1e-6, 1),
}
"""Far above any published model; it is the weights that decide whether a size is right."""

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

_REMEDY = "fetch or save the checkpoint again"


def read_hub_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`.

    Raises:
        UserError: no such file, a damaged one, or an architecture that is not one of ours.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError.of(
            "checkpoint",
            code=Code.NOT_FOUND,
            found=f"{folder}: {'no config.json in it' if folder.is_dir() else 'no such folder'}",
            expected="a folder with config.json, the weights and the tokenizer",
            remedy="checkpoint=DIR, or owner/name[@revision] for one on the Hub",
        )
    content = read_json_object(file, remedy=_REMEDY)
    model_type = content.get("model_type")
    family = _MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UserError.of(
            f"checkpoint {file}",
            code=Code.UNSUPPORTED,
            found=f"model_type={reprlib.repr(model_type)}",
            expected=f"one of {', '.join(_MODEL_TYPES)}",
            remedy="choose a checkpoint of the BERT family",
        )
    return _model_config(family, content, file)


def _model_config(family: Family, content: Mapping[str, Any], file: Path) -> ModelConfig:
    where, names = f"checkpoint {file}", _NAMES[family]
    given = {key: value for key, value in content.items() if value is not None}
    problems = [
        Problem(
            where,
            f"{key}={reprlib.repr(given[key])}",
            " or ".join(str(value) for value in allowed),
            "choose another checkpoint: this encoder has no such option",
            code=Code.UNSUPPORTED,
        )
        for key, allowed in _REQUIRED_VALUES.items()
        if key in given and given[key] not in allowed
    ]
    kinds = {theirs: _KINDS[ours] for ours, theirs in names.items()}
    problems += wrong_values(given, kinds, where, remedy=_REMEDY)
    values: dict[str, Any] = {**_DEFAULTS, "pad_id": _PAD_IDS[family], **_FIXED[family]}
    for ours, theirs in names.items():
        if theirs in given:
            values[ours] = given[theirs]
        elif ours not in values:
            problems.append(
                Problem(where, f"no {theirs}", kinds[theirs].expected, _REMEDY, code=Code.CORRUPT)
            )
    if problems:
        raise UserError(problems)
    offset = values["pad_id"] + 1 if family is Family.ROBERTA else 0
    values["max_positions"] -= offset  # the Hub counts rows of the table, we count tokens
    mismatches = []
    if values["hidden_size"] % values["heads"]:
        found = f"{values['heads']} heads for a width of {values['hidden_size']}"
        mismatches.append((found, "a number of heads that divides the width"))
    if values["max_positions"] < 1:
        found = f"max_position_embeddings={values['max_positions'] + offset}"
        mismatches.append((found, f"at least {offset + 1}"))
    if values["pad_id"] >= values["vocabulary_size"]:
        found = f"pad_token_id={values['pad_id']}"
        mismatches.append((found, f"an id below vocab_size={values['vocabulary_size']}"))
    if mismatches:
        raise UserError(Problem(where, *pair, _REMEDY, code=Code.CORRUPT) for pair in mismatches)
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
