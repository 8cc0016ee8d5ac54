"""The commands: their names, how a process becomes one, and the YAML of two of them."""

import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mlmlab.config import EvaluateConfig, RunConfig
from mlmlab.runs.exit_status import exit_status

COMMANDS = {
    "train": "trains a masked language model; without arguments, a tiny one",
    "evaluate": "scores one on text: perplexity and accuracy",
    "fill_mask": "completes texts with one",
    "show_masks": "shows what a masking policy does to a text",
    "report": "compares finished runs: tables, plots and a verdict",
    "push": "uploads a finished run to the Hub, with its model card",
}
"""What each module does. It is called as python -m mlmlab.NAME, or as a console script (`script`,
[project.scripts] in pyproject.toml)."""


def script(name: str) -> str:
    """A command's console script: mlmlab-fill-mask for fill_mask."""
    return f"mlmlab-{name.replace('_', '-')}"


def invocation(name: str) -> str:
    """A command as the user has called it: its console script, or python -m."""
    return script(name) if Path(sys.argv[0]).stem == script(name) else f"python -m mlmlab.{name}"


def in_eighty_columns(help_text: str) -> str:
    """A help text with its long lines folded: those of the groups with many options."""
    return "\n".join(
        textwrap.fill(line, 80, subsequent_indent="  ") if len(line) > 80 else line
        for line in help_text.splitlines()
    )


def as_command(main: Callable[[], object]) -> NoReturn:
    """Runs a command's function as a process: with the working directory on Python's path, where
    `python -m` has it and a console script does not, and with a message and an exit status in place
    of a traceback."""
    if not sys.flags.safe_path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with exit_status():
        main()
    sys.exit(0)


@dataclass(frozen=True)
class Command:
    """A command whose config Hydra composes."""

    name: str
    """Its module, and its YAML under conf/, without the endings."""
    kind: type
    """The dataclass that the result is read as."""


TRAIN = Command("train", RunConfig)
EVALUATE = Command("evaluate", EvaluateConfig)


def config_folder() -> Path:
    """conf/: inside the package where it was installed from a wheel, else next to it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
