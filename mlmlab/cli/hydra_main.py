"""A command that Hydra composes, from the command line to its end."""

import os
import string
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from mlmlab import schema
from mlmlab.cli.commands import Command, config_folder, in_eighty_columns, invocation
from mlmlab.cli.compose import composed, with_own_options
from mlmlab.cli.hydra_errors import composition_errors
from mlmlab.cli.keys import help_of
from mlmlab.errors import Code, UserError


def _listed_groups(*names: str, own_folder: str | None = None) -> str:
    """Groups and their options, a line for each.

    Args:
        names: of the groups; none: all of them.
        own_folder: where else than in conf/ options are.
    """
    options = defaultdict(set)
    for folder in (config_folder(), *([] if own_folder is None else [Path(own_folder)])):
        for file in folder.rglob("*.yaml"):
            options[file.parent.relative_to(folder).as_posix()].add(file.stem)
    shown = names or sorted(options.keys() - {"."})
    return "\n".join(f"{name}: {', '.join(sorted(options[name]))}" for name in shown)


# For --help
OmegaConf.register_new_resolver("mlmlab.invocation", invocation, replace=True)
OmegaConf.register_new_resolver("mlmlab.groups", _listed_groups, replace=True)


def run_with_hydra(
    job: Callable[[], object],
    command: Command,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Composes the config, or those of a sweep, and calls the job with each.

    Args:
        job: what `hydra.main` has decorated.
        around: what all jobs together run in.
    """
    _refuse_options(sys.argv[1:], command)
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):
        print(_help(sys.argv[1:], command))
        return
    if not {"-m", "--multirun"}.isdisjoint(sys.argv[1:]):
        refuse_under_torchrun()  # now: for its first job, Hydra creates the sweep's folder
    sys.argv[1:] = with_own_options(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits before we see its errors
    with composition_errors(sys.argv[1:], command), around():
        job()


def _help(arguments: Sequence[str], command: Command) -> str:
    """The groups and keys that --help is asked about (--help masking), or an overview.

    Hydra's own --help reads all groups many times, which takes half a second.
    """
    given, _ = get_args_parser().parse_known_args(arguments)
    overrides = [text for text in given.overrides if "=" in text]
    values = composed(command, with_own_options(overrides), given.config_dir)
    if topics := [text for text in given.overrides if "=" not in text]:
        return "\n\n".join(help_of(topic, command, values) for topic in topics)
    template = OmegaConf.load(config_folder() / f"{command.name}.yaml").hydra.help.template
    overview = string.Template(template).substitute(
        APP_CONFIG_GROUPS=_listed_groups(own_folder=given.config_dir) + "\n",
        CONFIG=OmegaConf.to_yaml(OmegaConf.create(values)),
    )
    return in_eighty_columns(overview)


def _refuse_options(arguments: Sequence[str], command: Command) -> None:
    """Refuses --max_steps 5, and says how a key is set."""
    _, unknown = get_args_parser().parse_known_args(arguments)
    if not unknown:
        return
    name, _, value = unknown[0].partition("=")
    following = arguments[list(arguments).index(unknown[0]) + 1 :]
    if not value and following and not following[0].startswith("-") and "=" not in following[0]:
        value = following[0]
    meant = schema.meant_keys(command.kind, name.strip("-").replace("-", "_"))
    raise UserError.of(
        "the command line",
        code=Code.SYNTAX,
        found=unknown[0],
        expected="KEY=VALUE, without dashes",
        remedy=" or ".join(f"{key}={value or '...'}" for key in meant)
        or "--help lists groups, options and keys",
    )


def refuse_under_torchrun() -> None:
    """Refuses a sweep in each of torchrun's processes."""
    if "RANK" in os.environ:
        raise UserError.of(
            "-m under torchrun",
            code=Code.CONFLICT,
            found="a sweep in each of torchrun's processes",
            expected="processes for each job of the sweep, not a sweep for each process",
            remedy="-m runtime.processes=N ..., without torchrun: each job starts its own",
        )
