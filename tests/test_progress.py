"""What a person sees of a running run."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from stopping import TINY

import mlmlab
from mlmlab.tracking import progress_bar
from mlmlab.tracking.progress_bar import ProgressBar


@pytest.mark.parametrize("first", [0, 800])
def test_the_seconds_left_follow_from_the_steps_of_this_process(
    first: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: now)
    shown = ProgressBar(1000, first)
    for _ in range(100):
        shown.advance()
    now += 200.0  # two seconds per step
    shown.show(1.0, 2.7, 1000.0)
    seconds = [int(text) for text in re.findall(r"(\d+) s left", capsys.readouterr().out)]
    assert seconds == [2 * (900 - first)]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a notebook's kernel, as far as can be seen from within."""
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", ModuleType("ipykernel.zmqshell"))


@pytest.mark.usefixtures("notebook")
def test_a_notebook_has_bars_as_wide_as_its_cell_though_it_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar = ProgressBar(10)
    assert bar.bar is not None
    assert bar.bar.ncols is None
    bar.advance()
    bar.show(1.0, 2.7, 1000.0)
    bar.close()
    output = capsys.readouterr()
    assert "train" in output.err
    assert output.out == ""  # no lines beside the bar
    assert ProgressBar(10, quiet=True).bar is None


def test_a_log_file_has_lines_and_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(10)
    bar.advance()
    bar.show(1.0, 2.7, 1000.0)
    assert bar.bar is None
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith("step 1/10 ")


@pytest.mark.parametrize("is_notebook", [True, False])
def test_a_run_in_a_notebook_names_python_to_go_on_with_and_no_commands(
    is_notebook: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if is_notebook:
        request.getfixturevalue("notebook")
    mlmlab.run(mlmlab.compose(*TINY, "train.max_steps=2", f"run_dir={tmp_path / 'run'}"))
    said = capsys.readouterr().out
    assert ("mlmlab.FillMask(result.model, result.tokenizer)(" in said) == is_notebook
    assert ("python -m mlmlab" in said) == (not is_notebook)
    assert ("tensorboard --logdir" in said) == (not is_notebook)
    assert f"written    {tmp_path}" in said.replace("\n           ", "")


def test_a_notebook_without_ipywidgets_is_not_warned() -> None:
    kernel = (
        "import sys, types\n"
        "names = ('IPython', 'ipykernel', 'ipykernel.zmqshell')\n"
        "sys.modules |= {name: types.ModuleType(name) for name in names} | {'ipywidgets': None}\n"
        "sys.modules['IPython'].get_ipython = lambda: None\n"
        "from mlmlab.tracking.progress_bar import ProgressBar\n"
        "bar = ProgressBar(3)\n"
        "bar.advance()\n"
        "bar.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", kernel], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"train" in done.stderr
    assert b"Warning" not in done.stderr
