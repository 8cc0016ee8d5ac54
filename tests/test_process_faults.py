"""A run of several processes is stopped or loses one of them, and resumes with the same bits."""

import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from ranks import (
    PATIENCE_SECONDS,
    Ended,
    forked,
    forked_to_the_end,
    in_ranks,
    pause,
    torchrun,
)
from stopping import SMALLEST, events, results

import mlmlab
from mlmlab.errors import Code, FailedElsewhere, RunFailed, UserError
from mlmlab.runtime.distributed import process_group
from mlmlab.training.state import checkpoint_folders, newest_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

NOISY = (
    *SMALLEST,
    "run_dir=run",
    "model.dropout=0.1",
    "train.micro_batch_size=3",  # a second micro-batch of one row
    "train.max_steps=120",
    "train.log_every_steps=3",
    "train.keep_checkpoints=20",
    "eval.every_steps=25",
    "eval.mask_draws=3",
)
TORCHRUN_SECONDS = 30
"""From torchrun's SIGTERM until its SIGKILL."""
EVENTS = 1 + 40 + 5
"""Of the run: the first evaluation, log lines, and the other evaluations."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    return forked_to_the_end(tmp_path_factory.mktemp("whole"), *NOISY).folder / "run"


def _newest_step(run: Path, tell: list[str]) -> int:
    """Of the newest whole checkpoint; the reasons why others are not whole go to `tell`."""
    fingerprint = ""
    for folder in checkpoint_folders(run):
        fingerprint = json.loads((folder / "progress.json").read_text())["fingerprint"]
    found = newest_state(run, fingerprint, tell.append)
    return 0 if found is None else found[1].steps


def _assert_whole_and_continued(run: Path, whole: Path) -> None:
    damage: list[str] = []
    step = _newest_step(run, damage)
    assert damage == []
    ended = forked_to_the_end(run.parent, "resume=run")
    assert ended.stderr == ""
    assert json.loads((run / "resumes.jsonl").read_text())["step"] == step
    assert results(run) == results(whole)


# A process is lost

LOST = "another process of the run has ended"


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_end_when_one_is_killed_during_steps(
    tmp_path: Path, whole: Path, rank: int
) -> None:
    with forked(tmp_path, *NOISY) as run:  # nobody but themselves ends them
        run.wait_for_metrics(25)
        run.send(signal.SIGKILL, rank)
        ended = run.end(PATIENCE_SECONDS)
    assert ended.statuses[rank] == -signal.SIGKILL
    assert ended.statuses[1 - rank] == 1
    assert ended.message().startswith(LOST)
    assert len(checkpoint_folders(tmp_path / "run")) >= 2
    _assert_whole_and_continued(tmp_path / "run", whole)


def test_the_others_say_why_although_torchrun_tells_them_to_end(tmp_path: Path) -> None:
    with forked(tmp_path, *NOISY) as run:
        run.wait_for_metrics(12)
        run.send(signal.SIGKILL, 0)
        survivor = run.pids()[1]
        deadline = time.monotonic() + TORCHRUN_SECONDS
        while Path(f"/proc/{survivor}").exists() and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(survivor, signal.SIGTERM)  # as torchrun does, but at every moment
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(survivor, signal.SIGKILL)
        ended = run.end(PATIENCE_SECONDS)
    # PyTorch's DDP, once in some hundred times, waits for itself when it is taken down.
    assert ended.statuses[0] == -signal.SIGKILL
    assert ended.statuses[1] in (1, -signal.SIGKILL)
    assert ended.message().startswith(LOST)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_end_when_one_is_killed_during_an_evaluation(tmp_path: Path, rank: int) -> None:
    long = ("eval.mask_draws=400", "train.log_every_steps=25")
    with forked(tmp_path, *NOISY, *long) as run:
        run.wait_until(lambda: "folder " in run.out.read_text())  # the first evaluation comes next
        pause(random.Random(rank), 1.0)
        run.send(signal.SIGKILL, rank)
        ended = run.end(PATIENCE_SECONDS)
    assert ended.statuses[1 - rank] == 1
    assert ended.message().startswith(LOST)
    assert not any("epoch" in event for event in events(tmp_path / "run"))  # it was not over
    assert checkpoint_folders(tmp_path / "run") == []


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_end_when_one_is_killed_while_the_first_tokenizes(
    tmp_path: Path, rank: int
) -> None:
    cache = tmp_path / "cache"
    with forked(
        tmp_path / "run", *NOISY, "data.limit=60000", environment={"MLMLAB_CACHE": str(cache)}
    ) as run:
        run.wait_until(lambda: any(file.is_file() for file in cache.rglob("*")))
        run.send(signal.SIGKILL, rank)
        ended = run.end(PATIENCE_SECONDS)
    assert ended.statuses[rank] == -signal.SIGKILL
    assert ended.statuses[1 - rank] == 1
    assert ended.message().startswith(LOST)
    assert not (tmp_path / "run" / "run").exists()


def _assert_survives_a_kill(folder: Path, whole: Path, seed: int) -> bool:
    """Kills a random process at a random moment, and looks at what is left.

    Returns:
        Whether the run was not over before.
    """
    rng = random.Random(seed)
    rank, events = rng.randrange(2), rng.randrange(EVENTS)
    with torchrun(folder, *NOISY) as run:
        run.pids()
        run.wait_for_metrics(events)
        pause(rng, 0.03 if events else 6.0)
        run.send(signal.SIGKILL, rank)
        ended = run.end(PATIENCE_SECONDS)
    assert ended.seconds < PATIENCE_SECONDS
    if ended.statuses == [0]:
        assert results(folder / "run") == results(whole)
        return False
    assert "exitcode  : -9" in ended.stderr  # torchrun's report
    if events:  # before that, a process may not have met the others yet
        assert ended.message().startswith(LOST)
    if (folder / "run" / "summary.json").exists():  # rank 0 had finished: nothing is left to do
        assert results(folder / "run") == results(whole)
    elif (folder / "run" / "config.yaml").exists():
        _assert_whole_and_continued(folder / "run", whole)
    return True


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_loses_a_random_process_goes_on_with_the_same_bits(
    tmp_path: Path, whole: Path, seed: int
) -> None:
    assert _assert_survives_a_kill(tmp_path, whole, seed)


@pytest.mark.slow
def test_ten_runs_that_lose_a_random_process_go_on_with_the_same_bits(
    tmp_path: Path, whole: Path
) -> None:
    killed = [_assert_survives_a_kill(tmp_path / str(seed), whole, seed) for seed in range(10, 20)]
    assert sum(killed) >= 8


# A process fails

REASON = "the reason"


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_does_not_end_a_process_before_it_has_said_why_it_failed(
    tmp_path: Path, rank: int
) -> None:
    in_ranks(2, _fail, rank, tmp_path / "said")
    assert (tmp_path / "said").read_text() == REASON


def _fail(failing: int, said: Path) -> None:
    """Ends with status 0 if what happens is what should."""
    failing_pid = None
    try:
        with process_group(use_cuda=False) as ranks:
            failing_pid = ranks.gather(os.getpid())[failing]
            if failing == 0:
                ranks.on_rank_zero(_raise_reason)
            elif ranks.rank == failing:
                _raise_reason()
            ranks.gather(0)
    except (FailedElsewhere, RunFailed):
        assert failing_pid is not None
        os.kill(failing_pid, signal.SIGTERM)  # as torchrun does when this process ends
    except UserError as error:
        time.sleep(0.5)
        said.write_text(error.problems[0].found)


def _raise_reason() -> None:
    raise UserError.of("here", code=Code.INVALID, found=REASON, expected="", remedy="")


# A signal asks for something


def test_one_process_is_asked_for_a_checkpoint_and_then_to_stop_and_all_do(
    tmp_path: Path, whole: Path
) -> None:
    with forked(tmp_path, *NOISY) as run:
        run.wait_for_metrics(4)
        run.send(signal.SIGUSR1, 1)
        run.wait_for_metrics(18)
        run.send(signal.SIGTERM, 1)
        ended = run.end(PATIENCE_SECONDS)
    assert ended.statuses == [143, 143]
    _assert_stopped(ended, whole, 3)


def test_torchrun_is_asked_to_stop_and_the_run_writes_one_checkpoint(
    tmp_path: Path, whole: Path
) -> None:
    with torchrun(tmp_path, *NOISY) as run:
        run.wait_for_metrics(12)
        run.send_to_torchrun(signal.SIGTERM)
        ended = run.end(PATIENCE_SECONDS)
    assert ended.statuses != [0]
    _assert_stopped(ended, whole, 2)


def _assert_stopped(ended: Ended, whole: Path, checkpoints: int) -> None:
    run = ended.folder / "run"
    found = re.match(r"stopped by SIGTERM after step (\d+)\. .* resume=run ", ended.message())
    assert found is not None
    steps = [int(folder.name.removeprefix("step_")) for folder in checkpoint_folders(run)]
    assert steps[-1] == int(found[1]) < 120
    assert len(steps) == checkpoints, steps
    _assert_whole_and_continued(run, whole)


# Another number of processes than before


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, before: int, after: int
) -> None:
    quiet = (*NOISY, "model.dropout=0.0")
    with contextlib.chdir(tmp_path):
        mlmlab.run(mlmlab.compose(*quiet, "run_dir=reference"), quiet=True)
    with forked(tmp_path, *quiet, processes=before) as run:
        run.wait_for_metrics(18)
        run.send(signal.SIGTERM, 0)
        ended = run.end(PATIENCE_SECONDS)
    assert ended.statuses == [143] * before
    forked_to_the_end(tmp_path, "resume=run", processes=after)
    found, expected = (
        [event for event in events(tmp_path / name) if "epoch" in event]  # no texts
        for name in ("run", "reference")
    )
    assert len(found) == len(expected) == EVENTS + 1  # the final figures
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
