"""`python -m mlmlab.evaluate` with several processes: the figures of one, told once."""

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from ranks import PATIENCE_SECONDS, START_SECONDS, child_environment, forked
from stopping import TINY

import mlmlab
from mlmlab import evaluate
from mlmlab.evaluation.documents import DOCUMENTS

MODULE = "mlmlab.evaluate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run in it, of a single process."""
    folder = tmp_path_factory.mktemp("folder")
    keys = (*TINY, "train.max_steps=20", "eval.mask_draws=3")
    mlmlab.run(mlmlab.compose(*keys, f"run_dir={folder}/run"), quiet=True)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> str:
    """What one process prints."""
    printed, arguments = io.StringIO(), ["evaluate", "checkpoint=run", "out=alone"]
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(printed),
        mock.patch.object(sys, "argv", arguments),
    ):
        evaluate.main()
    return printed.getvalue()


def _assert_same(printed: str, alone: str) -> None:
    assert json.loads(printed.splitlines()[-1]) == json.loads(alone.splitlines()[-1])
    assert printed.count(", 2 processes") == 1
    assert printed.replace(", 2 processes", "") == alone


def test_two_processes_of_torchruns_find_the_figures_of_one_and_tell_them_once(
    folder: Path, alone: str
) -> None:
    with forked(folder, "checkpoint=run", module=MODULE) as run:
        ended = run.end()
    assert ended.statuses == [0, 0], ended.stderr
    _assert_same(ended.stdout, alone)


def test_two_processes_of_its_own_find_the_figures_of_one_and_tell_them_once(
    folder: Path, alone: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "checkpoint=run", "runtime.processes=2", "out=two"],
        cwd=folder, env=child_environment(), capture_output=True, text=True, timeout=START_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _assert_same(done.stdout, alone)
    kept = [(folder / out / DOCUMENTS).read_bytes() for out in ("two", "alone")]
    assert kept[0] == kept[1]


def test_a_mistake_is_named_and_ends_all_processes(tmp_path: Path) -> None:
    with forked(tmp_path, "checkpoint=missing", "data.path=none.txt", module=MODULE) as run:
        ended = run.end()
    assert ended.statuses == [2, 2]
    assert ended.stdout == ""
    assert ended.message().startswith("checkpoint found missing: no such folder")
    assert "none.txt" in ended.message()


def test_the_others_end_and_say_what_to_do_when_one_is_killed(folder: Path) -> None:
    with forked(folder, "checkpoint=run", "eval.mask_draws=3000", module=MODULE) as run:
        run.wait_until(lambda: "compute " in run.out.read_text())
        run.send(signal.SIGKILL, 1)
        ended = run.end(PATIENCE_SECONDS)
    assert ended.statuses == [1, -signal.SIGKILL]
    assert ended.message().startswith("another process of the run has ended")
    assert "the same command evaluates again" in ended.message()
    assert "resume" not in ended.message()
    assert not ended.stdout.splitlines()[-1].startswith("{")
