"""Hydra composes the YAML under conf/; `config.build` makes a run's config of it."""

import difflib
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from mlmlab import schema
from mlmlab.config import RunConfig, build
from mlmlab.errors import Problem, UserError


def config_folder() -> Path:
    """conf/: inside the package where it was installed from a wheel, else beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def compose(*overrides: str) -> RunConfig:
    """The config that `python -m mlmlab.train OVERRIDES` would run.

    Args:
        overrides: as on the command line: "+experiment=eli5", "train.max_steps=10".

    Raises:
        UserError: whatever is wrong with them.
    """
    outer = GlobalHydra.instance().hydra  # that of a notebook, or of a job that composes another
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            mapping = plain(hydra_compose("train", list(overrides)))
    except Exception as error:
        explained = composition_error(error, overrides)
        if explained is None:
            raise
        raise explained from error
    finally:
        GlobalHydra.instance().hydra = outer
    return build(mapping)


def plain(composed: DictConfig) -> dict[str, Any]:
    """The composed config as dicts, lists and scalars, Hydra's own part left out."""
    mapping = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def composition_error(error: Exception, overrides: Sequence[str]) -> UserError | None:
    """What Hydra or OmegaConf say about a key, a group or a syntax, as a message of ours.

    Args:
        overrides: the command line that was composed.

    Returns:
        The message; None for an error that has nothing to do with composing.
    """
    if isinstance(error, OverrideParseException):
        return UserError([_syntax(error.override)])
    if isinstance(error, InterpolationResolutionError):
        return UserError([_interpolation(error)])
    if isinstance(error, HydraException | OmegaConfBaseException):
        text = str(error)
        for pattern, explain in _EXPLANATIONS:
            if found := re.search(pattern, text):
                return UserError([explain(*found.groups())])
        return UserError([_other(" ".join(text.split()))])
    if isinstance(error, ValueError) and _is_from_defaults_list(error):
        groups = [folder.name for folder in config_folder().iterdir() if folder.is_dir()]
        chosen = [text for text in overrides if text.lstrip("+").partition("=")[0] in groups]
        return UserError([_other(": ".join([*chosen, str(error)]))])
    return None


def _is_from_defaults_list(error: Exception) -> bool:
    """Hydra 1.3 raises a bare ValueError for an option that is no name, such as model=3."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "create_defaults_list" for frame in frames)


def _syntax(override: str) -> Problem:
    return Problem(
        "the command line",
        override,
        "KEY=VALUE; a text with commas, brackets or other punctuation has quotes of its own",
        f"for instance {override.partition('=')[0] or 'KEY'}=\"'TEXT'\"",
    )


def _interpolation(error: InterpolationResolutionError) -> Problem:
    key = str(error.full_key)
    return Problem(
        key,
        str(error).splitlines()[0],
        "a value, or ${KEY} with a key that exists",
        f"{key}=VALUE, without ${{...}}",
    )


def _no_such_key(key: str, value: str) -> Problem:
    return schema.unknown_key(RunConfig, key, value)


def _group_without_default(group: str, option: str) -> Problem:
    if not (config_folder() / group).is_dir():
        return _no_such_key(group, option)
    return Problem(
        group,
        f"{group}={option}",
        f"+{group}=NAME: the default run has none that could be replaced",
        f"+{group}={option}",
    )


def _no_such_option(group: str, option: str, listed: str) -> Problem:
    options = listed.split()
    plus = "+" if group == "experiment" else ""
    (closest,) = difflib.get_close_matches(option, options, 1, cutoff=0.0)
    return Problem(
        group,
        f"{group}={option}",
        f"one of {', '.join(options)}",
        f"for instance {plus}{group}={closest}",
    )


def _several_values(override: str) -> Problem:
    key, _, values = override.partition("=")
    a_list = f", or {key}=[{values}] for a list" if "," in values else ""
    return Problem(
        key,
        override,
        "one value; several make a sweep, which -m asks for",
        f"python -m mlmlab.train -m {override}{a_list}",
    )


def _needless_plus(key: str, override: str) -> Problem:
    return Problem(key, f"+{override}", f"no +: there is a {key} already", override)


def _other(text: str) -> Problem:
    return Problem(
        "the command line",
        text,
        "KEY=VALUE, GROUP=OPTION or +experiment=NAME",
        "python -m mlmlab.train --help lists groups, options and keys",
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
