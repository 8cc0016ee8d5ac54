"""fp16: losses are scaled, and a step whose scaled gradient overflows is left out."""

import functools
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import TINY, bits

import mlmlab
from mlmlab.data.loader import StepBatch, TrainLoader
from mlmlab.errors import RunFailed
from mlmlab.tracking.summary import Summary
from mlmlab.training import loop
from mlmlab.training.loop import Loop
from mlmlab.training.objective import masked_token_loss
from mlmlab.training.parallel import Replica
from mlmlab.training.schedule import build_schedule, learning_rate_factor
from mlmlab.training.state import LossScale, ProgressRecord, checkpoint_folders
from mlmlab.training.step import StepResult

STEPS = 24
FP16 = (
    *TINY,
    "runtime.precision=fp16",
    f"train.max_steps={STEPS}",
    "train.log_every_steps=1",
    "train.save_every_steps=6",
    "eval.every_steps=12",
)


def _begin_with(monkeypatch: pytest.MonkeyPatch, scale: LossScale) -> None:
    record = functools.partial(ProgressRecord, loss_scale=scale)
    monkeypatch.setattr(loop, "ProgressRecord", record)


def _run(run_dir: Path, *overrides: str) -> Summary:
    return mlmlab.run(mlmlab.compose(*FP16, *overrides, f"run_dir={run_dir}"), quiet=True).summary


def _progress(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "checkpoints" / f"step_{STEPS}" / "progress.json"
    progress: dict[str, Any] = json.loads(path.read_text())["progress"]
    return progress


def _steps(run_dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "train/loss" in line]


GROWING = LossScale(scale=2.0**30, growth_steps=3)
"""It grows into an overflow, again and again."""


def test_the_scale_halves_at_an_overflow_and_doubles_after_so_many_steps_without() -> None:
    scale = LossScale(scale=1024.0, growth_steps=3)
    seen = []
    for overflowed in (False, False, False, False, False, True, False, False, False, True, True):
        scale = scale.after(overflowed=overflowed)
        seen.append(scale.scale)
    assert seen == [1024, 1024, 2048, 2048, 2048, 1024, 1024, 1024, 2048, 1024, 512]


def test_a_run_in_fp16_learns_what_one_in_fp32_learns(tmp_path: Path) -> None:
    half = _run(tmp_path / "fp16")
    single = _run(tmp_path / "fp32", "runtime.precision=fp32")
    assert half.eval_loss == pytest.approx(single.eval_loss, rel=0.01)
    assert half.eval_loss != single.eval_loss  # it did compute in fp16
    events = _steps(tmp_path / "fp16")
    assert [event["train/loss_scale"] for event in events] == [2.0**16] * STEPS
    assert "train/loss_scale" not in _steps(tmp_path / "fp32")[0]


def test_the_scale_cancels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for scale in (2.0**8, 2.0**12):
        _begin_with(monkeypatch, LossScale(scale=scale))
        _run(tmp_path / f"{scale:g}", "train.max_steps=1")
        (event,) = _steps(tmp_path / f"{scale:g}")
        norms.append(event["train/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_an_overflowing_step_changes_nothing_but_the_scale_and_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Loop.attempt
    overflows: list[bool] = []

    def watched(self: Loop, batch: StepBatch) -> StepResult:
        before = [p.detach().clone() for p in self.replica.model.parameters()]
        moments = [s["exp_avg"].clone() for s in self.optimizers[0].state.values()]
        result = attempt(self, batch)
        after = [s["exp_avg"] for s in self.optimizers[0].state.values()]
        is_same = all(map(torch.equal, before, self.replica.model.parameters()))
        assert is_same is result.overflowed
        assert not result.overflowed or all(map(torch.equal, moments, after))
        assert result.overflowed is not bool(result.grad_norm.isfinite())
        overflows.append(result.overflowed)
        return result

    monkeypatch.setattr(Loop, "attempt", watched)
    _begin_with(monkeypatch, LossScale(scale=2.0**40))
    # The scale comes down to the highest that fits: noise could make a later gradient larger.
    summary = _run(tmp_path / "run", "model.dropout=0.0")
    skipped = sum(overflows)
    assert skipped > 5
    assert not any(overflows[-STEPS // 2 :])
    assert summary.steps == STEPS
    progress = _progress(tmp_path / "run")
    assert progress["steps"] == STEPS
    assert progress["skipped_steps"] == skipped
    assert progress["batches"] == STEPS + skipped == len(overflows)
    assert progress["loss_scale"]["scale"] == 2.0 ** (40 - skipped)
    events = _steps(tmp_path / "run")
    assert [event["step"] for event in events] == list(range(1, STEPS + 1))
    assert events[-1]["train/skipped_steps"] == skipped
    config = mlmlab.compose(*FP16).train
    for number, event in enumerate(events):
        factor = learning_rate_factor(number, STEPS, config.warmup_steps, build_schedule(config))
        assert event["train/learning_rate"] == config.learning_rate * factor


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("batches", [3, 9, 17, 28])
def test_a_killed_run_in_fp16_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    _begin_with(monkeypatch, GROWING)
    _run(tmp_path / "whole")
    whole = bits(tmp_path / "whole")
    assert len({event["train/skipped_steps"] for event in _steps(tmp_path / "whole")}) > 2

    advance = Loop.advance

    def killed(self: Loop, batch: StepBatch) -> StepResult | None:
        if self.record.batches == batches:
            raise _Killed
        return advance(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "advance", killed)
        with pytest.raises(_Killed):
            _run(tmp_path / "killed")
    mlmlab.run(mlmlab.compose(f"resume={tmp_path / 'killed'}"), quiet=True)
    assert bits(tmp_path / "killed") == whole


def test_a_request_for_a_checkpoint_outlives_the_batch_that_an_overflow_throws_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _begin_with(monkeypatch, GROWING)
    rare = ("train.save_every_steps=1000", f"eval.every_steps={STEPS}")
    _run(tmp_path / "whole", *rare)
    attempt, batch = Loop.attempt, TrainLoader.batch
    tried = [-1]
    asked_after: list[int] = []

    def asked(self: Loop, one: StepBatch) -> StepResult:
        result = attempt(self, one)
        if result.overflowed and self.record.steps > 5 and not asked_after:
            asked_after.append(self.record.steps)
            signal.raise_signal(signal.SIGUSR1)
        tried.append(one.number)
        return result

    def delayed(self: TrainLoader, number: int, step: int = 0) -> StepBatch:
        while number - 1 > tried[-1]:  # the batch ahead is the one to take the request
            time.sleep(0.0001)
        return batch(self, number, step)

    monkeypatch.setattr(Loop, "attempt", asked)
    monkeypatch.setattr(TrainLoader, "batch", delayed)
    _run(tmp_path / "run", *rare)
    (step,) = asked_after
    saved = [folder.name for folder in checkpoint_folders(tmp_path / "run")]
    assert saved == [f"step_{step + 1}", f"step_{STEPS}"]  # and it is met once
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_a_scale_that_has_fallen_to_one_is_still_a_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = Replica.gradients
    overflows = iter([True])

    def overflowing(self: Replica) -> dict[str, torch.Tensor]:
        found = gradients(self)
        if next(overflows, False):
            next(iter(found.values())).fill_(torch.inf)
        return found

    monkeypatch.setattr(Replica, "gradients", overflowing)
    _begin_with(monkeypatch, LossScale(scale=1.0))
    assert _run(tmp_path / "run").steps == STEPS
    progress = _progress(tmp_path / "run")
    assert progress["skipped_steps"] == 1
    assert progress["loss_scale"]["scale"] == 0.5


def test_a_loss_that_is_not_finite_itself_ends_the_run_in_fp16_too(tmp_path: Path) -> None:
    diverging = ("train.learning_rate=1e30", "train.max_grad_norm=0", "train.warmup_steps=0")
    with pytest.raises(RunFailed, match="not finite"):
        _run(tmp_path / "run", *diverging)
    (folder,) = (tmp_path / "run" / "failures").iterdir()
    progress = json.loads((folder / "progress.json").read_text())["progress"]
    assert progress["skipped_steps"] == 0


def test_a_gradient_that_no_scale_helps_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def root_of_nothing(model: Any, micro: Any) -> torch.Tensor:
        loss = masked_token_loss(model, micro)
        return loss + (loss - loss).sqrt()  # whose derivative there is infinite, times zero

    monkeypatch.setattr("mlmlab.training.objective.masked_token_loss", root_of_nothing)
    with pytest.raises(RunFailed, match="not finite"):
        _run(tmp_path / "run")
    (folder,) = (tmp_path / "run" / "failures").iterdir()
    progress = json.loads((folder / "progress.json").read_text())["progress"]
    assert progress["skipped_steps"] == 41  # from 2^16 to 2^-25
