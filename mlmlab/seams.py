"""package.module:name: a user's own object wherever a built-in name is expected.

A seam has a table of built-in names. Any other name is imported: the module from the Python path,
on which the working directory is, and `name` from it. What it needs beyond the contract comes from
the free mapping of options next to the name, as keyword arguments.
"""

import functools
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mlmlab.errors import Code, Problem, UserError

OWN_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""What a user's own name looks like."""


def find(
    key: str,
    name: str,
    built_in: Mapping[str, Any],
    *,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    options_key: str | None = None,
) -> functools.partial[Any]:
    """The object that a name means, with its options: to be called with the arguments.

    Args:
        key: the config key that holds the name.
        arguments: the positional arguments that it will be called with, for the check and for
            messages.
        options: the keyword arguments.
        options_key: the config key that holds them; None: `key` + "_options".

    Raises:
        UserError: there is no such module or object, it fails when it is imported, or it cannot be
            called like this.
    """
    options_key = options_key or f"{key}_options"
    found = built_in[name] if name in built_in else _imported(key, name)
    call = ", ".join([*arguments, *(f"{option}={options[option]!r}" for option in options)])
    if not callable(found):
        raise UserError.of(
            key,
            code=Code.INVALID,
            found=f"{name}, {type(found).__name__} and not callable",
            expected=f"a function or class, called as ({call})",
            remedy=f"{key}={next(iter(built_in), 'NAME')}",
        )
    signature = inspect.signature(found)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise UserError.of(
            options_key if options else key,
            code=Code.INVALID,
            found=f"{name}{signature}, called as ({call}): {error}",
            expected=f"positional arguments ({', '.join(arguments)}); further ones come from "
            f"{options_key}",
            remedy=f"options that {name} takes; ~{options_key}.OPTION removes one",
        ) from error
    return functools.partial(found, **options)


def require(key: str, name: str, found: Any, *methods: str) -> None:
    """Checks that a user's own object, or its class, has the methods of its seam.

    Args:
        key: the config key that holds the name.
        methods: as a user writes them: "log(step, figures)".

    Raises:
        UserError: which are missing.
    """
    missing = [m for m in methods if not callable(getattr(found, m.partition("(")[0], None))]
    if missing:
        raise UserError.of(
            key,
            code=Code.INVALID,
            found=f"{name}, without {' and '.join(missing)}",
            expected=f"a class with {', '.join(methods)} (docs/extending.md)",
            remedy="add what is missing",
        )


def _imported(key: str, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == module_name
        raise UserError.of(
            key,
            code=Code.NOT_FOUND if is_absent else Code.INVALID,
            found=f"{name}: {type(error).__name__}: {error}",
            expected="a module on the Python path, or in the working directory",
            remedy=f"{module_name.replace('.', '/')}.py in the folder that the command runs in",
        ) from error
    if not hasattr(module, attribute):
        there = [item for item in vars(module) if not item.startswith("_")]
        raise UserError.of(
            key,
            code=Code.NOT_FOUND,
            found=f"{name}: {module.__file__} has no {attribute}",
            expected=f"one of {', '.join(there) or 'the names in it, and there is none'}",
            remedy=f"{key}={module_name}:NAME",
        )
    return getattr(module, attribute)


def list_problems(
    key: str,
    names: Sequence[str],
    options_key: str,
    options: Mapping[str, Any],
    *,
    needed: str,
    because: str,
) -> Iterator[Problem]:
    """What is wrong with a list of names, and with their options: a mapping for each of
    custom names, by what follows its colon.

    Args:
        needed: the built-in name that cannot be left out.
        because: why.
    """
    shown = f"[{','.join(names)}]"
    if needed not in names:
        yield Problem(
            key,
            shown,
            f"{needed} among them: {because}",
            f"{key}=[{','.join([needed, *names])}]",
            code=Code.MISSING,
        )
    if len(set(names)) < len(names):
        once = ",".join(dict.fromkeys(names))
        yield Problem(key, shown, "each name once", f"{key}=[{once}]", code=Code.CONFLICT)
    own = [name.partition(":")[2] for name in names]
    if unused := [name for name in options if name not in own]:
        yield Problem(
            options_key,
            f"options for {', '.join(unused)}",
            f"a mapping for each of {key} that has options",
            f"{options_key}.NAME.OPTION=VALUE, for {key}=[...,package.module:NAME]",
            code=Code.CONFLICT,
        )


def source_digest(key: str, name: str) -> str:
    """The SHA-256 of the file that a user's own object is imported from, in hexadecimal.

    Args:
        key: the config key that holds the name.

    Raises:
        UserError: there is no such module or object, or it fails when it is imported.
    """
    _imported(key, name)
    file = import_module(name.partition(":")[0]).__file__
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
