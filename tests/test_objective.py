"""One's own objective: `objective.name=package.module:name`, with masked diffusion as the proof."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import assert_same_curve
from refusals import refusal
from stopping import TINY, as_killed, bits, events
from test_training import VOCABULARY, _model

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.errors import Code, RunFailed
from mlmlab.masking import MaskingConfig
from mlmlab.training.objective import masked_token_loss

DIFFUSION = (
    *TINY,
    "objective.name=masked_diffusion:MaskedDiffusion",
    "masking.mask_fraction=1",
    "masking.random_fraction=0",
    "train.learning_rate=3e-3",
)
IDEAS = '''
import copy

import torch
from mlmlab.training.objective import MaskedTokens, masked_token_loss


class Doubled(MaskedTokens):
    """Twice the loss, and a teacher that counts."""

    def setup(self, model, device):
        assert next(model.parameters()).device == device
        self.factor = 2.0

    def loss(self, model, micro):
        assert model.training
        return self.factor * masked_token_loss(model, micro)


class Anchored(MaskedTokens):
    """Stays near the weights that the run began with."""

    def setup(self, model, device):
        self.start = copy.deepcopy(model)
        assert self.start.head.dense.weight.any()

    def loss(self, model, micro):
        away = model.head.dense.weight - self.start.head.dense.weight.detach()
        return masked_token_loss(model, micro) + away.square().sum()


class Unprepared:
    def __init__(self, config, masker):
        pass

    def loss(self, model, micro):
        return masked_token_loss(model, micro)


class Nothing(MaskedTokens):
    def prepare(self, examples, example_ids, epoch, step):
        return None


class Rows(MaskedTokens):
    def loss(self, model, micro):
        return model(**micro.model_inputs())
'''


@pytest.fixture
def ideas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ideas_of_mine.py, which no other test has imported."""
    (tmp_path / "ideas_of_mine.py").write_text(IDEAS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ideas_of_mine", raising=False)
    return tmp_path


def _run(*overrides: str) -> None:
    mlmlab.run(mlmlab.compose(*overrides), quiet=True)


def test_masked_diffusion_learns_and_is_resumed_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(*DIFFUSION, "run_dir=whole")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    _run(f"resume={killed}")
    assert bits(killed) == bits(Path("whole"))
    losses = [event["train/loss"] for event in events(Path("whole")) if "train/loss" in event]
    assert losses[-1] < 0.9 * losses[0]
    rates = [
        event["train/masking_rate"] for event in events(Path("whole")) if "train/loss" in event
    ]
    assert 0.2 < min(rates) < max(rates) < 0.8  # those of a batch, each example with its own
    summary = json.loads(Path("whole/summary.json").read_text())
    assert summary["eval_perplexity"] < 0.6 * summary["initial_eval_perplexity"]


def test_masked_diffusion_in_two_processes_follows_the_run_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(*DIFFUSION, "model.dropout=0", "run_dir=alone")
    tests = str(Path(__file__).parent)
    path = os.pathsep.join([str(Path(mlmlab.__file__).parents[1]), tests])
    command = [sys.executable, "-m", "mlmlab.train", *DIFFUSION, "model.dropout=0"]
    done = subprocess.run(
        [*command, "runtime.processes=2", "run_dir=two"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_curve(*(_curve(Path(run)) for run in ("two", "alone")))


def _curve(run_dir: Path) -> list[dict[str, float]]:
    names = ("step", "train/loss", "train/masking_rate", "train/grad_norm", "eval/loss")
    return [{n: event[n] for n in names if n in event} for event in events(run_dir)]


def test_the_weight_of_a_diffusion_is_its_tokens_and_each_prediction_counts_by_its_time() -> None:
    from masked_diffusion import MaskedDiffusion

    tokens = np.random.default_rng(0).integers(5, 60, 64_000).astype(np.uint16)
    blocks = PackedBlocks(Shard(tokens, np.array([0]), np.array([0, len(tokens)])), 16)
    masking = MaskingConfig(mask_fraction=1.0, random_fraction=0.0)
    objective = MaskedDiffusion(None, Masker(masking, VOCABULARY))
    ids = np.arange(len(blocks))
    micro = objective.prepare(blocks.take(ids), ids, 0, 0)
    assert micro.divisor == micro.token_count == 64_000
    assert micro.weights is not None
    # A token counts 1 / t with chance t: once on average.
    assert micro.weights.sum().item() == pytest.approx(64_000, rel=0.02)
    assert 1.0 < micro.weights.min() < 1.1
    assert 15.0 < micro.weights.max() <= 20.0
    hidden = micro.masked.input_ids.flatten()[micro.masked.positions]
    assert (hidden == VOCABULARY.mask_id).all()
    part = objective.prepare(blocks.take(ids[7:9]), ids[7:9], 0, 0)
    assert torch.equal(part.masked.input_ids, micro.masked.input_ids[7:9])


def test_weights_multiply_the_losses_of_the_built_in_objective() -> None:
    ids = np.arange(4)
    tokens = np.random.default_rng(0).integers(5, 60, 64).astype(np.uint16)
    blocks = PackedBlocks(Shard(tokens, np.array([0]), np.array([0, 64])), 16)
    micro = Masker(MaskingConfig(rate=0.5), VOCABULARY).prepare(blocks.take(ids), ids, 0, 0)
    model = _model().eval()
    weights = torch.linspace(0.0, 2.0, micro.masked_count)
    losses = [
        masked_token_loss(model, dataclasses.replace(micro, weights=one_hot)).item()
        for one_hot in torch.eye(micro.masked_count)
    ]
    weighted = masked_token_loss(model, dataclasses.replace(micro, weights=weights))
    assert weighted.item() == pytest.approx(np.dot(losses, weights.numpy()), rel=1e-5)
    assert masked_token_loss(model, micro).item() == pytest.approx(sum(losses), rel=1e-5)
    assert micro.without_predictions().divisor == 0


def test_ones_own_loss_is_what_is_logged_and_setup_comes_first(ideas: Path) -> None:
    # The built-in objective's positions are padded on the CPU, and so draw other dropout noise.
    first = ("train.max_steps=1", "train.log_every_steps=1", "eval.every_steps=1")
    _run(*TINY, *first, "model.dropout=0", "run_dir=plain")
    _run(
        *TINY, *first, "model.dropout=0", "objective.name=ideas_of_mine:Doubled", "run_dir=doubled"
    )
    plain, doubled = (
        next(e["train/loss"] for e in events(Path(run)) if "train/loss" in e)
        for run in ("plain", "doubled")
    )
    assert doubled == pytest.approx(2 * plain, rel=1e-6)


@pytest.mark.parametrize("start", ["scratch", "checkpoint"])
def test_setup_has_the_weights_that_the_run_began_with_when_it_is_resumed_too(
    ideas: Path, start: str
) -> None:
    settings = [*TINY]
    if start == "checkpoint":
        _run(*TINY, "train.max_steps=5", "run_dir=first")
        settings = [setting for setting in TINY if not setting.startswith("model")]
        settings += ["model=from_checkpoint", "checkpoint=first"]
    anchored = ("objective.name=ideas_of_mine:Anchored", "train.learning_rate=1e-2")
    _run(*settings, *anchored, "run_dir=whole")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    _run(f"resume={killed}")
    assert bits(killed) == bits(Path("whole"))


def test_a_text_of_which_nothing_can_be_predicted_ends_the_run(ideas: Path) -> None:
    Path("unknown.txt").write_text("一 二 三 四 五 六 七 八 九 十\n" * 50)
    _run(*TINY, "train.max_steps=2", "run_dir=first")
    with pytest.raises(RunFailed, match="1,001 batches in a row had no token to predict"):
        _run(
            *TINY, "data=text", "data.path=unknown.txt", "data.block_size=8", "run_dir=unknown",
            "tokenizer.path=first/export", "train.max_steps=5",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "where", "code", "named"),
    [
        ("Unprepared", "objective.name", Code.INVALID, "prepare(examples"),
        ("Nothing", "objective.name", Code.INVALID, "NoneType"),
        ("Rows", "objective.name", Code.INVALID, "fp32"),
        ("Missing", "objective.name", Code.NOT_FOUND, "Doubled"),
    ],
)
def test_what_is_no_objective_is_refused(
    ideas: Path, name: str, where: str, code: Code, named: str
) -> None:
    with refusal(where, code, named):
        _run(*TINY, f"objective.name=ideas_of_mine:{name}", "run_dir=run")


def test_an_objective_and_its_options_are_part_of_a_run(ideas: Path) -> None:
    _run(*TINY, "train.max_steps=15", "objective.name=ideas_of_mine:Doubled", "run_dir=run")
    assert "ideas_of_mine:Doubled: " in Path("run/config.yaml").read_text()
    with refusal("objective.name", Code.CHANGED, "mlm"):
        mlmlab.compose("resume=run", "train.max_steps=30", "objective.name=mlm")
