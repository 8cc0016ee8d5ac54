"""Plain mappings to frozen dataclasses and back, strictly.

The dataclass is the schema: an unknown key, a missing key without a default, a wrong type, a value
outside its limits (`setting`) or a contradiction (`problems()`) becomes a `Problem`, and all of
them are collected before anything is raised.
"""

import dataclasses
import difflib
import math
import operator
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import (
    Any,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from mlmlab.errors import Code, Problem
from mlmlab.seams import OWN_NAME

Config = TypeVar("Config")
_ABSENT = object()
_REMOVED = {
    "eval.batch_size": "nothing: chunks of 8,192 tokens are scored one at a time, so it never had "
    "an effect on results or memory",
    "eval.split": "nothing: a run scores its test documents; python -m mlmlab.evaluate has the key",
    "runtime.mask_on": "nothing: a thread masks on the CPU, with the same masks",
}
"""Keys of earlier versions, and what replaces them."""


_ELSEWHERE = {
    "lr": "train.learning_rate",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "steps": "train.max_steps",
    "per_device_train_batch_size": "train.batch_size",
    "warmup_ratio": "train.warmup_fraction",
    "lr_scheduler_type": "train.schedule",
    "mlm_probability": "masking.rate",
    "max_length": "data.block_size",
    "output_dir": "run_dir",
    "model_name_or_path": "checkpoint",
}
"""What other frameworks call some of the keys."""


_COMPARISONS = {
    "above": operator.gt,
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
}


def setting(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    example: Any = None,
) -> Any:
    """A dataclass field for a number with limits. None passes where its type allows it.

    Args:
        example: what to suggest in place of a wrong value, if not the default.
    """
    limits = dict(zip(_COMPARISONS, (above, at_least, below, at_most), strict=True))
    metadata = {
        "limits": {name: limit for name, limit in limits.items() if limit is not None},
        "example": default if example is None else example,
    }
    return dataclasses.field(default=default, metadata=metadata)


def named(default: str, *built_in: str) -> Any:
    """A dataclass field for the name of something built in, or a custom package.module:name.

    Args:
        built_in: further names.
    """
    return dataclasses.field(default=default, metadata={"names": (default, *built_in)})


def listed(*default: str) -> Any:
    """A dataclass field for a list of such names."""
    return dataclasses.field(default=default, metadata={"names": default})


def own_names(config: Any, path: str = "") -> dict[str, str]:
    """The user's own names in a config, each with its dotted key."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= own_names(value, f"{key}.")
        elif built_in := field.metadata.get("names"):
            names = value if isinstance(value, tuple) else (value,)
            found |= {name: key for name in names if name not in built_in}
    return found


@runtime_checkable
class Checked(Protocol):
    """A dataclass that knows which of its values contradict each other."""

    def problems(self) -> Iterator[Problem]:
        """Yields one problem for every value, or combination, that cannot work."""


def all_problems(config: Any, path: str) -> Iterator[Problem]:
    """The values of a dataclass that are outside their limits, and its contradictions.

    Args:
        path: the dotted key of `config`, "" for the complete config.
    """
    for field in dataclasses.fields(config):
        value, limits = getattr(config, field.name), field.metadata.get("limits", {})
        names = field.metadata.get("names", ())
        values = value if isinstance(value, tuple) else (value,)
        if names and not all(one in names or OWN_NAME.fullmatch(one) for one in values):
            key = f"{path}.{field.name}" if path else field.name
            yield Problem(
                key,
                shown(value),
                f"one of {', '.join(names)}, or your own package.module:name",
                f"for instance {key}={shown(names if isinstance(value, tuple) else names[0])}",
                code=Code.WRONG_TYPE,
            )
        if value is None or all(_COMPARISONS[name](value, limits[name]) for name in limits):
            continue
        key = f"{path}.{field.name}" if path else field.name
        expected = " and ".join(f"{name} {limit}" for name, limit in limits.items())
        if type(None) in get_args(get_type_hints(type(config))[field.name]):
            expected += ", or null"
        yield Problem(
            key,
            shown(value),
            expected,
            f"{key}={shown(field.metadata['example'])}",
            code=Code.INVALID,
        )
    if isinstance(config, Checked):
        yield from config.problems()


def read(kind: type[Config], mapping: Any, path: str, problems: list[Problem]) -> Config | None:
    """Reads `mapping` as a `kind`, a dataclass.

    Args:
        path: the dotted key of the mapping itself, "" for the complete config.
        problems: what is wrong is appended here.

    Returns:
        The dataclass, or None if it could not be built (then `problems` has grown).
    """
    if not isinstance(mapping, Mapping):
        what = f"a group of keys: {', '.join(f.name for f in dataclasses.fields(kind))}"  # type: ignore[arg-type]
        problems.append(
            Problem(
                path,
                shown(mapping),
                what,
                f"set keys below it: {path}.KEY=VALUE",
                code=Code.WRONG_TYPE,
            )
        )
        return None
    hints = get_type_hints(kind)
    for name, value in mapping.items():
        if name not in hints:
            problems.append(unknown_key(kind, str(name), value, path))
    values: dict[str, Any] = {}
    complete = True
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        key = f"{path}.{field.name}" if path else field.name
        if field.name not in mapping:
            if field.default is field.default_factory is dataclasses.MISSING:
                expected, example = described(hints[field.name]), _example(hints[field.name])
                remedy = f"set {key}={example}, or start from conf/train.yaml"
                problems.append(Problem(key, "nothing", expected, remedy, code=Code.MISSING))
                complete = False
            continue
        hint, right = hints[field.name], field.metadata.get("example")
        value = _convert(hint, mapping[field.name], key, problems, right)
        if value is _ABSENT:
            complete = False
        else:
            values[field.name] = value
    if not complete:
        return None
    config = kind(**values)
    problems += all_problems(config, path)
    return config


def unknown_key(kind: type, key: str, value: Any, path: str = "") -> Problem:
    """The problem with a key that is not there, and the key that was probably meant.

    Args:
        kind: the dataclass that should have the key.
        key: dotted, relative to `kind`.
        path: the dotted key of the `kind` itself.
    """
    prefix = f"{path}." if path else ""
    if prefix + key in _REMOVED:
        return Problem(
            f"{prefix}{key}: this key has been removed",
            f"{prefix}{key}={shown(value)}",
            _REMOVED[prefix + key],
            f"remove {prefix}{key}",
            code=Code.REMOVED_KEY,
        )
    meant = meant_keys(kind, key)
    if key in meant:  # right on a command line, but not in a file
        groups = (prefix + key).split(".")
        return Problem(
            f"{prefix}{key}: a key with dots in a YAML file",
            f"{prefix}{key}: {shown(value)}",
            "groups nested by indentation",
            ": {".join(groups) + f": {shown(value)}" + "}" * (len(groups) - 1),
            code=Code.UNKNOWN_KEY,
        )
    owner, place = kind, prefix
    for part in key.split(".")[:-1]:
        hint = get_type_hints(owner).get(part)
        if not isinstance(hint, type) or not dataclasses.is_dataclass(hint):
            break
        owner, place = hint, f"{place}{part}."
    suggestions = " or ".join(f"{prefix}{leaf}={shown(value)}" for leaf in meant)
    return Problem(
        f"{prefix}{key}: there is no such key",
        f"{prefix}{key}={shown(value)}",
        f"one of {', '.join(place + sibling for sibling in get_type_hints(owner))}",
        f"perhaps {suggestions}" if meant else f"remove {prefix}{key}",
        code=Code.UNKNOWN_KEY,
    )


def meant_keys(kind: type, key: str) -> list[str]:
    """The keys that somebody may mean with one that is not there; the best first."""
    name = key.rpartition(".")[2]
    leaves = list(_leaf_keys(kind))
    name = _ELSEWHERE.get(name, name)
    # The name may be right and the group missing or wrong: batch_size=8, model.rate=0.3.
    found = [leaf for leaf in leaves if name in (leaf, leaf.rpartition(".")[2])]
    return found or difflib.get_close_matches(key, leaves, 1)


def _leaf_keys(kind: type, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _leaf_keys(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def _convert(hint: Any, value: Any, key: str, problems: list[Problem], example: Any = None) -> Any:
    """The value as the type that `hint` names, or `_ABSENT` after noting a problem.

    Args:
        example: a value that would be right.
    """
    options = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    if value is None:
        if type(None) in options:
            return None
    else:
        for kind in options:
            if dataclasses.is_dataclass(kind):
                read_value = read(kind, value, key, problems)  # type: ignore[arg-type]
                return _ABSENT if read_value is None else read_value
            converted = _scalar_or_list(kind, value)
            if converted is not _ABSENT:
                return converted
    remedy = f"for instance {key}={_example(hint, value, example)}"
    problems.append(Problem(key, shown(value), described(hint), remedy, code=Code.WRONG_TYPE))
    return _ABSENT


def _scalar_or_list(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Mapping:
        if isinstance(value, Mapping):
            return dict(value)
    elif get_origin(kind) is tuple:
        element = get_args(kind)[0]
        if isinstance(value, list | tuple) and all(type(item) is element for item in value):
            return tuple(value)
    elif issubclass(kind, Enum):
        for member in kind:
            if value == member.value:
                return member
    elif kind is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is kind:
        return value
    return _ABSENT


def shown(value: Any) -> str:
    """A value as one writes it in a command."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    return str(value)


def described(hint: Any) -> str:
    """What a key of this type takes, in words."""
    options = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    parts = []
    for option in options:
        if option is type(None):
            parts.append("null")
        elif get_origin(option) is tuple:
            parts.append("a list of strings: [a,b]")
        elif get_origin(option) is Mapping:
            parts.append("a mapping: {name: value}")
        elif dataclasses.is_dataclass(option):
            parts.append("a group of keys")
        elif issubclass(option, Enum):
            parts.append("one of " + ", ".join(str(member.value) for member in option))
        else:
            parts.append(names[option])
    return " or ".join(parts)


def _example(hint: Any, value: Any = None, example: Any = None) -> str:
    """A value that would be right, as one types it in a shell: what was probably meant with the
    wrong `value`, or else an `example`."""
    kind = (get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,))[0]
    if get_origin(kind) in (tuple, Mapping):
        if get_origin(kind) is tuple:
            return f"[{value}]" if isinstance(value, str) else "[]"
        return "{}"
    if kind is int and isinstance(value, float) and value.is_integer():
        return str(int(value))
    if issubclass(kind, Enum):
        return str(next(iter(kind)).value)
    if kind is str and isinstance(value, int | float):  # a number that is meant as a text
        return f"\"'{shown(value)}'\""
    if kind in (int, float) and example is not None:
        return shown(example)
    return {int: "1", float: "0.1", str: "TEXT", bool: "true"}.get(kind, "{...}")


def to_mapping(config: Any) -> Any:
    """The dataclass as plain dicts, lists and scalars, as YAML and JSON can hold them."""
    if dataclasses.is_dataclass(config):
        fields = dataclasses.fields(config)
        return {field.name: to_mapping(getattr(config, field.name)) for field in fields}
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, PurePath):  # Python code may say Path where YAML has a text
        return str(config)
    if isinstance(config, tuple):
        return [to_mapping(item) for item in config]
    return config


FREE_MAPPINGS = ("options", "optimizer_options", "schedule_options", "sources")
"""Fields whose keys are not ours."""


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; a free mapping is a value."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and key not in FREE_MAPPINGS:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
