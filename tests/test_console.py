"""The commands as console scripts: the same as python -m, the working directory included."""

import importlib
import os
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from refusals import refusal
from stopping import TINY

import mlmlab
from mlmlab import __main__, evaluate, fill_mask, push, report, show_masks, train
from mlmlab.cli.commands import COMMANDS, script
from mlmlab.errors import Code

ROOT = Path(mlmlab.__file__).parents[1]
SCRIPT = """\
import sys
from mlmlab.{name} import command
if __name__ == "__main__":
    sys.exit(command())
"""
"""What an installer writes for mlmlab.NAME:command."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with an idea in it, and beside it a folder with the console scripts."""
    (tmp_path / "bin").mkdir()
    for name in COMMANDS:
        (tmp_path / "bin" / script(name)).write_text(SCRIPT.format(name=name))
    (tmp_path / "work").mkdir()
    idea = "def flat(step, total_steps):\n    return 1.0\n"
    (tmp_path / "work" / "my_ideas.py").write_text(idea)
    return tmp_path / "work"


def call(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_every_command_is_a_console_script_and_there_is_no_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    expected = {script(name): f"mlmlab.{name}:command" for name in COMMANDS}
    assert project["scripts"] == expected
    for target in expected.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("processes", ["null", "2"])
def test_a_console_script_and_its_processes_find_ideas_in_the_working_directory(
    folder: Path, processes: str
) -> None:
    train = str(folder.parent / "bin" / "mlmlab-train")
    own = ("train.schedule=my_ideas:flat", f"runtime.processes={processes}", "run_dir=run")
    done = call(folder, train, *TINY, *own, "train.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "summary.json").is_file()


def test_whoever_keeps_the_working_directory_off_the_path_is_heeded(folder: Path) -> None:
    train = str(folder.parent / "bin" / "mlmlab-train")
    done = call(folder, "-P", train, *TINY, "train.schedule=my_ideas:flat")
    assert done.returncode == 2
    assert "No module named 'my_ideas'" in done.stderr


def test_a_console_script_ends_with_one_message_and_the_status_of_the_command(
    folder: Path,
) -> None:
    done = call(folder, str(folder.parent / "bin" / "mlmlab-fill-mask"))
    assert done.returncode == 2
    assert done.stderr.startswith("mlmlab: the command line\n")
    assert "mlmlab-fill-mask --help shows examples" in done.stderr


MAINS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "fill_mask": fill_mask.main,
    "show_masks": show_masks.main,
    "report": report.main,
    "push": push.main,
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("as_script", [True, False])
def test_the_help_shows_the_command_as_it_was_called(
    name: str,
    as_script: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spellings = (script(name), f"python -m mlmlab.{name}")
    mine, other = spellings if as_script else reversed(spellings)
    called = f"/somewhere/bin/{script(name)}" if as_script else f"{ROOT}/mlmlab/{name}.py"
    monkeypatch.setattr(sys, "argv", [called, "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with suppress(SystemExit):
        MAINS[name]()
    shown = [line for line in capsys.readouterr().out.splitlines() if "torchrun" not in line]
    assert sum(mine in line for line in shown) >= 3
    assert not any(other in line for line in shown)


def test_python_m_mlmlab_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mlmlab"])
    __main__.main()
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"python -m mlmlab.{name}, or {script(name)}\n" in shown
    monkeypatch.setattr(sys, "argv", ["mlmlab", "fill-msk", "--top-k", "3"])
    with refusal("the command line", Code.SYNTAX, "python -m mlmlab.fill_mask --top-k 3"):
        __main__.main()


def test_python_m_mlmlab_is_a_process_of_its_own(folder: Path) -> None:
    done = call(folder, "-m", "mlmlab", "train")
    assert (done.returncode, done.stdout) == (2, "")
    assert "python -m mlmlab.train" in done.stderr


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = project["project"]["version"]
    sections = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]
    released = [section for section in sections if not section.startswith("Unreleased\n")]
    assert released[0].startswith(f"{version} ")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
