"""Perplexity is a sum over a count, with the same bits however it is batched."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mlmlab
from mlmlab.data.blocks import PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.loader import CHUNK_TOKENS, EvalLoader
from mlmlab.masking import MaskingConfig, VocabularyInfo
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
from mlmlab.tracking.progress import Progress
from mlmlab.training.config import Precision
from mlmlab.training.evaluation import Evaluation, evaluate, perplexity
from mlmlab.training.precision import Compute

BLOCK = 64
CPU = Compute(torch.device("cpu"), Precision.FP32)


def _model(dropout: float = 0.1) -> MaskedLanguageModel:
    model = MaskedLanguageModel(
        ModelConfig(
            family=Family.BERT,
            vocabulary_size=300,
            hidden_size=48,
            layers=2,
            heads=4,
            intermediate_size=96,
            max_positions=BLOCK,
            position_offset=0,
            token_types=2,
            layer_norm_eps=1e-12,
            pad_id=0,
            initializer_range=0.02,
            dropout=dropout,
            attention_dropout=dropout,
        )
    )
    model.initialize(0)
    return model


def _loader(batch_size: int, examples: int = 2 * CHUNK_TOKENS // BLOCK + 37) -> EvalLoader:
    tokens = np.random.default_rng(0).integers(5, 300, examples * BLOCK).astype(np.uint16)
    return EvalLoader(
        blocks=PackedBlocks(Shard(tokens, np.array([len(tokens)])), BLOCK),
        masking=MaskingConfig(),
        vocabulary=VocabularyInfo(300, 4, (0, 1, 2, 3, 4)),
        seed=0,
        batch_size=batch_size,
    )


def _evaluate(model: MaskedLanguageModel, loader: EvalLoader, compute: Compute = CPU) -> Evaluation:
    return evaluate(model, loader, compute, Progress(0, quiet=True))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_the_same_bits_for_any_batch_size_and_on_repetition(precision: Precision) -> None:
    model, compute = _model(), Compute(torch.device("cpu"), precision)
    first = _evaluate(model, _loader(64), compute)
    for batch_size in (1, 7, 64, 64, 500):
        again = _evaluate(model, _loader(batch_size), compute)
        assert again == first
        assert again.loss.hex() == first.loss.hex()


def test_the_loss_is_the_sum_over_the_count_of_all_masked_tokens() -> None:
    model, loader = _model(), _loader(64)
    result = _evaluate(model, loader)
    losses: list[float] = []
    with torch.no_grad():
        for chunk in loader.chunks():
            logits = model.eval()(chunk.input_ids).flatten(0, 1)[chunk.positions]
            nll = -logits.double().log_softmax(-1).gather(1, chunk.labels[:, None])
            losses += nll.flatten().tolist()
    assert result.masked_count == len(losses)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(float(np.mean(losses))), rel=1e-5)


def test_every_example_is_scored_once() -> None:
    loader = _loader(64)
    chunks = list(loader.chunks())
    assert sum(len(chunk.input_ids) for chunk in chunks) == len(loader.blocks)
    for chunk in chunks:
        restored = chunk.input_ids.flatten().clone()
        restored[chunk.positions] = chunk.labels
        chunk.input_ids.flatten()[:] = restored
    text = torch.cat([chunk.input_ids for chunk in chunks])
    assert torch.equal(text, torch.from_numpy(loader.blocks.rows.astype(np.int64)))


def test_evaluation_switches_dropout_off() -> None:
    with_dropout = _evaluate(_model(dropout=0.5), _loader(64))
    without = _evaluate(_model(dropout=0.0), _loader(64))
    assert with_dropout == without


def test_evaluation_masks_are_not_the_training_masks() -> None:
    from mlmlab.data.order import Order
    from mlmlab.loader import TrainLoader

    evaluation = _loader(64)
    train = TrainLoader(
        evaluation.blocks,
        Order(len(evaluation.blocks), 64, 0),
        64,
        evaluation.masking,
        evaluation.vocabulary,
        0,
    )
    _, examples = train.order.batch(0)
    masked = train.batch(0).micro_batches[0].input_ids == 4
    rows = torch.cat([chunk.input_ids for chunk in evaluation.chunks()])[torch.from_numpy(examples)]
    both = (masked & (rows == 4)).float().mean().item()
    assert both == pytest.approx(0.12**2, rel=0.25)


def test_another_eval_seed_masks_other_tokens() -> None:
    loader = _loader(64)
    other = dataclasses.replace(loader, seed=1)
    first, second = next(loader.chunks()), next(other.chunks())
    assert not torch.equal(first.input_ids, second.input_ids)


def test_the_standard_error_is_that_of_a_bootstrap_over_examples() -> None:
    rng = np.random.default_rng(0)
    model, loader = _model(), _loader(64)
    result = _evaluate(model, loader)
    sums, counts = [], []
    with torch.no_grad():
        for chunk in loader.chunks():
            logits = model(chunk.input_ids, positions=chunk.positions)
            losses = torch.nn.functional.cross_entropy(logits, chunk.labels, reduction="none")
            for start, end in zip(chunk.row_offsets[:-1], chunk.row_offsets[1:], strict=True):
                sums.append(losses[start:end].sum().item())
                counts.append(int(end - start))
    draws = rng.integers(0, len(sums), (4000, len(sums)))
    means = np.array(sums)[draws].sum(1) / np.array(counts)[draws].sum(1)
    assert result.loss_standard_error == pytest.approx(means.std(), rel=0.1)


def test_perplexity_of_an_absurd_loss_is_infinite_not_an_error() -> None:
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert math.isnan(Evaluation(0.0, 0, math.nan).loss)


def test_a_run_on_the_small_world_knows_its_floor_and_writes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = mlmlab.compose(
        "data.limit=200", "model.hidden_size=32", "train.max_steps=12", "run_dir=run",
        "eval.every_steps=6", "runtime.threads=1", "eval.fill_mask=['the cow <mask> .']",
    )  # fmt: skip
    summary = mlmlab.run(config, quiet=True)
    assert summary.floor_perplexity is not None
    assert 1 < summary.floor_perplexity < summary.eval_perplexity < summary.initial_eval_perplexity
    run = tmp_path / "run"
    expected = {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "export",
        "summary.json",
    }
    assert {path.name for path in run.iterdir()} == expected
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_6", "step_12"}
    assert {path.name for path in (run / "export").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "README.md",
    }  # fmt: skip
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if "eval/perplexity" in e] == [0, 6, 12]
    assert [e["step"] for e in events if "train/loss" in e] == [10, 12]
    written = json.loads((run / "summary.json").read_text())
    assert written["eval_perplexity"] == summary.eval_perplexity
    assert written["floor_perplexity"] == summary.floor_perplexity
    _assert_tensorboard_holds(run / "tensorboard", summary.eval_perplexity)


def _assert_tensorboard_holds(folder: Path, final_perplexity: float) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list(folder.iterdir())) == 1  # hparams did not open a second run
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "train/loss", "train/perplexity", "train/learning_rate", "train/grad_norm",
        "train/masking_rate", "train/tokens_per_second", "eval/loss", "eval/perplexity",
    } <= tags  # fmt: skip
    assert events.Scalars("eval/perplexity")[-1].value == pytest.approx(final_perplexity, rel=1e-6)
    assert events.Scalars("eval/perplexity")[-1].step == 12
    plugins = events.SummaryMetadata("_hparams_/experiment").plugin_data.plugin_name
    assert plugins == "hparams"


def test_a_folder_of_ones_own_text_has_no_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"the {a} dog saw the {b} cat" for a in "abcdefgh" for b in "stuvwxyz"]
    (tmp_path / "text.txt").write_text("\n".join(lines * 3))
    config = mlmlab.compose(
        "data=text", "data.path=text.txt", "data.block_size=16", "tokenizer.vocabulary_size=300",
        "model.hidden_size=32", "train.max_steps=2", "runtime.threads=1",
    )  # fmt: skip
    assert mlmlab.run(config, quiet=True).floor_perplexity is None
