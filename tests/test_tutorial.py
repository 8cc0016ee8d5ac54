"""docs/tutorial.md: its files are written and its commands run, in its order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlmlab

ROOT = Path(mlmlab.__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PART = re.compile(r"as `([\w./]+)`:\n\n```\w+\n(.*?)```|```console\n(.*?)```", re.DOTALL)
"""A file with its name, or a block of commands with what they print."""
INSTALLATION = ("python -m venv ", "python -m pip ", "mkdir ")
"""What .ci/run does in its own way."""


def commands(block: str) -> list[tuple[str, str]]:
    """The commands of a block, each with the output that the page shows."""
    found = []
    for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = text.splitlines()
        last = next(n for n, line in enumerate(lines) if not line.endswith("\\"))
        found.append(("\n".join(lines[: last + 1]), "\n".join(lines[last + 1 :])))
    return found


def follow(folder: Path, shortened: bool) -> list[tuple[str, str, str]]:
    """Does what the page says in an empty folder.

    Args:
        shortened: whether its trainings end after two steps.

    Returns:
        Each command, what the page says that it prints, and what it prints.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "80",
        "MLMLAB_CACHE": str(folder.parent / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    outcomes = []
    for name, content, block in PART.findall(PAGE):
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        for command, shown in commands(block):
            if command.startswith(INSTALLATION):
                continue
            is_short = shortened and "mlmlab.train" in command and "resume=" not in command
            done = subprocess.run(
                ["bash", "-c", command + (" train.max_steps=2" if is_short else "")],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=1500,
                check=False,
            )
            allowed = (0, -9, 137) if command.startswith("timeout -s KILL ") else (0,)
            assert done.returncode in allowed, command + done.stdout + done.stderr
            outcomes.append((command, shown, done.stdout))
    return outcomes


def as_killed_or_done(outcomes: list[tuple[str, str, str]]) -> None:
    """The interrupted run has the weights of the one that was not."""
    (digests,) = (output for command, _, output in outcomes if command.startswith("sha256sum"))
    first, killed = (line.split()[0] for line in digests.splitlines())
    assert first == killed


def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    (folder := tmp_path / "tutorial").mkdir()
    outcomes = follow(folder, shortened=True)
    assert len(outcomes) == 11
    as_killed_or_done(outcomes)
    assert (folder / "runs" / "topics" / "sweep" / "report.html").is_file()


def without_numbers(text: str) -> list[str]:
    """Its lines, with # for each number, which the processor and Python's version decide."""
    return [" ".join(re.sub(r"[\d.,]*\d", "#", line).split()) for line in text.splitlines()]


@pytest.mark.slow
def test_the_tutorials_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    (folder := tmp_path / "tutorial").mkdir()
    outcomes = follow(folder, shortened=False)
    as_killed_or_done(outcomes)
    for command, shown, output in outcomes:
        printed = iter(without_numbers(output))
        for line in without_numbers(shown):
            if line != "...":
                assert line in printed, f"{command}: {line}\n{output}"
