"""A checkpoint's config.json, read strictly and written again."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlmlab.checkpoints.key_maps import KEY_MAPS
from mlmlab.data.json_file import Kind, number, read_json_object, whole_number, wrong_values
from mlmlab.errors import Code, Problem, UserError
from mlmlab.model import Family, ModelConfig
from mlmlab.model.families import ARCHITECTURES

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

_CONSTANTS: Mapping[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "tie_word_embeddings": True,
}
"""Options of the Hub's format for every family, with the values that this encoder implements."""

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
    families = {name: family for family, names in KEY_MAPS.items() for name in names.model_types}
    if not isinstance(model_type, str) or model_type not in families:
        raise UserError.of(
            f"checkpoint {file}",
            code=Code.UNSUPPORTED,
            found=f"model_type={reprlib.repr(model_type)}",
            expected=f"one of {', '.join(families)}",
            remedy="choose a checkpoint of the BERT family",
        )
    return _model_config(families[model_type], content, file)


def _model_config(family: Family, content: Mapping[str, Any], file: Path) -> ModelConfig:
    where, key_map, architecture = f"checkpoint {file}", KEY_MAPS[family], ARCHITECTURES[family]
    given = {key: value for key, value in content.items() if value is not None}
    problems = [
        Problem(
            where,
            f"{key}={reprlib.repr(given[key])}",
            str(value),
            "choose another checkpoint: this encoder has no such option",
            code=Code.UNSUPPORTED,
        )
        for key, value in {**key_map.constants, **_CONSTANTS}.items()
        if key in given and given[key] != value
    ]
    kinds = {theirs: _KINDS[ours] for ours, theirs in key_map.config.items()}
    problems += wrong_values(given, kinds, where, remedy=_REMEDY)
    values: dict[str, Any] = {
        "token_types": architecture.token_types,
        "layer_norm_eps": architecture.layer_norm_eps,
        **key_map.defaults,
    }
    for ours, theirs in key_map.config.items():
        if theirs in given:
            values[ours] = given[theirs]
        elif ours not in values:
            problems.append(
                Problem(where, f"no {theirs}", kinds[theirs].expected, _REMEDY, code=Code.CORRUPT)
            )
    if problems:
        raise UserError(problems)
    offset = architecture.position_offset(values["pad_id"])
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
    return ModelConfig(family=family, **values)


def hub_config(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json for a model of ours."""
    key_map = KEY_MAPS[config.family]
    values = {theirs: getattr(config, ours) for ours, theirs in key_map.config.items()}
    values[key_map.config["max_positions"]] += config.position_offset
    return {
        "architectures": [key_map.model_class],
        "model_type": key_map.model_types[0],
        **key_map.constants,
        **values,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
