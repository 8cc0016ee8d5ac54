"""Hydra's and OmegaConf's errors as our own messages."""

import difflib
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from mlmlab import schema
from mlmlab.cli.commands import TRAIN, Command, invocation
from mlmlab.errors import Code, Problem, UserError

OF_THE_RUN = "of_the_run"
"""The option that an evaluated run's own group becomes; no user chooses it."""


@contextmanager
def composition_errors(overrides: Sequence[str], command: Command = TRAIN) -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise inside into a `UserError`, without their own traces.

    Args:
        overrides: the command line that is composed.
        command: the command that it was given to.
    """
    try:
        yield
    except OverrideParseException as error:
        raise UserError([_syntax(error.override, command)]) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError([_explained(str(error), command)]) from None
    except yaml.MarkedYAMLError as error:
        raise UserError([_broken_yaml(error)]) from None
    except ValueError as error:
        # Hydra 1.3 raises a bare one for an option that is no name, such as model=3.
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.name == "create_defaults_list" for frame in frames):
            raise
        raise UserError([_explained(f"{' '.join(overrides)}: {error}", command)]) from None


def _syntax(override: str, command: Command) -> Problem:
    """An override that Hydra cannot parse."""
    key, equals, value = override.partition("=")
    if not equals and Path(override).exists():
        is_text = Path(override).is_file()
        name = "checkpoint" if command.name == "evaluate" else "resume"
        remedy = f"data.path={override}" if is_text else f"{name}={override}"
        return Problem("the command line", override, "KEY=VALUE", remedy, code=Code.SYNTAX)
    text = value if value and not {"'", '"'} & set(value) else "TEXT"
    return Problem(
        "the command line",
        override,
        "KEY=VALUE; a text with commas, brackets or other punctuation in quotes for Hydra",
        f"for instance {key or 'KEY'}=\"'{text}'\"",
        code=Code.SYNTAX,
    )


def _broken_yaml(error: yaml.MarkedYAMLError) -> Problem:
    """A file that is no YAML."""
    mark = error.problem_mark
    assert mark is not None
    return Problem(
        f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}",
        str(error.problem),
        "YAML, indented with spaces",
        "correct the line, or the one before it",
        code=Code.CORRUPT,
    )


def without_package(group: str, option: str) -> Problem:
    """The problem with an option of the user's whose keys are below its group's name, because its
    file does not say where else they belong.

    Args:
        group: the group, a folder's name.
        option: the option, a file's name.
    """
    return Problem(
        f"{group}/{option}.yaml",
        f"keys below {group}, which mlmlab does not have",
        "keys of mlmlab.train: a file without a package puts its own below its folder's name",
        "make this its first line: # @package _global_",
        code=Code.UNKNOWN_KEY,
    )


def no_config_folder(where: str, folder: str) -> Problem:
    """The problem with a folder for the user's options that is not there.

    Args:
        where: how it was named, --config-dir or config_dir.
    """
    return Problem(
        where,
        f"{folder}: no such folder",
        "a folder with options of your own, such as experiment/mine.yaml",
        f"{where}=FOLDER, then +experiment=mine",
        code=Code.NOT_FOUND,
    )


def _explained(text: str, command: Command) -> Problem:
    """What we know better than Hydra, or else Hydra's own text, which often has the remedy."""
    if found := re.search(r"To append to your config use \+(.+?)=(.*)", text):
        return schema.unknown_key(command.kind, *found.groups())
    if found := re.search(
        r"Could not find '(.+)/(.+)'\s+Available options in '.*':\n((?:\t.*\n?)+)", text
    ):
        group, option, listed = found.groups()
        options = [name for name in listed.split() if name != OF_THE_RUN]
        plus = "+" if group == "experiment" else ""
        (closest,) = difflib.get_close_matches(option, options, 1, cutoff=0.0)
        return Problem(
            group,
            f"{group}={option}",
            f"one of {', '.join(options)}",
            f"for instance {plus}{group}={closest}",
            code=Code.UNKNOWN_OPTION,
        )
    if found := re.search(r"In '(.+)': Could not find '\1?.*?/?(\w+)/(\w+)'", text):
        file, group, option = found.groups()
        folder = file.rpartition("/")[0]
        return Problem(
            f"{file}.yaml",
            f"- {group}: {option} in its defaults, which is looked for in {folder}/",
            "a group of mlmlab's, with a slash, and chosen in place of the one that is there",
            f"- override /{group}: {option}",
            code=Code.UNKNOWN_OPTION,
        )
    if found := re.search(r"Additional config directory '(.*)' not found", text):
        return no_config_folder("--config-dir", found.group(1))
    return Problem(
        "the command line",
        " ".join(text.replace("\\'", "'").split()),
        "KEY=VALUE, GROUP=OPTION or +experiment=NAME",
        f"{invocation(command.name)} --help lists groups, options and keys",
        code=Code.SYNTAX,
    )
