"""A run that was stopped, however that was, resumes and ends with the bits of one that was not."""

import json
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from stopping import TINY, Running, as_killed, bits, start

import mlmlab
from mlmlab.errors import Interrupted
from mlmlab.runtime.signals import Interruptions

LONGER = (*TINY, "train.max_steps=120", "eval.mask_draws=12")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    running = start([*LONGER, "run_dir=whole"], folder)
    assert running.status() == 0, running.output.read_text()
    return folder / "whole"


# Killed, at moments of every kind


class Moments:
    """What can be seen of a run from outside, and when to kill it."""

    def __init__(self, run_dir: Path, chance: random.Random) -> None:
        self.run_dir = run_dir
        self.chance = chance
        self.metrics = run_dir / "metrics.jsonl"
        self.logs_before = self._logs()
        self.checkpoints_before = self.checkpoints()

    def anywhere(self, running: Running) -> None:
        self._let_pass(2.0)

    def step(self, running: Running) -> None:
        running.wait_for(self.is_training)
        self._let_pass(0.6)

    def evaluation(self, running: Running) -> None:
        running.wait_for(self.is_evaluating)
        self._let_pass(0.05)

    def checkpoint(self, running: Running) -> None:
        running.wait_for(self.is_saving)
        self._let_pass(0.003)

    def after_checkpoint(self, running: Running) -> None:
        running.wait_for(lambda: any("." not in name for name, _ in self._new_checkpoints()))
        self._let_pass(0.02)

    def is_training(self) -> bool:
        """Whether this process has opened its logs, which it does before its first step."""
        return bool(self._logs() - self.logs_before)

    def _logs(self) -> set[str]:
        """TensorBoard's event files, of which each process begins one."""
        return {path.name for path in self.run_dir.glob("tensorboard/events.out.tfevents.*")}

    def is_evaluating(self) -> bool:
        """Whether the last line is that of a step after which the run is evaluated."""
        is_open = self.is_training() and self.metrics.exists()  # the event file may come first
        text = self.metrics.read_text() if is_open else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be half written
        last = json.loads(lines[-1]) if lines else {"masked_examples": "soon"}
        if "masked_examples" in last:
            return self.is_training()
        return "train/loss" in last and last["step"] % 21 == 0

    def is_saving(self) -> bool:
        return any(name.endswith(".building") for name, _ in self._new_checkpoints())

    def checkpoints(self) -> set[tuple[str, int]]:
        folder = self.run_dir / "checkpoints"
        paths = list(folder.iterdir()) if folder.exists() else []
        return {(path.name, number) for path in paths if (number := self._identity(path))}

    def seen(self) -> str:
        """What the run was doing at last."""
        if not self.is_training():
            return "start"
        if self.is_saving():
            return "checkpoint"
        return "evaluation" if self.is_evaluating() else "step"

    def _new_checkpoints(self) -> set[tuple[str, int]]:
        return self.checkpoints() - self.checkpoints_before

    @staticmethod
    def _identity(path: Path) -> int | None:
        try:
            return path.stat().st_ino
        except FileNotFoundError:
            return None

    def _let_pass(self, most_seconds: float) -> None:
        time.sleep(self.chance.uniform(0.0, most_seconds))


AIMS = (
    Moments.checkpoint,
    Moments.step,
    Moments.after_checkpoint,
    Moments.evaluation,
    Moments.anywhere,
)


def _campaign(folder: Path, kills: int, seed: int) -> tuple[list[Path], Counter[str]]:
    """Runs that are killed and resumed until all kills are used and the last run has ended.

    Returns:
        The finished runs; and how often a run was doing what when it was killed.
    """
    chance = random.Random(seed)
    finished: list[Path] = []
    hits: Counter[str] = Counter()
    while True:
        run_dir = folder / f"run-{len(finished)}"
        is_begun = (run_dir / "config.yaml").exists()
        moments = Moments(run_dir, chance)
        running = start(
            [f"resume={run_dir}"] if is_begun else [*LONGER, f"run_dir={run_dir}"], folder
        )
        if hits.total() < kills:
            AIMS[hits.total() % len(AIMS)](moments, running)
            running.kill()
        if running.status() == -9:
            hits[moments.seen()] += 1
            continue
        assert running.status() == 0, running.output.read_text()
        finished.append(run_dir)
        if hits.total() == kills:
            return finished, hits


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_with_the_bits_of_one_that_was_not(
    whole: Path, tmp_path: Path, kills: int
) -> None:
    finished, hits = _campaign(tmp_path, kills, seed=kills)
    for run_dir in finished:
        assert bits(run_dir) == bits(whole)
        left = {path.name for path in (run_dir / "checkpoints").iterdir()}
        assert {"step_105", "step_120"} <= left
        assert not [name for name in left if "." in name]
    assert min(hits[name] for name in ("checkpoint", "step", "evaluation")) >= kills // 10, hits


# Stopped by signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_run_at_a_checkpoint_of_the_current_step(
    whole: Path, tmp_path: Path, number: int, status: int
) -> None:
    run_dir, config = tmp_path / "run", tmp_path / "run" / "config.yaml"
    running = start([*LONGER, f"run_dir={run_dir}"], tmp_path)
    assert running.wait_for(lambda: len(_lines(run_dir)) > 2)
    running.signal(number)
    assert running.status() == status
    said = _said(running)
    (stopped,) = re.findall(rf"stopped by {signal.Signals(number).name} after step (\d+)\.", said)
    assert f"python -m mlmlab.train resume={run_dir}" in said
    assert (run_dir / "checkpoints" / f"step_{stopped}").is_dir()
    assert not (run_dir / "summary.json").exists()
    was = config.read_bytes(), config.stat().st_mtime_ns
    again = start([f"resume={run_dir}"], tmp_path)
    assert again.status() == 0
    assert f"from step {stopped} (" in _said(again)
    assert bits(run_dir) == bits(whole)
    assert (config.read_bytes(), config.stat().st_mtime_ns) == was


def test_a_signal_during_an_evaluation_stops_it_and_it_is_made_up_for(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    moments = Moments(run_dir, random.Random(0))
    running = start([*LONGER, f"run_dir={run_dir}"], tmp_path)
    assert running.wait_for(lambda: len(_lines(run_dir)) > 3 and moments.is_evaluating())
    running.signal(signal.SIGTERM)
    assert running.status() == 143
    (progress,) = run_dir.glob("checkpoints/step_21/progress.json")
    assert json.loads(progress.read_text())["progress"]["evaluation_due"] is True
    assert start([f"resume={run_dir}"], tmp_path).status() == 0
    assert bits(run_dir) == bits(whole)


def test_a_signal_during_the_evaluation_of_a_finished_run_stops_it_like_any_other(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[105, 120])
    config = mlmlab.compose(f"resume={run_dir}")
    with monkeypatch.context() as patched:
        patched.setattr(Interruptions, "is_stop_asked", True)
        with pytest.raises(Interrupted, match="after step 120"):
            mlmlab.run(config, quiet=True)
    mlmlab.run(config, quiet=True)
    assert bits(run_dir) == bits(whole)


def test_sigusr1_makes_a_checkpoint_and_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    running = start([*LONGER, "train.save_every_steps=1000", f"run_dir={run_dir}"], tmp_path)
    assert running.wait_for(lambda: len(_lines(run_dir)) > 2)
    running.signal(signal.SIGUSR1)
    assert running.status() == 0, _said(running)
    assert len(list((run_dir / "checkpoints").iterdir())) == 2  # that one, and the last
    assert bits(run_dir) == bits(whole)


def test_a_second_sigint_stops_at_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    long_steps = ("data.limit=1200", "train.batch_size=750", "train.micro_batch_size=1")
    arguments = [*TINY, *long_steps, "train.log_every_steps=1", f"run_dir={run_dir}"]
    running = start(arguments, tmp_path)
    assert running.wait_for(lambda: len(_lines(run_dir)) == 2)
    time.sleep(0.2)  # it is at work on its second step, which takes a second or more
    running.signal(signal.SIGINT)
    time.sleep(0.2)
    assert running.is_alive
    running.signal(signal.SIGINT)
    assert running.status() == 130
    assert _said(running).endswith("mlmlab: interrupted")
    assert len(_lines(run_dir)) == 2
    assert not (run_dir / "checkpoints").exists()


def _lines(run_dir: Path) -> list[str]:
    """Those of metrics.jsonl that have figures."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if '"epoch"' in line]


def _said(running: Running) -> str:
    return " ".join(running.output.read_text().split())
