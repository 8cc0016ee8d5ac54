"""Checkpoints that are damaged, cannot be written, or are the best."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from refusals import refusal
from stopping import GETTING_WORSE, PATIENT, TINY, Running, as_killed, bits, results, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

import mlmlab
from mlmlab.errors import Code, Interrupted, RunFailed
from mlmlab.evaluation.masked_perplexity import Evaluation
from mlmlab.runtime.signals import Interruptions
from mlmlab.tracking.sinks import find_sinks
from mlmlab.tracking.summary import Summary
from mlmlab.tracking.tracker import Tracker
from mlmlab.training.loop import Loop
from mlmlab.training.state import checkpoint_folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped, with checkpoints of steps 45 and 60."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    mlmlab.run(mlmlab.compose(*TINY, f"run_dir={run_dir}"), quiet=True)
    return run_dir


def _resume(run_dir: Path, *overrides: str) -> Summary:
    return mlmlab.run(mlmlab.compose(f"resume={run_dir}", *overrides)).summary


# Damaged


def _shortened(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _with_another_bit(name: str) -> Callable[[Path], object]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) * 2 // 3] ^= 4
        (folder / name).write_bytes(content)

    return flip


def _holding(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


DAMAGES = {
    "truncated weights": (_shortened("model.safetensors"), "model.safetensors is not as it"),
    "truncated record": (_shortened("progress.json"), "progress.json is not as it"),
    "a bit of the weights": (_with_another_bit("model.safetensors"), "model.safetensors is not"),
    "a bit of the moments": (_with_another_bit("optimizer.safetensors"), "optimizer.safetensors"),
    "a bit of the record": (_with_another_bit("progress.json"), "progress.json is not as it was"),
    "empty moments": (_holding("optimizer.safetensors", b""), "optimizer.safetensors is not as it"),
    "empty record": (_holding("progress.json", b""), "progress.json is not as it was"),
    "no weights": (_without("model.safetensors"), "model.safetensors is missing"),
    "no digests": (_without("digests.json"), "digests.json is missing"),
    "empty digests": (_holding("digests.json", b""), "digests.json cannot be read"),
    "a list of digests": (_holding("digests.json", b"[]"), "digests.json cannot be read"),
    "digests of nothing": (_holding("digests.json", b"{}"), "digests.json cannot be read"),
    "digests of noise": (_holding("digests.json", b"\xff\xfe\x00"), "digests.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_leads_to_the_same_bits(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45, 60])
    do, reason = DAMAGES[damage]
    do(run_dir / "checkpoints" / "step_60")
    _resume(run_dir)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{run_dir}/checkpoints/step_60 is skipped: {reason}" in said
    assert f"from step 45 ({run_dir}/checkpoints/step_45)" in said
    assert bits(run_dir) == bits(whole)


def test_a_run_whose_checkpoints_are_all_damaged_starts_anew_and_says_so(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45, 60])
    _without("digests.json")(run_dir / "checkpoints" / "step_45")
    _with_another_bit("model.safetensors")(run_dir / "checkpoints" / "step_60")
    _resume(run_dir)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is skipped") == 2
    assert "no complete checkpoint yet: the run starts again" in said
    assert bits(run_dir) == bits(whole)


def test_a_checkpoint_of_another_version_is_refused(whole: Path, tmp_path: Path) -> None:
    """Of one that counted "updates", say: starting at step 0 would be worse than not starting."""
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45, 60])
    folder = run_dir / "checkpoints" / "step_60"
    record = (folder / "progress.json").read_bytes().replace(b'"steps":', b'"updates":')
    digests = json.loads((folder / "digests.json").read_text())
    digests["progress.json"] = hashlib.sha256(record).hexdigest()
    (folder / "progress.json").write_bytes(record)
    (folder / "digests.json").write_text(json.dumps(digests))
    with refusal("resume", Code.OTHER_VERSION, "steps, updates", f"checkpoint={folder}"):
        _resume(run_dir)


def test_damaged_checkpoints_do_not_push_out_the_new_ones_of_fewer_steps(
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45, 60])
    for step in (45, 60):
        _without("digests.json")(run_dir / "checkpoints" / f"step_{step}")
    with monkeypatch.context() as patched:
        _kill_after_step(patched, 33)
        with pytest.raises(_Killed):
            _resume(run_dir)
    capsys.readouterr()
    _resume(run_dir)
    assert "from step 30" in capsys.readouterr().out
    assert bits(run_dir) == bits(whole)
    assert [folder.name for folder in checkpoint_folders(run_dir)] == ["step_45", "step_60"]


class _Killed(BaseException):
    pass


def _kill_after_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    advance = Loop.advance

    def kill(loop: Loop, *arguments: object) -> object:
        if loop.record.steps == step:
            raise _Killed
        return advance(loop, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Loop, "advance", kill)


def test_a_checkpoint_of_a_run_with_another_config_is_passed_over(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    mlmlab.run(mlmlab.compose(*TINY, "seed=1", f"run_dir={other}"), quiet=True)
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])
    shutil.copytree(other / "checkpoints" / "step_60", run_dir / "checkpoints" / "step_60")
    _resume(run_dir)
    said = capsys.readouterr().out
    assert "step_60 is skipped: it belongs to a run with another config" in said
    assert bits(run_dir) == bits(whole)


@pytest.mark.parametrize("is_new_one_there", [False, True])
def test_a_checkpoint_that_was_about_to_be_replaced_counts_until_the_new_one_is_there(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_new_one_there: bool
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45, 60])
    new = run_dir / "checkpoints" / "step_60"
    shutil.copytree(new, new.with_name("step_60.replaced"))
    if not is_new_one_there:
        shutil.rmtree(new)
    _resume(run_dir)
    name = "step_60" if is_new_one_there else "step_60.replaced"
    said = "".join(capsys.readouterr().out.split())
    assert f"fromstep60({run_dir}/checkpoints/{name})" in said
    assert results(run_dir) == results(whole)


def test_a_run_that_shall_keep_no_checkpoints_writes_none_and_says_so_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*TINY, "train.keep_checkpoints=0", "train.max_steps=20")
    mlmlab.run(mlmlab.compose(*keys, f"run_dir={tmp_path}/run"), quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()
    monkeypatch.setattr(Interruptions, "is_stop_asked", True)
    with pytest.raises(Interrupted, match="keep_checkpoints=0: no checkpoint was written"):
        mlmlab.run(mlmlab.compose(*keys, f"run_dir={tmp_path}/stopped"), quiet=True)
    assert not (tmp_path / "stopped" / "checkpoints").exists()


ALWAYS = "train.save_every_minutes=1e-9"
"""Shorter than a step: a checkpoint after every one."""


def test_checkpoints_at_intervals_of_time_change_no_bits(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    keys = (*TINY, ALWAYS, "train.keep_checkpoints=100")
    mlmlab.run(mlmlab.compose(*keys, f"run_dir={run_dir}"), quiet=True)
    assert len(checkpoint_folders(run_dir)) == 60
    assert bits(run_dir) == bits(whole)
    run_dir = as_killed(run_dir, tmp_path / "killed", checkpoints=[33])
    _resume(run_dir)
    assert bits(run_dir) == bits(whole)


def test_no_checkpoint_is_due_before_its_interval_nor_where_none_is_kept(tmp_path: Path) -> None:
    for name, keys, steps in (
        ("later", ("train.save_every_minutes=1e9",), [10]),
        ("never", ("train.save_every_minutes=null",), [10]),
        ("none kept", (ALWAYS, "train.keep_checkpoints=0"), []),
    ):
        run_dir = tmp_path / name
        config = mlmlab.compose(*TINY, "train.max_steps=10", *keys, f"run_dir='{run_dir}'")
        mlmlab.run(config, quiet=True)
        assert [folder.name for folder in checkpoint_folders(run_dir)] == [
            f"step_{step}" for step in steps
        ], name


# On a disk that is full


def _is_full(run_dir: Path, running: Running, whole: Path) -> None:
    """The claims about a run that had no room for a checkpoint after step 15."""
    assert running.status() == 0, running.output.read_text()
    said = " ".join(running.output.read_text().split())
    failed = re.findall(r"checkpoint of step (\d+) NOT written: (.*?); those before it are", said)
    assert [int(step) for step, _ in failed][-2:] == [45, 60]
    assert "Traceback" not in said
    kept = [folder.name for folder in checkpoint_folders(run_dir)]
    saves = (15, 21, 30, 42, 45, 60)  # every 15 steps, and the evaluations after 21 and 42
    assert kept == [f"step_{saves[saves.index(int(failed[0][0])) - 1]}"]
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == kept
    assert results(run_dir) == results(whole)


def test_without_room_for_a_checkpoint_the_run_says_so_and_goes_on_to_its_end(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    running = start([*TINY, f"run_dir={run_dir}"], tmp_path)
    assert running.wait_for((run_dir / "checkpoints" / "step_15").exists)
    assert running.process.pid is not None
    moments = run_dir / "checkpoints" / "step_15" / "optimizer.safetensors"
    most = moments.stat().st_size - 1  # the system refuses to write one byte more
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (most, most))
    _is_full(run_dir, running, whole)
    assert "File too large" in running.output.read_text()
    (run_dir / "summary.json").unlink()
    _resume(run_dir)
    assert bits(run_dir) == bits(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of 2 MB cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_full_disk_the_run_says_so_and_goes_on_to_its_end(
    whole: Path, tmp_path: Path, small_disk: Path
) -> None:
    run_dir = small_disk / "run"
    running = start([*TINY, f"run_dir={run_dir}"], tmp_path)
    assert running.wait_for((run_dir / "checkpoints" / "step_15").exists)
    room = shutil.disk_usage(small_disk).free
    (small_disk / "others").write_bytes(bytes(room - 220_000))  # for an export, not for a state
    _is_full(run_dir, running, whole)
    assert "No space left on device" in " ".join(running.output.read_text().split())


# The best one, and the end for want of better ones

LOSSES: dict[int, float | None] = {0: 5.0, 10: 4.0, 20: 3.0, 30: 3.5, 40: 3.0, 50: 2.5, 60: 2.0}


@pytest.fixture
def known_losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float | None]:
    """Evaluations with the results above, which a test may change; None: nothing was predicted."""
    score, losses = Loop._score, dict(LOSSES)

    def known(loop: Loop) -> Evaluation:
        step = loop.record.steps if loop.exported_step is None else loop.exported_step
        result, loss = score(loop), losses[step]
        count = 0 if loss is None else result.masked_count
        return dataclasses.replace(result, masked_count=count, loss_sum=(loss or 0.0) * count)

    monkeypatch.setattr(Loop, "_score", known)
    return losses


@pytest.mark.usefixtures("known_losses")
def test_the_best_evaluations_weights_are_kept_whatever_the_interval_of_checkpoints(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    rare = ("train.early_stopping_patience=null", "train.save_every_steps=25", "train.max_steps=40")
    mlmlab.run(mlmlab.compose(*PATIENT, *rare, f"run_dir={run_dir}"), quiet=True)
    assert [folder.name for folder in checkpoint_folders(run_dir)] == ["step_20", "step_40"]


def test_what_a_kill_left_of_a_checkpoint_goes_with_the_next_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    left_behind = run_dir / "checkpoints" / ".step_7.building"
    mlmlab.run(mlmlab.compose(*TINY, f"run_dir={run_dir}", "train.max_steps=15"), quiet=True)
    left_behind.mkdir()
    _resume(run_dir, "train.max_steps=20")
    assert not left_behind.exists()


def test_a_figure_that_cannot_be_written_ends_the_run_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mlmlab.tracking.tensorboard.SummaryWriter.add_scalar", full)
    with pytest.raises(RunFailed, match=r"step 0: .*run \(tensorboard\): No space left on device"):
        mlmlab.run(mlmlab.compose(*TINY, f"run_dir={tmp_path / 'run'}"), quiet=True)


@pytest.mark.usefixtures("known_losses")
def test_a_run_ends_after_evaluations_that_are_no_better_and_its_best_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    summary = mlmlab.run(mlmlab.compose(*PATIENT, f"run_dir={run_dir}"), quiet=True).summary
    assert summary.steps == 40  # an equal one is no better
    assert summary.exported_step == 20
    assert summary.best_eval_perplexity == pytest.approx(np.exp(3.0))
    assert summary.eval_loss == pytest.approx(3.0)
    kept = [folder.name for folder in checkpoint_folders(run_dir)]
    assert kept == ["step_20", "step_40"]  # the best, and the newest

    killed = tmp_path / "killed"
    with monkeypatch.context() as patched:
        _kill_after_step(patched, 33)
        with pytest.raises(_Killed):
            mlmlab.run(mlmlab.compose(*PATIENT, f"run_dir={killed}"), quiet=True)
    assert [folder.name for folder in checkpoint_folders(killed)] == ["step_20", "step_30"]
    _resume(killed)
    assert "from step 30" in capsys.readouterr().out
    assert bits(killed) == bits(run_dir)
    assert [folder.name for folder in checkpoint_folders(killed)] == kept
    _resume(killed)  # it is over, and stays so
    assert bits(killed) == bits(run_dir)
    assert _resume(killed, "train.early_stopping_patience=3").steps == 60


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def _logged_loss(run_dir: Path, step: int) -> float:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    (loss,) = (e["eval/loss"] for e in lines if e["step"] == step and "eval/loss" in e)
    return float(loss)


@pytest.fixture(scope="module")
def got_worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("worse") / "run"
    mlmlab.run(mlmlab.compose(*GETTING_WORSE, f"run_dir={run_dir}"), quiet=True)
    return run_dir


def _exports_its_best(run_dir: Path, got_worse: Path) -> None:
    """Weights and figures are those of the best step, to the bit."""
    summary = json.loads((run_dir / "summary.json").read_text())
    step = summary["exported_step"]
    assert step < summary["steps"] < 60
    assert _weights(run_dir / "export") == _weights(got_worse / "checkpoints" / f"step_{step}")
    assert summary["eval_loss"] == _logged_loss(run_dir, step)
    assert summary["eval_loss"] < _logged_loss(run_dir, summary["steps"])
    assert summary["best_eval_perplexity"] == summary["eval_perplexity"]
    report = mlmlab.evaluate_checkpoint(
        mlmlab.compose_evaluation(f"checkpoint={run_dir}"), quiet=True
    )
    evaluation = report.evaluation
    assert evaluation.loss_standard_error == summary["eval_loss_standard_error"]
    assert evaluation.top1_accuracy == summary["eval_top1_accuracy"]
    assert evaluation.top5_accuracy == summary["eval_top5_accuracy"]


def test_a_run_that_stops_early_exports_and_reports_its_best_weights(got_worse: Path) -> None:
    _exports_its_best(got_worse, got_worse)


def test_a_run_that_is_resumed_after_its_end_or_before_it_exports_its_best_weights(
    got_worse: Path, tmp_path: Path
) -> None:
    best = json.loads((got_worse / "summary.json").read_text())["exported_step"]
    newest = json.loads((got_worse / "summary.json").read_text())["steps"]
    for name, checkpoints in (("after", [best, newest]), ("before", [best])):
        run_dir = as_killed(got_worse, tmp_path / name, checkpoints=checkpoints)
        _resume(run_dir)
        _exports_its_best(run_dir, got_worse)
        assert bits(run_dir) == bits(got_worse)


def test_a_run_may_export_its_last_weights_although_others_were_better(
    got_worse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(got_worse, run_dir)
    summary = _resume(run_dir, "train.export=last")
    assert summary.exported_step == summary.steps
    newest = got_worse / "checkpoints" / f"step_{summary.steps}"
    assert _weights(run_dir / "export") == _weights(newest)
    assert summary.eval_loss == _logged_loss(run_dir, summary.steps)
    rows = capsys.readouterr().out.splitlines()
    assert not any(row.startswith("exported") for row in rows)
    assert any(row.startswith("best ") for row in rows)


@pytest.mark.usefixtures("known_losses")
def test_a_run_may_export_its_best_weights_without_stopping_early(
    tmp_path: Path, known_losses: dict[int, float | None], capsys: pytest.CaptureFixture[str]
) -> None:
    known_losses |= {50: 3.5, 60: 4.0}
    run_dir = tmp_path / "run"
    endless = ("train.early_stopping_patience=null", "train.export=best")
    summary = mlmlab.run(mlmlab.compose(*PATIENT, *endless, f"run_dir={run_dir}")).summary
    assert (summary.steps, summary.exported_step) == (60, 20)
    assert _weights(run_dir / "export") == _weights(run_dir / "checkpoints" / "step_20")
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith("exported") and "20" in row for row in rows)
    assert not any(row.startswith("best ") for row in rows)


def test_weights_that_training_only_makes_worse_are_exported_as_they_were(
    tmp_path: Path, known_losses: dict[int, float | None]
) -> None:
    known_losses |= {10: 6.0, 20: 7.0}
    run_dir = tmp_path / "run"
    summary = mlmlab.run(mlmlab.compose(*PATIENT, f"run_dir={run_dir}"), quiet=True).summary
    assert (summary.steps, summary.exported_step) == (20, 0)
    assert summary.eval_loss == pytest.approx(5.0)
    names = [folder.name for folder in checkpoint_folders(run_dir)]
    assert names == ["step_0", "step_20"]
    assert _weights(run_dir / "export") == _weights(run_dir / "checkpoints" / "step_0")


@pytest.mark.parametrize("damage", ["no weights", "a bit of the weights", "gone"])
def test_without_its_best_checkpoint_a_run_exports_its_last_weights_and_says_so(
    got_worse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(got_worse, run_dir)
    best = json.loads((run_dir / "summary.json").read_text())["exported_step"]
    (run_dir / "summary.json").unlink()  # as if killed before the end
    do = shutil.rmtree if damage == "gone" else DAMAGES[damage][0]
    do(run_dir / "checkpoints" / f"step_{best}")
    summary = _resume(run_dir)
    assert summary.exported_step == summary.steps
    assert summary.eval_loss == _logged_loss(run_dir, summary.steps)
    newest = got_worse / "checkpoints" / f"step_{summary.steps}"
    assert _weights(run_dir / "export") == _weights(newest)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if f"checkpoints/step_{best}: " in line]) == 1


def test_a_stop_while_the_best_weights_are_scored_leaves_the_last_checkpoint_alone(
    got_worse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(got_worse, run_dir)
    (run_dir / "summary.json").unlink()  # as if killed before the end
    before = {path: path.read_bytes() for path in (run_dir / "checkpoints").glob("*/*")}
    with monkeypatch.context() as patched:
        patched.setattr(Interruptions, "is_stop_asked", True)  # nothing but the scoring looks
        with pytest.raises(Interrupted):
            _resume(run_dir)
    assert before == {path: path.read_bytes() for path in (run_dir / "checkpoints").glob("*/*")}
    _resume(run_dir)
    assert bits(run_dir) == bits(got_worse)


def test_an_evaluation_that_predicted_no_token_is_neither_initial_nor_best_nor_worse(
    tmp_path: Path, known_losses: dict[int, float | None]
) -> None:
    known_losses |= {0: None, 10: 4.0, 20: None, 30: 3.0, 40: None, 50: None, 60: 3.5}
    run_dir = tmp_path / "run"
    summary = mlmlab.run(mlmlab.compose(*PATIENT, f"run_dir={run_dir}"), quiet=True).summary
    assert summary.steps == 60
    assert summary.best_eval_perplexity == pytest.approx(np.exp(3.0))
    newest = run_dir / "checkpoints" / "step_60" / "progress.json"
    progress = json.loads(newest.read_text())["progress"]
    assert progress["best_step"] == 30
    assert progress["best_value"] == progress["best_eval_loss"] == pytest.approx(3.0)
    assert progress["evaluations_since_best"] == 1
    assert progress["initial_eval_loss"] is None  # of the weights before the first step
    assert json.loads((run_dir / "summary.json").read_text())["initial_eval_perplexity"] is None
    assert summary.exported_step == 30


def test_a_run_that_is_never_asked_to_predict_a_test_token_ends_without_a_result(
    tmp_path: Path,
) -> None:
    few = ("data.limit=40", "data.test_fraction=0.05", "eval.masking.rate=0.01", "data.seed=2")
    keys = (*TINY, *few, "train.max_steps=4", "eval.every_steps=2", f"run_dir={tmp_path / 'run'}")
    assert mlmlab.run(mlmlab.compose(*keys)).summary.eval_masked_tokens == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    unknown = {key for key, value in summary.items() if value is None}
    assert unknown >= {
        "eval_loss", "eval_perplexity", "best_eval_perplexity", "initial_eval_perplexity",
        "eval_top1_accuracy", "eval_loss_standard_error", "floor_perplexity",
    }  # fmt: skip


def test_a_learning_rate_that_makes_it_worse_ends_the_run_early(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    worse = ("train.learning_rate=0.5", "train.warmup_steps=0", "train.early_stopping_patience=1")
    config = mlmlab.compose(*PATIENT, *worse, f"run_dir={run_dir}")
    summary = mlmlab.run(config, quiet=True).summary
    assert summary.steps < 60
    assert summary.exported_step < summary.steps
    assert summary.eval_perplexity == summary.best_eval_perplexity


# TensorBoard


def _assert_tensorboard_has_metrics_jsonl(run_dir: Path) -> None:
    """Each event of metrics.jsonl once, and nothing else."""
    accumulator = EventAccumulator(
        str(run_dir / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False
    )
    accumulator.Reload()
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        for tag in event.keys() - {"step", "epoch", "fill_mask", "masked_examples"}:
            expected.setdefault(tag, []).append((event["step"], float(np.float32(event[tag]))))
    assert len(expected["train/loss"]) == 9
    found = {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    assert found == expected
    assert len(expected["trained/eval_perplexity"]) == 1
    assert accumulator.summary_metadata.keys() >= {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }


def _event_files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / "tensorboard").iterdir()}


def test_after_each_resume_tensorboard_has_every_event_of_metrics_jsonl_once(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])
    (first,) = _event_files(run_dir).items()
    _resume(run_dir)
    _assert_tensorboard_has_metrics_jsonl(run_dir)
    files = _event_files(run_dir)
    assert len(files) == 2
    assert first[1].startswith(files[first[0]])  # cut, not written again
    shutil.rmtree(run_dir / "checkpoints" / "step_60")
    _resume(run_dir)  # from step 45 again: what the resume before has written goes
    _assert_tensorboard_has_metrics_jsonl(run_dir)
    again = _event_files(run_dir)
    assert len(again) == 2
    assert again[first[0]] == files[first[0]]
    _resume(run_dir)  # from its end: nothing but the final figures is written again
    _assert_tensorboard_has_metrics_jsonl(run_dir)


def test_a_resume_without_a_checkpoint_starts_with_empty_logs(whole: Path, tmp_path: Path) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[])
    _resume(run_dir)
    _assert_tensorboard_has_metrics_jsonl(run_dir)
    assert len(_event_files(run_dir)) == 1


def test_logs_that_were_deleted_or_shortened_do_not_stop_a_resume(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])
    shutil.rmtree(run_dir / "tensorboard")
    (run_dir / "metrics.jsonl").write_text("")
    _resume(run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [49, 56, 60, 60, 60]


@pytest.mark.parametrize(
    "log",
    [
        lambda tracker: tracker.log(5, {"train/loss": 1.0}),
        lambda tracker: tracker.text(5, "fill_mask", "a <mask>"),
    ],
)
def test_flushed_sizes_are_those_of_the_closed_files_however_slow_the_writers_thread(
    log: Callable[[Tracker], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mlmlab.compose()
    sinks = find_sinks(config.tracking)
    tracker = Tracker(config, tmp_path, sinks, sizes={}, tell=print)
    write = RecordWriter.write

    def late(writer: RecordWriter, record: bytes) -> None:
        time.sleep(0.05)
        write(writer, record)

    monkeypatch.setattr(RecordWriter, "write", late)
    log(tracker)
    sizes = tracker.flush()
    tracker.close()
    files = (tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir())
    assert len(sizes) == 2
    assert sizes == {str(path.relative_to(tmp_path)): path.stat().st_size for path in files}
