"""Errors of Hydra and OmegaConf, as messages of ours."""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from mlmlab import schema
from mlmlab.cli.commands import EVALUATE, TRAIN, Command, config_folder
from mlmlab.errors import Problem, UserError
from mlmlab.runs.exit_status import exit_status

OF_THE_RUN = "of_the_run"
"""The option that stands for an evaluated run's own group; no user chooses it."""


def as_command(main: Callable[[], object]) -> NoReturn:
    """Runs a Hydra main as a process: one message and a status in place of a traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits before we see its errors
    with exit_status(), composition_errors(sys.argv[1:]):
        main()
    sys.exit(0)


@contextmanager
def composition_errors(overrides: Sequence[str], command: Command = TRAIN) -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise inside into a `UserError`: a wrong key, group or syntax.

    Args:
        overrides: the command line that is composed.
        command: the command that it was given to.
    """
    try:
        yield
    except Exception as error:
        explained = _explained(error, overrides, command)
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, overrides: Sequence[str], command: Command) -> UserError | None:
    """The message; None for an error that has nothing to do with composing."""
    if isinstance(error, OverrideParseException):
        return UserError([syntax(error.override)])
    if isinstance(error, InterpolationResolutionError):
        return UserError([_interpolation(error)])
    if isinstance(error, HydraException | OmegaConfBaseException):
        text = str(error)
        for pattern, explain in _EXPLANATIONS:
            if found := re.search(pattern, text):
                return UserError([explain(command, *found.groups())])
        return UserError([_other(command, " ".join(text.split()))])
    if isinstance(error, ValueError) and _is_from_defaults_list(error):
        groups = [folder.name for folder in config_folder().iterdir() if folder.is_dir()]
        chosen = [text for text in overrides if text.lstrip("+").partition("=")[0] in groups]
        return UserError([_other(command, ": ".join([*chosen, str(error)]))])
    return None


def _is_from_defaults_list(error: Exception) -> bool:
    """Hydra 1.3 raises a bare ValueError for an option that is no name, such as model=3."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "create_defaults_list" for frame in frames)


def syntax(override: str) -> Problem:
    """An override that Hydra cannot parse."""
    key, _, value = override.partition("=")
    text = value if value and not {"'", '"'} & set(value) else "TEXT"
    return Problem(
        "the command line",
        override,
        "KEY=VALUE; a text with commas, brackets or other punctuation has quotes of its own",
        f"for instance {key or 'KEY'}=\"'{text}'\"",
    )


def _interpolation(error: InterpolationResolutionError) -> Problem:
    key = str(error.full_key)
    return Problem(
        key,
        str(error).splitlines()[0],
        "a value, or ${KEY} with a key that exists",
        f"{key}=VALUE, without ${{...}}",
    )


def _no_such_key(command: Command, key: str, value: str) -> Problem:
    if command is EVALUATE and key == "masking":
        return Problem(
            key,
            f"{key}={value}",
            "a policy for eval.masking: an evaluation has no other",
            f"masking@eval.masking={value}",
        )
    return schema.unknown_key(command.kind, key, value)


def _group_without_default(command: Command, group: str, option: str) -> Problem:
    if not (config_folder() / group).is_dir() or command is not TRAIN:
        return _no_such_key(command, group, option)
    return Problem(
        group,
        f"{group}={option}",
        f"+{group}=NAME: the default run has none that could be replaced",
        f"+{group}={option}",
    )


def _no_such_option(command: Command, group: str, option: str, listed: str) -> Problem:
    options = [name for name in listed.split() if name != OF_THE_RUN]
    plus = "+" if group == "experiment" else ""
    (closest,) = difflib.get_close_matches(option, options, 1, cutoff=0.0)
    return Problem(
        group,
        f"{group}={option}",
        f"one of {', '.join(options)}",
        f"for instance {plus}{group}={closest}",
    )


def _several_values(command: Command, override: str) -> Problem:
    key, _, values = override.partition("=")
    a_list = f", or {key}=[{values}] for a list" if "," in values else ""
    if command is not TRAIN:
        return Problem(key, override, "one value", f"one command for each value{a_list}")
    return Problem(
        key,
        override,
        "one value; several make a sweep, which -m asks for",
        f"python -m mlmlab.train -m {override}{a_list}",
    )


def _needless_plus(command: Command, key: str, override: str) -> Problem:
    return Problem(key, f"+{override}", f"no +: there is a {key} already", override)


def _other(command: Command, text: str) -> Problem:
    return Problem(
        "the command line",
        text,
        "KEY=VALUE, GROUP=OPTION or +experiment=NAME",
        f"python -m {command.name} --help lists groups, options and keys",
    )


_EXPLANATIONS: tuple[tuple[str, Callable[..., Problem]], ...] = (
    (r"No match in the defaults list\.\s+.*\+(.+?)=(.*)", _group_without_default),
    (r"Could not override '[^']*'\.\s+(?:.*\s+)?To append .* use \+(.+?)=(.*)", _no_such_key),
    (r"Could not find '(.+)/(.+)'\s+Available options in '.*':\n((?:\t.*\n?)+)", _no_such_option),
    (r"Ambiguous value for argument '(.*)'\n", _several_values),
    (r"Sweep parameters '(.*)' requires --multirun", _several_values),
    (r"already at '(.*)'\.\s+Either remove \+ prefix: '(.*)'", _needless_plus),
)
"""What Hydra writes, and what we make of its parts."""
