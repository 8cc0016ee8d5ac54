"""A researcher's own folder, outside the checkout: every seam at once, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stopping import SMALLEST, as_killed, bits, events

import mlmlab

IDEAS = '''
import dataclasses

import numpy as np
import torch

from mlmlab.training.objective import MaskedTokens


class EveryOther:
    """Never two neighbours."""

    def __init__(self, config, *, share=0.3):
        self.share = share

    def select(self, batch):
        positions = np.arange(batch.input_ids.shape[1])
        return (positions % 2 == batch.epoch % 2) & (batch.uniform() < self.share)


def wsd(step, total_steps, *, decay=0.2):
    return min(1.0, (total_steps - step) / max(1, total_steps) / decay)


def muon(groups, config, *, matrix_rate=0.02):
    matrices = [group for group in groups if group["role"] == "matrix"]
    others = [group for group in groups if group["role"] != "matrix"]
    return [
        torch.optim.Muon(matrices, lr=matrix_rate),
        torch.optim.AdamW(others, lr=config.learning_rate, fused=True),
    ]


class Sizes:
    """How large the token table is."""

    name = "sizes"

    def __init__(self, config):
        pass

    def run(self, model, tokenizer, device):
        return {"table": model.embeddings.token.weight.norm()}


class LaterTokens(MaskedTokens):
    """Later tokens of a row count more."""

    def __init__(self, config, masker, *, last=2.0):
        super().__init__(config, masker)
        self.last = last

    def prepare(self, examples, example_ids, epoch, step):
        micro = super().prepare(examples, example_ids, epoch, step)
        width = micro.masked.input_ids.shape[1]
        place = (micro.masked.positions % width) / width
        weights = (1.0 + (self.last - 1.0) * place).float()
        return dataclasses.replace(micro, weights=weights, loss_weight=weights.sum().item())


class Lines:
    """A line for each event."""

    def __init__(self, config, run_dir, *, file="sink.txt"):
        self.file = (run_dir / file).open("a")

    def log(self, step, figures):
        self.file.write(f"{step} {' '.join(figures)}\\n")

    def text(self, step, name, value):
        self.file.write(f"{step} {name}\\n")

    def close(self):
        self.file.close()


class NoMethods:
    def __init__(self, config):
        pass
'''
EXPERIMENT = """\
# @package _global_
name: mine
masking:
  unit: my_ideas:EveryOther
  options: {share: 0.4}
objective:
  name: my_ideas:LaterTokens
  options: {last: 3.0}
train:
  optimizer: my_ideas:muon
  optimizer_options: {matrix_rate: 0.01}
  schedule: my_ideas:wsd
  schedule_options: {decay: 0.5}
  max_steps: 40
  warmup_steps: 5
  log_every_steps: 7
  save_every_steps: 15
eval:
  every_steps: 20
  evaluators: [masked_perplexity, my_ideas:Sizes]
  fill_mask: []
tracking:
  sinks: [jsonl, tensorboard, my_ideas:Lines]
  options: {Lines: {file: lines.txt}}
"""
MINE = ("--config-dir", "conf", "+experiment=mine", *SMALLEST)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """my_ideas.py, and conf/experiment/mine.yaml."""
    (tmp_path / "my_ideas.py").write_text(IDEAS)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    return tmp_path


def _train(folder: Path, *arguments: str, status: int = 0) -> str:
    """What the command says on its error stream."""
    done = subprocess.run(
        [sys.executable, "-m", "mlmlab.train", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(mlmlab.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr[-2000:]
    return done.stderr


def test_ideas_of_ones_own_train_resume_and_are_refused_once_they_have_changed(
    folder: Path,
) -> None:
    _train(folder, *MINE, "model.dropout=0.1", "run_dir=whole")
    whole = folder / "whole"
    figures = {key for event in events(whole) for key in event}
    assert {"train/loss", "eval/perplexity", "eval/sizes/table"} <= figures
    lines = (whole / "lines.txt").read_text().splitlines()
    assert len(lines) == len((whole / "metrics.jsonl").read_text().splitlines())
    assert "trained/eval_loss" in lines[-1]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["eval_perplexity"] < summary["initial_eval_perplexity"]

    killed = as_killed(whole, folder / "killed", checkpoints=[30])
    _train(folder, f"resume={killed}")
    assert bits(killed) == bits(whole)

    other = as_killed(whole, folder / "other", checkpoints=[30])
    (folder / "my_ideas.py").write_text(IDEAS.replace("share=0.3", "share=0.2"))
    message = _train(folder, f"resume={other}", status=2)
    assert "my_ideas" in message
    assert "changed since the run began" in message
    assert "Traceback" not in message


def test_a_sweep_over_the_policys_own_option_in_two_processes_follows_the_runs_in_one(
    folder: Path,
) -> None:
    shares = ("0.2", "0.4")
    swept = f"masking.options.share={','.join(shares)}"
    _train(folder, "-m", *MINE, swept, "runtime.processes=2", "sweep_dir=sweep")
    jobs = sorted(path.parent for path in folder.glob("sweep/*/config.yaml"))
    configs = [(job / "config.yaml").read_text() for job in jobs]
    assert [f"share: {share}" in config for config, share in zip(configs, shares, strict=True)] == [
        True,
        True,
    ]
    alone = folder / "alone"
    _train(folder, *MINE, "masking.options.share=0.4", "run_dir=alone")
    names = ("step", "train/loss", "train/grad_norm", "eval/sizes/table", "eval/loss")
    two, one = (
        [{name: event[name] for name in names if name in event} for event in events(run)]
        for run in (jobs[1], alone)
    )
    assert len(two) == len(one) > 5
    for ours, theirs in zip(two, one, strict=True):  # Muon computes in bf16
        assert ours == pytest.approx(theirs, rel=2e-3)


def test_a_class_without_the_methods_is_refused_with_their_names(folder: Path) -> None:
    message = _train(
        folder, *MINE, "~masking.options.share", "masking.unit=my_ideas:NoMethods", status=2
    )
    assert "without select(batch)" in message
    assert "Traceback" not in message
