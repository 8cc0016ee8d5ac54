"""Evaluations have their own masking policy: runs that train with other policies compare."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusals import refusal
from stopping import TINY

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.corpus import Corpus
from mlmlab.data.loader import EvalChunk, EvalLoader
from mlmlab.errors import Code
from mlmlab.masking import EvalMaskingConfig
from mlmlab.random import Seeds
from mlmlab.runs.setup import set_up

SHORT = (*TINY, "train.max_steps=4", "eval.every_steps=null")


def _sweep(folder: Path, *swept: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "mlmlab.train", "-m", *SHORT, *swept, "sweep_dir=sweep"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    files = sorted((folder / "sweep").glob("*/summary.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize(
    "swept", ["masking.rate=0.15,0.3", "masking=bert,whole_word,forty_percent"]
)
def test_all_jobs_of_a_sweep_over_the_masking_score_the_same_tokens(
    tmp_path: Path, swept: str
) -> None:
    jobs = _sweep(tmp_path, swept)
    assert len(jobs) == swept.count(",") + 1
    assert len({job["eval_masked_tokens"] for job in jobs}) == 1
    assert len({job["initial_eval_perplexity"] for job in jobs}) == 1  # the same fresh weights
    assert len({job["floor_perplexity"] for job in jobs}) == 1
    assert len({job["eval_loss"] for job in jobs}) == len(jobs)  # that were trained differently


def _chunks(*overrides: str) -> list[EvalChunk]:
    config = mlmlab.compose(*SHORT, *overrides)
    inputs = set_up(config)
    seed = Seeds.of(0, config.eval.seed, 0).eval_masks
    masker = Masker(config.eval.masking, inputs.tokenizer.vocabulary(), seed)
    return list(EvalLoader(inputs.test, masker).chunks())


def test_the_positions_of_an_evaluation_do_not_depend_on_the_training_policy() -> None:
    plain = _chunks()
    for policy in ("masking=whole_word", "masking=forty_percent", "masking.mode=static"):
        for ours, theirs in zip(_chunks(policy), plain, strict=True):
            assert torch.equal(ours.batch.masked.input_ids, theirs.batch.masked.input_ids)
            assert torch.equal(ours.batch.masked.positions, theirs.batch.masked.positions)


def test_the_evaluations_policy_is_a_group_and_keys() -> None:
    config = mlmlab.compose("masking@eval.masking=whole_word", "eval.masking.rate=0.2")
    assert config.eval.masking == EvalMaskingConfig(unit="word", rate=0.2)
    assert config.masking == mlmlab.compose().masking


@pytest.mark.parametrize("key", ["mode", "schedule", "start_rate", "rate_steps"])
def test_what_changes_over_a_run_is_refused_for_evaluations(key: str) -> None:
    value = {"mode": "static", "schedule": "linear", "start_rate": "0.3", "rate_steps": "['1:0.2']"}
    with refusal(f"eval.masking.{key}", Code.UNKNOWN_KEY, f"masking.{key}="):
        mlmlab.compose(f"+eval.masking.{key}={value[key]}")


def _has_words(corpus: Corpus) -> bool:
    return corpus.train.word_starts is not None


def test_words_of_the_evaluation_alone_are_found_too() -> None:
    config = mlmlab.compose(*SHORT, "masking@eval.masking=whole_word")
    inputs = set_up(config)
    assert _has_words(inputs.text.corpus)
    assert not inputs.has_known_floor


def test_the_floor_is_that_of_the_evaluations_policy(tmp_path: Path) -> None:
    words = mlmlab.run(
        mlmlab.compose(*SHORT, "masking=whole_word", f"run_dir={tmp_path / 'words'}"), quiet=True
    ).summary
    assert words.floor_perplexity is not None
    scored = mlmlab.run(
        mlmlab.compose(*SHORT, "masking@eval.masking=whole_word", f"run_dir={tmp_path / 'scored'}"),
        quiet=True,
    ).summary
    assert scored.floor_perplexity is None


def test_evaluate_scores_a_run_with_the_runs_policy_or_another(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = mlmlab.run(
        mlmlab.compose(*SHORT, "eval.masking.rate=0.3", "masking.rate=0.1", f"run_dir={run}"),
        quiet=True,
    ).summary
    report = mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation(f"checkpoint={run}"), quiet=True)
    assert report.evaluation.loss == summary.eval_loss
    other = mlmlab.evaluate_checkpoint(
        mlmlab.compose_evaluation(f"checkpoint={run}", "eval.masking.rate=0.15"), quiet=True
    )
    ratio = summary.eval_masked_tokens / other.evaluation.masked_count
    assert ratio == pytest.approx(2.0, rel=0.1)


def test_a_capped_run_and_its_evaluation_score_the_same_prefix(tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = (*SHORT, "data.limit=8000", "model.hidden_size=16")
    full = mlmlab.run(mlmlab.compose(*keys, f"run_dir={tmp_path / 'full'}"), quiet=True).summary
    capped = mlmlab.run(
        mlmlab.compose(*keys, "eval.max_examples=256", f"run_dir={run}"), quiet=True
    ).summary
    assert capped.eval_masked_tokens == pytest.approx(8192 * 0.15, rel=0.1)
    assert capped.eval_masked_tokens < full.eval_masked_tokens / 2
    report = mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation(f"checkpoint={run}"), quiet=True)
    assert report.evaluation.loss == capped.eval_loss
    assert report.examples == 256
