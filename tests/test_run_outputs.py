"""What a run leaves behind besides its result: checkpoints to open, figures, traces, sweeps."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.hub_models import write_reference
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mlmlab
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.model import ModelConfig
from mlmlab.model.flops import actual_flops, dense_equivalent_flops

TINY = (
    "data.limit=300",
    "train.batch_size=8",
    "train.log_every_steps=5",
    "model.layers=1",
    "model.hidden_size=32",
    "model.heads=2",
    "model.intermediate_size=64",
    "model.dropout=0",
    "runtime.precision=fp32",
)


def events(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    config = mlmlab.compose(
        *TINY, f"run_dir={folder}", "train.max_steps=20", "eval.every_steps=10",
        "debug.profile_steps=2",
    )  # fmt: skip
    mlmlab.run(config, quiet=True)
    return folder


def test_every_checkpoint_opens_as_the_export_does(run_dir: Path) -> None:
    for step in (10, 20):
        folder = run_dir / "checkpoints" / f"step_{step}"
        report = mlmlab.evaluate_checkpoint(
            mlmlab.compose_evaluation(f"checkpoint={folder}"), quiet=True
        )
        (logged,) = (
            e["eval/loss"] for e in events(run_dir) if e["step"] == step if "eval/loss" in e
        )
        assert report.evaluation.loss == logged


def test_a_checkpoint_opens_with_transformers(run_dir: Path) -> None:
    from transformers import AutoModelForMaskedLM

    folder = run_dir / "checkpoints" / "step_20"
    theirs, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys"))
    ids = torch.arange(5, 21)[None]
    ours, _ = mlmlab.load_pretrained(run_dir)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-5, rtol=0)


def test_the_figures_of_a_log_line_are_those_of_its_steps(run_dir: Path) -> None:
    config = mlmlab.load_pretrained(run_dir)[0].config
    assert isinstance(config, ModelConfig)
    lines = [event for event in events(run_dir) if "train/loss" in event]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    for line in lines:
        steps, length = 5, 32
        seconds = line["usage/seconds"]
        tokens = round(line["train/tokens_per_second"] * seconds)
        assert tokens == steps * 8 * length
        assert 0 <= line["usage/data_seconds"] <= seconds
        dense = dense_equivalent_flops(config, examples=steps * 8, length=length)
        assert line["usage/dense_equivalent_flops_per_second"] * seconds == pytest.approx(dense)
        flops = line["usage/model_flops_per_second"] * seconds
        least, most = (
            actual_flops(config, examples=steps * 8, length=length, predicted=predicted)
            for predicted in (round(0.05 * tokens), round(0.3 * tokens))
        )
        assert least < flops < most
        assert line["usage/peak_memory_bytes"] > 2**26
    evaluations = [event for event in events(run_dir) if "eval/loss" in event]
    assert all(event["eval/seconds"] > 0 for event in evaluations)


def test_a_profile_is_a_trace_of_the_steps_asked_for(run_dir: Path) -> None:
    trace = json.loads((run_dir / "profile" / "trace.json").read_text())
    steps = [e for e in trace["traceEvents"] if e.get("name", "").startswith("ProfilerStep")]
    assert len({event["name"] for event in steps}) == 2
    assert any("AdamW" in event.get("name", "") for event in trace["traceEvents"])


def test_a_sweep_of_two_jobs_in_two_processes_makes_two_runs_and_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "mlmlab.train", "-m", "seed=0,1", "sweep_dir=sweep",
        "runtime.processes=2", *TINY, "train.max_steps=10",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def sweep(*overrides: str) -> str:
        done = subprocess.run(
            [*command, *overrides], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    output = sweep()
    runs = sorted(folder for folder in (tmp_path / "sweep").iterdir() if folder.is_dir())
    assert len(runs) == 2
    assert output.count("2 processes") == 1  # the first job says it
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in runs)
    assert [first["seed"], second["seed"]] == [0, 1]
    alone = mlmlab.run(
        mlmlab.compose(*TINY, "train.max_steps=10", f"run_dir={tmp_path / 'alone'}"), quiet=True
    ).summary
    assert first["eval_loss"] == pytest.approx(alone.eval_loss, rel=1e-6)

    (runs[0] / "summary.json").unlink()  # as if the sweep had been stopped
    output = sweep("resume=auto")
    again = json.loads((runs[0] / "summary.json").read_text())
    assert again["eval_loss"] == first["eval_loss"]
    assert "resume     from step 10" in output
    assert output.count("job 2 of 2: seed=1 (finished before)") == 1
    assert sorted(folder for folder in (tmp_path / "sweep").iterdir() if folder.is_dir()) == runs


def test_the_texts_of_eval_fill_mask_are_completed_at_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = "eval.fill_mask=['the cow lives in the <mask> .','<mask> <mask>']"
    steps = ("train.max_steps=60", "eval.every_steps=21", "train.learning_rate=3e-3")
    mlmlab.run(mlmlab.compose(*TINY, texts, *steps, "run_dir=run"))
    printed = capsys.readouterr().out
    evaluations = printed.count("evaluation  step")
    assert evaluations == 4  # steps 0, 21, 42 and 60
    assert printed.count("fill mask  the cow lives in the <mask> .") == evaluations + 1
    after = [part.split("-> ")[1].split("\n")[0] for part in printed.split("lives in the")[1:]]
    assert len(set(after[:-1])) == evaluations  # one sees it learn
    assert after[-2] == after[-1]  # the weights of the last evaluation are exported
    logged = EventAccumulator("run/tensorboard").Reload().Tensors("fill_mask/text_summary")
    assert [event.step for event in logged] == [0, 21, 42, 60]
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    written = [(line["step"], line["fill_mask"]) for line in lines if "fill_mask" in line]
    assert [step for step, _ in written] == [0, 21, 42, 60]
    assert all(after[n] in text for n, (_, text) in enumerate(written))


@pytest.mark.parametrize(("rate", "is_remarked"), [("2e-5", True), ("5e-4", False)])
def test_a_new_head_with_the_rate_of_a_trained_one_is_remarked_in_the_plan(
    rate: str, is_remarked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"w{n}" for n in range(55)]
    write_reference("bert", tmp_path / "bert")
    word_tokenizer(words).save(tmp_path / "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    body = {n: t for n, t in load_file(str(weights)).items() if not n.startswith("cls.")}
    save_file(body, str(weights))
    (tmp_path / "text.txt").write_text("\n".join(" ".join(words) for _ in range(20)))
    mlmlab.run(
        mlmlab.compose(
            "+experiment=finetune", f"checkpoint={tmp_path}/bert", "checkpoint_head=fresh",
            f"data.path={tmp_path}/text.txt", "data.block_size=16", "train.max_steps=1",
            f"train.learning_rate={rate}", f"run_dir={tmp_path}/run",
        )
    )  # fmt: skip
    assert ("hardly moves it" in capsys.readouterr().out) is is_remarked


def test_a_text_with_a_line_separator_of_unicode_is_one_line_of_the_log(tmp_path: Path) -> None:
    text = "the day after monday is <mask> .\u2028"
    settings = (*TINY, "train.max_steps=1", f"run_dir={tmp_path}/run")
    config = mlmlab.compose(*settings)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, fill_mask=(text,)))
    logged = [e["fill_mask"] for e in mlmlab.run(config, quiet=True).metrics if "fill_mask" in e]
    assert logged
    assert all("\u2028" in completion for completion in logged)
