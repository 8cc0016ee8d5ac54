"""A checkpoint's config.json, read strictly and written again."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlmlab.checkpoints.key_maps import KEY_MAPS
from mlmlab.data.json_file import Kind, integer, number, read_json_object, wrong_values
from mlmlab.errors import Code, Problem, UserError
from mlmlab.model import Family, ModelConfig
from mlmlab.model.families import ARCHITECTURES, Positions

_KINDS: Mapping[str, Kind] = {
    "vocabulary_size": integer(1, 10**8),
    "hidden_size": integer(1, 10**5),
    "embedding_size": integer(1, 10**5),
    "layers": integer(1, 1000),
    "heads": integer(1, 10**5),
    "intermediate_size": integer(1, 10**6),
    "max_positions": integer(1, 10**8),
    "token_types": integer(0, 10**5),
    "layer_norm_eps": number(0, 1),
    "global_every_n_layers": integer(1, 1000),
    "local_attention": integer(0, 10**8),
    "global_rope_theta": number(1, 1e12),
    "local_rope_theta": number(1, 1e12),
    "pad_id": integer(0, 10**8),
    "dropout": number(0, 1),
    "attention_dropout": number(0, 1),
    "initializer_range": number(1e-6, 1),
}
"""Far above any published model; it is the weights that decide whether a size is right."""

_CONSTANTS: Mapping[str, Any] = {
    "is_decoder": False,
    "tie_word_embeddings": True,
    "rope_scaling": None,
}
"""Options of the Hub's format for every family, with the values that this encoder implements."""

_REMEDY = "fetch or save the checkpoint again"


def read_hub_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`.

    Raises:
        UserError: no such file, a damaged one, or an unknown architecture.
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
    implemented = {**key_map.constants, **_CONSTANTS}
    implemented |= {key: given[other] for key, other in key_map.repeated.items() if other in given}
    unsupported = {
        key: str(value) for key, value in implemented.items() if given.get(key, value) != value
    }
    if "global_rope_theta" in key_map.config.values():
        unsupported |= _spell_by_number(given, content)
    problems = [
        Problem(
            where,
            f"{key}={reprlib.repr(given[key])}",
            expected,
            "choose another checkpoint: this encoder has no such option",
            code=Code.UNSUPPORTED,
        )
        for key, expected in unsupported.items()
    ]
    kinds = {theirs: _KINDS[ours] for ours, theirs in key_map.config.items()}
    problems += wrong_values(given, kinds, where, remedy=_REMEDY)
    values: dict[str, Any] = {
        **architecture.checkpoint_defaults(),
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
    elif (
        architecture.positions is Positions.ROTARY and values["hidden_size"] // values["heads"] % 2
    ):
        found = f"{values['heads']} heads for a width of {values['hidden_size']}"
        mismatches.append((found, "heads of an even width: pairs of coordinates are rotated"))
    if values["max_positions"] < 1:
        found = f"max_position_embeddings={values['max_positions'] + offset}"
        mismatches.append((found, f"at least {offset + 1}"))
    if values["pad_id"] >= values["vocabulary_size"]:
        found = f"pad_token_id={values['pad_id']}"
        mismatches.append((found, f"an id below vocab_size={values['vocabulary_size']}"))
    if mismatches:
        raise UserError(Problem(where, *pair, _REMEDY, code=Code.CORRUPT) for pair in mismatches)
    if values.get("embedding_size") == values["hidden_size"]:
        values["embedding_size"] = None  # there is no projection
    return ModelConfig(family=family, **values)


_ROTATIONS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def _spell_by_number(given: dict[str, Any], content: Mapping[str, Any]) -> dict[str, str]:
    """Adds the older keys for `layer_types` and `rope_parameters` of transformers 5.

    They say for each layer what three numbers say in older files: the pattern of global and local
    layers, and the base of the rotation in either. We write the numbers, which all versions read.

    Args:
        given: the content without nulls; changed.
        content: that of config.json.

    Returns:
        What was expected, by key, where the numbers cannot say the same.
    """
    unsupported = {}
    if content.get("local_rope_theta", "") is None and "global_rope_theta" in given:
        given["local_rope_theta"] = given["global_rope_theta"]  # as in transformers 4
    if (types := given.get("layer_types")) is not None:
        kinds = types if isinstance(types, list) else []
        later = [n for n, kind in enumerate(kinds) if n and kind == "full_attention"]
        every = later[0] if later else max(1, len(kinds))
        pattern = [
            "sliding_attention" if n % every else "full_attention" for n, _ in enumerate(kinds)
        ]
        given["global_attn_every_n_layers"] = every
        if types != pattern or len(kinds) != given.get("num_hidden_layers"):
            unsupported["layer_types"] = (
                "full_attention in layers 0, n, 2n, ... of num_hidden_layers, sliding_attention in "
                "the others"
            )
    if (rotations := given.get("rope_parameters")) is not None:
        for kind, theta in _ROTATIONS.items():
            rotation = rotations.get(kind, {}) if isinstance(rotations, dict) else None
            if not isinstance(rotation, dict) or rotation.get("rope_type", "default") != "default":
                unsupported["rope_parameters"] = "rope_type=default for both kinds of layers"
            elif "rope_theta" in rotation:
                given[theta] = rotation["rope_theta"]
    return unsupported


def hub_config(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json for one of our models."""
    key_map = KEY_MAPS[config.family]
    values = {theirs: getattr(config, ours) for ours, theirs in key_map.config.items()}
    values[key_map.config["max_positions"]] += config.position_offset
    values |= {key: values[other] for key, other in key_map.repeated.items()}
    if "embedding_size" in values:
        values["embedding_size"] = config.table_width
    return {
        "architectures": [key_map.model_class],
        "model_type": key_map.model_types[0],
        **key_map.constants,
        **values,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
