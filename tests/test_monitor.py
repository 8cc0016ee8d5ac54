"""eval.monitor: the figure that best checkpoints, early stopping and sweeps go by."""

import json
import math
import sys
from pathlib import Path

import pytest
from stopping import PATIENT, TINY, as_killed, bits, events

import mlmlab
from mlmlab.cli.jobs import Job
from mlmlab.errors import Code
from mlmlab.tracking.summary import Summary
from mlmlab.training.state import checkpoint_folders

MY_FIGURES = '''
import math
import os


class Scripted:
    """The next value of the script for weights that it has not seen; null is nan."""

    name = "scripted"
    seen = {}

    def __init__(self, config, *, script):
        self.script = script

    def run(self, model, tokenizer, device):
        weights = model.embeddings.token.weight.double().sum().item()
        if weights not in self.seen:
            self.seen[weights] = self.script[len(self.seen)]
        value = self.seen[weights]
        return {"value": math.nan if value is None else value, "negative": -1.0}


class Divided:
    """Better and better for rank 0, worse and worse for the other."""

    name = "divided"

    def __init__(self, config):
        self.calls = 0

    def run(self, model, tokenizer, device):
        self.calls += 1
        return {"calls": self.calls if os.environ.get("RANK") == "0" else -self.calls}
'''

SCRIPTED = (
    "eval.evaluators=[masked_perplexity,my_figures:Scripted]",
    "eval.monitor=eval/scripted/value",
)


@pytest.fixture(autouse=True)
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with my_figures.py."""
    (tmp_path / "my_figures.py").write_text(MY_FIGURES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_figures", raising=False)


def _run(*overrides: str) -> Summary:
    return mlmlab.run(mlmlab.compose(*overrides), quiet=True).summary


def _logged(run_dir: str) -> dict[int, dict[str, float]]:
    """The evaluations, by step."""
    return {e["step"]: e for e in events(Path(run_dir)) if "eval/loss" in e}


@pytest.mark.parametrize(
    ("mode", "script", "best", "last"),
    [
        ("max", "[0.2,0.5,0.9,0.9,0.3]", 20, 40),  # an equal one is no better
        ("min", "[0.2,0.5,0.1,0.1,0.3]", 20, 40),
        ("max", "[0.2,0.1,0.1]", 0, 20),
        ("max", "[-2.0,-1.0,0.0,1.0,2.0,3.0,4.0]", 60, 60),
    ],
)
def test_best_checkpoint_early_stopping_and_export_go_by_the_monitored_figure(
    mode: str, script: str, best: int, last: int
) -> None:
    own = (*SCRIPTED, f"eval.monitor_mode={mode}", f"eval.options.Scripted.script={script}")
    summary = _run(*PATIENT, *own, "run_dir=run")
    assert (summary.steps, summary.exported_step) == (last, best)
    evaluations = _logged("run")
    assert list(evaluations) == list(range(0, last + 1, 10))
    assert summary.best_eval_perplexity == evaluations[best]["eval/perplexity"]
    assert summary.eval_loss == evaluations[best]["eval/loss"]
    assert summary.monitor == "eval/scripted/value"
    assert summary.best_value == evaluations[best]["eval/scripted/value"]
    assert summary.figures[summary.monitor] == summary.best_value
    kept = [folder.name for folder in checkpoint_folders(Path("run"))]
    assert kept == [f"step_{step}" for step in sorted({best, last})]
    if best > 0:
        killed = as_killed(Path("run"), Path("killed"), checkpoints=[best])
        _run(f"resume={killed}")
        assert bits(killed) == bits(Path("run"))


def test_nan_is_neither_better_nor_worse(capsys: pytest.CaptureFixture[str]) -> None:
    script = "eval.options.Scripted.script=[null,null,0.5,null,null,null,0.4]"
    summary = _run(*PATIENT, *SCRIPTED, "eval.monitor_mode=max", script, "run_dir=run")
    assert (summary.steps, summary.exported_step, summary.best_value) == (60, 20, 0.5)
    sys.modules["my_figures"].Scripted.seen.clear()
    script = "eval.options.Scripted.script=[null,null,null,null,null,null,null]"
    mlmlab.run(
        mlmlab.compose(*PATIENT, *SCRIPTED, "eval.monitor_mode=max", script, "run_dir=never")
    )
    assert "no evaluation had a value of eval/scripted/value" in capsys.readouterr().out
    written = json.loads(Path("never/summary.json").read_text())
    assert (written["best_value"], written["best_eval_perplexity"]) == (None, None)
    assert math.isnan(Summary.read(Path("never/summary.json")).best_value)


def test_perplexity_and_loss_rank_the_same() -> None:
    by_loss, by_perplexity = (
        _run(*PATIENT, f"eval.monitor=eval/{name}", f"run_dir={name}")
        for name in ("loss", "perplexity")
    )
    assert by_loss.exported_step == by_perplexity.exported_step
    assert by_loss.best_value == pytest.approx(math.log(by_perplexity.best_value))
    assert by_perplexity.best_value == by_perplexity.best_eval_perplexity


def test_a_figure_that_never_comes_is_refused_and_the_others_are_named() -> None:
    own = (*SCRIPTED[:1], "eval.options.Scripted.script=[1]", "eval.monitor_mode=max")
    with pytest.raises(mlmlab.UserError) as refused:
        _run(*TINY, *own, "eval.monitor=eval/scripted/valve", "run_dir=run")
    (problem,) = refused.value.problems
    assert (problem.where, problem.code) == ("eval.monitor", Code.NOT_FOUND)
    assert "eval/scripted/valve" in problem.found
    names = "eval/loss, eval/perplexity, eval/scripted/value, eval/scripted/negative"
    assert names in problem.expected
    assert not any("epoch" in event for event in events(Path("run")))


WRONG = {
    ("eval.monitor=eval/los",): ("eval.monitor", Code.INVALID),
    ("eval.monitor_mode=max",): ("eval.monitor_mode", Code.CONFLICT),
    ("eval.monitor=eval/perplexity", "eval.monitor_mode=max"): ("eval.monitor_mode", Code.CONFLICT),
    ("eval.monitor_mode=highest",): ("eval.monitor_mode", Code.WRONG_TYPE),
    SCRIPTED: ("eval.monitor_mode", Code.MISSING),
}


@pytest.mark.parametrize("overrides", WRONG)
def test_a_monitor_that_cannot_rank_is_refused(overrides: tuple[str, ...]) -> None:
    where, code = WRONG[overrides]
    with pytest.raises(mlmlab.UserError) as refused:
        mlmlab.compose(*overrides)
    (problem,) = refused.value.problems
    assert (problem.where, problem.code) == (where, code)


def test_a_resume_may_not_rank_by_another_figure() -> None:
    _run(*TINY, "run_dir=run")
    with pytest.raises(mlmlab.UserError) as refused:
        mlmlab.compose("resume=run", "eval.monitor=eval/perplexity")
    (problem,) = refused.value.problems
    assert (problem.where, problem.code) == ("eval.monitor", Code.CHANGED)


def _job(folder: str) -> Job:
    Path(folder).mkdir()  # as Hydra does
    return Job(number=1, count=1, values={}, folder=Path(folder), began=0.0, launcher="basic")


def test_a_job_of_a_sweep_returns_the_monitored_figure_of_the_exported_weights() -> None:
    script = "eval.options.Scripted.script=[0.2,0.5,0.9,0.9,0.3]"
    config = mlmlab.compose(*PATIENT, *SCRIPTED, "eval.monitor_mode=max", script)
    assert _job("own").run(mlmlab.schema.to_mapping(config), []) == 0.9
    config = mlmlab.compose(*TINY)
    loss = _job("default").run(mlmlab.schema.to_mapping(config), [])
    assert loss == json.loads(Path("default/summary.json").read_text())["eval_loss"]


def test_processes_go_by_the_figures_of_rank_zero() -> None:
    summary = _run(
        *PATIENT, "train.max_steps=20", "run_dir=run", "runtime.processes=2",
        "train.early_stopping_patience=1", "eval.monitor_mode=max",
        "eval.evaluators=[masked_perplexity,my_figures:Divided]",
        "eval.monitor=eval/divided/calls",
    )  # fmt: skip
    assert (summary.steps, summary.exported_step, summary.best_value) == (20, 20, 3.0)
