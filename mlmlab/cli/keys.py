"""The config's keys in words: for `--help GROUP` and for docs/config.md.

The words are the docstrings in the config's dataclasses, so that there is one place to write them.
"""

import ast
import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args, get_type_hints

from mlmlab import schema
from mlmlab.cli.commands import Command, config_folder
from mlmlab.errors import Code, UserError


@dataclass(frozen=True)
class Key:
    """A key of a config."""

    name: str
    """Dotted."""
    expected: str
    """Type and limits."""
    text: str
    """What it decides."""


def keys(kind: type, prefix: str = "") -> Iterator[Key]:
    """All keys of a config's dataclass, in the order of its fields, its own before its groups'."""
    hints, words = get_type_hints(kind), _field_docstrings(kind)
    groups = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            groups.append((hint, f"{prefix}{field.name}."))
        else:
            expected = _expected(field, hint)
            yield Key(prefix + field.name, expected, words.get(field.name, ""))
    for hint, name in groups:
        yield from keys(hint, name)


def _field_docstrings(kind: type) -> dict[str, str]:
    """The string below each field, of the class and of those it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, after in pairwise(body.body):
            match field, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    return found


def _expected(field: dataclasses.Field[Any], hint: Any) -> str:
    names, limits = field.metadata.get("names"), field.metadata.get("limits", {})
    if names:
        return f"{', '.join(names)} or package.module:name"
    is_optional = type(None) in get_args(hint)
    text = schema.described(hint).removesuffix(" or null")
    if limits:
        text += ", " + " and ".join(f"{name} {limit:,}" for name, limit in limits.items())
    return f"{text}, or null" if is_optional else text


def help_of(name: str, command: Command, values: Mapping[str, Any]) -> str:
    """The keys of a group, or one key, with their values and what they decide, at 80 columns.

    Args:
        name: of the group or the key, dotted.
        values: the composed config.

    Raises:
        UserError: there is no such group or key.
    """
    flat = schema.flat(values)
    found = [key for key in keys(command.kind) if f"{key.name}.".startswith(f"{name}.")]
    if not found:
        known = [key.name for key in keys(command.kind)]
        groups = {key.rpartition(".")[0] for key in known} - {""}
        (closest,) = difflib.get_close_matches(name, [*groups, *known], 1, cutoff=0.0)
        raise UserError.of(
            f"--help {name}",
            code=Code.UNKNOWN_KEY,
            found=f"{name}, which is neither a group nor a key",
            expected=f"a key, or one of the groups {', '.join(sorted(groups))}",
            remedy=f"for instance --help {closest}",
        )
    options = options_of(name)
    blocks = [_filled(options)] if options else []
    for key in found:
        words = _filled(f"{key.text} Takes {key.expected}.".strip(), "    ")
        blocks.append(f"{key.name}={schema.shown(flat[key.name])}\n{words}")
    return "\n\n".join(blocks)


def options_of(group: str) -> str:
    """The options of a group in one sentence, "" if it has no folder in conf/."""
    outer, _, name = group.rpartition(".")
    folder = config_folder() / name
    if not group or not folder.is_dir():
        return ""
    options = ", ".join(sorted(file.stem for file in folder.iterdir()))
    return f"Options ({f'{name}@{group}' if outer else name}=OPTION): {options}."


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        80,
        initial_indent=indent,
        subsequent_indent=indent or "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
