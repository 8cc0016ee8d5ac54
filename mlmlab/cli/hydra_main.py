"""A command that Hydra composes, from the command line to its end."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from mlmlab import schema
from mlmlab.cli.commands import Command, config_folder, in_eighty_columns, invocation
from mlmlab.cli.compose import composed, with_own_options
from mlmlab.cli.hydra_errors import composition_errors
from mlmlab.cli.keys import help_of
from mlmlab.errors import Code, UserError


def _listed_groups(*groups: str) -> str:
    """Groups and their options, a line for each."""
    return "\n".join(
        f"{group}: {', '.join(sorted(file.stem for file in (config_folder() / group).iterdir()))}"
        for group in groups
    )


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
    if topics := _help_topics(sys.argv[1:]):
        overrides = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
        values = composed(command, with_own_options(overrides))
        print("\n\n".join(help_of(topic, command, values) for topic in topics))
        return
    if not {"-m", "--multirun"}.isdisjoint(sys.argv[1:]):
        refuse_under_torchrun()  # now: for its first job, Hydra creates the sweep's folder
    sys.argv[1:] = with_own_options(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits before we see its errors
    with composition_errors(sys.argv[1:], command):
        if {"--help", "-h"}.isdisjoint(sys.argv[1:]):
            with around():
                job()
            return
        with redirect_stdout(io.StringIO()) as text, suppress(SystemExit):  # Hydra exits after it
            job()
        print(in_eighty_columns(text.getvalue()))


def _help_topics(arguments: Sequence[str]) -> list[str]:
    """The groups and keys that --help is asked about: --help masking."""
    if {"--help", "-h"}.isdisjoint(arguments):
        return []
    return [text for text in arguments if not text.startswith("-") and "=" not in text]


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
