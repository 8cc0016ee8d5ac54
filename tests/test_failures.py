"""Steps whose gradient is not finite: what is kept of them, and how they are looked at again."""

import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal
from stopping import TINY, Running, listing, start

import mlmlab
from mlmlab.data.blocks import Order
from mlmlab.data.loader import StepBatch
from mlmlab.errors import Code, Interrupted, RunFailed
from mlmlab.runs.replay import Replay
from mlmlab.runs.setup import set_up
from mlmlab.training.loop import Loop
from mlmlab.training.step import StepResult

DIVERGING = (
    *TINY,
    "train.learning_rate=1e30",
    "train.max_grad_norm=0",
    "train.warmup_steps=0",
    "train.schedule=constant",
)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Running]:
    """A run with an absurd learning rate, after its end."""
    run_dir = tmp_path_factory.mktemp("failed") / "run"
    running = start([*DIVERGING, f"run_dir={run_dir}"], run_dir.parent)
    running.status()
    return run_dir, running


def _said(running: Running) -> str:
    return " ".join(running.output.read_text().split())


def _failure(run_dir: Path) -> tuple[Path, dict[str, Any]]:
    (folder,) = (run_dir / "failures").iterdir()
    return folder, json.loads((folder / "batch.json").read_text())


def test_a_failed_run_ends_with_1_and_says_how_to_look_at_it_again(
    failed: tuple[Path, Running],
) -> None:
    run_dir, running = failed
    assert running.status() == 1
    folder, batch = _failure(run_dir)
    step = batch["step"]
    said = _said(running)
    assert f"mlmlab: step {step}: loss {float(batch['loss']):g}, gradient norm " in said
    assert "The weights are as they were before it." in said
    assert f"python -m mlmlab.train resume={run_dir} debug=replay debug.step={step} " in said
    assert str(folder) in said
    assert "Traceback" not in said
    assert not (run_dir / "summary.json").exists()


def test_the_examples_of_a_failed_step_are_those_of_its_batch(
    failed: tuple[Path, Running],
) -> None:
    run_dir, _ = failed
    folder, batch = _failure(run_dir)
    assert folder.name == f"step_{batch['step']}"
    assert batch["step"] == batch["batch"] + 1  # no batch before it was without a prediction
    examples = len(set_up(mlmlab.compose(*DIVERGING)).train)
    epoch, ids = Order(examples, 8, 0).batch(batch["batch"])
    assert batch["example_ids"] == ids.tolist()
    assert batch["epoch"] == epoch == 0
    assert batch["masked_tokens"] > 0
    assert not (math.isfinite(float(batch["loss"])) and math.isfinite(float(batch["grad_norm"])))


def test_the_weights_that_are_kept_are_those_before_the_failed_step(
    failed: tuple[Path, Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _ = failed
    folder, batch = _failure(run_dir)
    steps = batch["step"] - 1
    assert json.loads((folder / "progress.json").read_text())["progress"]["steps"] == steps
    model, _ = mlmlab.load_pretrained(folder)
    kept = dict(model.named_parameters())
    assert all(weight.isfinite().all() for weight in kept.values())

    class Reached(BaseException):
        pass

    def stop(loop: Loop, *arguments: object) -> object:
        if loop.record.steps == steps:
            weights.update(
                {k: p.detach().clone() for k, p in loop.replica.model.named_parameters()}
            )
            raise Reached
        return advance(loop, *arguments)  # type: ignore[arg-type]

    advance = Loop.advance
    weights: dict[str, Any] = {}
    monkeypatch.setattr(Loop, "advance", stop)
    with pytest.raises(Reached):
        mlmlab.run(mlmlab.compose(*DIVERGING, f"run_dir={tmp_path / 'again'}"), quiet=True)
    assert kept.keys() == weights.keys()
    assert all((kept[name] == weights[name]).all() for name in kept)


def test_a_replay_of_the_failed_step_has_the_same_figures_and_writes_nothing(
    failed: tuple[Path, Running],
) -> None:
    run_dir, first = failed
    _, batch = _failure(run_dir)
    before = listing(run_dir)
    arguments = [f"resume={run_dir}", "debug=replay", f"debug.step={batch['step']}"]
    again = start(arguments, run_dir.parent)
    assert again.status() == 1
    figures = re.compile(rf"mlmlab: (step {batch['step']}: loss \S+ gradient norm \S+ not finite)")
    assert figures.findall(_said(again)) == figures.findall(_said(first))
    assert len(figures.findall(_said(again))) == 1
    assert f"failures/step_{batch['step']}" in _said(again)
    assert listing(run_dir) == before


def test_a_failed_run_that_is_resumed_fails_at_the_same_step_again(
    failed: tuple[Path, Running], tmp_path: Path
) -> None:
    run_dir, _ = failed
    folder, batch = _failure(run_dir)
    with pytest.raises(RunFailed, match=f"step {batch['step']}: loss"):
        mlmlab.run(mlmlab.compose(f"resume={run_dir}"), quiet=True)
    assert _failure(run_dir) == (folder, batch)


def test_a_run_that_is_stopped_right_after_a_failed_step_fails_and_keeps_no_checkpoint_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Loop.advance

    def stopped(loop: Loop, batch: StepBatch) -> StepResult | None:
        result = advance(loop, batch)
        if result is not None and result.is_non_finite():
            loop.outputs.interruptions.signal = signal.SIGTERM
        return result

    monkeypatch.setattr(Loop, "advance", stopped)
    with pytest.raises((RunFailed, Interrupted)) as end:  # the latter would end pytest itself
        mlmlab.run(mlmlab.compose(*DIVERGING, f"run_dir={tmp_path / 'run'}"), quiet=True)
    assert isinstance(end.value, RunFailed)
    assert not (tmp_path / "run" / "checkpoints").exists()


# Of a healthy run


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("healthy") / "run"
    arguments = ("train.log_every_steps=1", "train.max_steps=40", "train.keep_checkpoints=9")
    mlmlab.run(mlmlab.compose(*TINY, *arguments, f"run_dir={run_dir}"), quiet=True)
    return run_dir


@pytest.mark.parametrize("step", [2, 16, 23, 31, 40])
def test_a_replay_of_a_healthy_step_has_the_loss_that_the_run_logged(
    healthy: Path, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    before = listing(healthy)
    replayed = mlmlab.run(mlmlab.compose(f"resume={healthy}", "debug=replay", f"debug.step={step}"))
    assert listing(healthy) == before
    lines = map(json.loads, (healthy / "metrics.jsonl").read_text().splitlines())
    (logged,) = (line for line in lines if line["step"] == step and "train/loss" in line)
    assert replayed == Replay(step, logged["train/loss"])
    assert f"norm {logged['train/grad_norm']:g}\n" in capsys.readouterr().out


def test_a_replay_of_a_healthy_step_ends_with_0(healthy: Path) -> None:
    before = listing(healthy)
    running = start([f"resume={healthy}", "debug=replay", "debug.step=20"], healthy.parent)
    assert running.status() == 0, running.output.read_text()
    assert f"replaying step 20 of {healthy}" in _said(running)
    assert "checkpoints/step_15" in _said(running)
    assert listing(healthy) == before


@pytest.mark.parametrize("step", [41, 1000])
def test_a_step_behind_the_runs_end_is_refused(healthy: Path, step: int) -> None:
    before = listing(healthy)
    with refusal("debug.step", Code.INVALID, step, "debug.step=40"):
        mlmlab.run(mlmlab.compose(f"resume={healthy}", "debug=replay", f"debug.step={step}"))
    assert listing(healthy) == before


def test_a_replay_without_a_run_or_a_step_is_refused(healthy: Path) -> None:
    for key, overrides in (
        ("resume", ["debug=replay", "debug.step=3"]),
        ("debug.step", [f"resume={healthy}", "debug=replay"]),
    ):
        with refusal(key, Code.MISSING, f"{key}="):
            mlmlab.compose(*overrides)
