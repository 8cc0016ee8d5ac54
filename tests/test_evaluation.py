"""Perplexity is a sum over a count, with the same bits however it is batched."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from shares import SEEDS

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.data.loader import CHUNK_TOKENS, EvalLoader
from mlmlab.evaluation.masked_perplexity import Evaluation, Score, evaluate, perplexity
from mlmlab.masking import MaskingConfig, VocabularyInfo
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
from mlmlab.model.families import ARCHITECTURES
from mlmlab.random import Seeds
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.tracking.progress_bar import ProgressBar

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
            **ARCHITECTURES[Family.BERT].checkpoint_defaults(),
            pad_id=0,
            initializer_range=0.02,
            dropout=dropout,
            attention_dropout=dropout,
        )
    )
    model.initialize(0)
    return model


def _shard(tokens: np.ndarray) -> Shard:
    """Documents of 10 to 150 tokens."""
    ends = np.cumsum(np.random.default_rng(1).integers(10, 150, len(tokens)))
    offsets = np.array([0, *ends[ends < len(tokens)], len(tokens)])
    return Shard(tokens, offsets[:-1], offsets)


def _loader(examples: int = 2 * CHUNK_TOKENS // BLOCK + 37) -> EvalLoader:
    count = examples * BLOCK + 11  # and a last block of 11
    tokens = np.random.default_rng(0).integers(5, 300, count).astype(np.uint16)
    return EvalLoader(
        blocks=PackedBlocks(_shard(tokens), BLOCK, keep_rest=True),
        masker=Masker(MaskingConfig(), VocabularyInfo(300, 4, (0, 1, 2, 3, 4)), SEEDS.eval_masks),
    )


def _evaluate(model: MaskedLanguageModel, loader: EvalLoader, compute: Compute = CPU) -> Evaluation:
    return evaluate(model, loader, compute, ProgressBar(0, quiet=True))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_the_same_bits_on_repetition(precision: Precision) -> None:
    model, compute = _model(), Compute(torch.device("cpu"), precision)
    first = _evaluate(model, _loader(), compute)
    again = _evaluate(model, _loader(), compute)
    assert again == first
    assert again.loss.hex() == first.loss.hex()


PER_CHUNK = CHUNK_TOKENS // BLOCK


@pytest.mark.parametrize(
    ("most", "scored"),
    [
        (1, PER_CHUNK),
        (PER_CHUNK, PER_CHUNK),
        (PER_CHUNK + 1, 2 * PER_CHUNK),
        (2 * PER_CHUNK + 1, 2 * PER_CHUNK + 38),  # with the last chunk, the shorter block after it
        (2 * PER_CHUNK + 37, 2 * PER_CHUNK + 38),
        (10**9, 2 * PER_CHUNK + 38),
    ],
)
def test_a_capped_evaluation_scores_a_prefix_of_the_canonical_chunks(
    most: int, scored: int
) -> None:
    loader = _loader()
    capped = dataclasses.replace(loader, max_examples=most, draws=2)
    assert (capped.examples_per_draw, capped.example_count) == (scored, 2 * scored)
    chunks = [chunk.batch.masked for chunk in capped.chunks()]
    assert sum(len(chunk.input_ids) for chunk in chunks) == 2 * scored
    first_draw = chunks[: capped.chunk_count // 2]
    for ours, theirs in zip(first_draw, loader.chunks(), strict=False):
        assert torch.equal(ours.input_ids, theirs.batch.masked.input_ids)
        assert torch.equal(ours.positions, theirs.batch.masked.positions)


def test_the_loss_is_the_sum_over_the_count_of_all_masked_tokens() -> None:
    model, loader = _model(), _loader()
    result = _evaluate(model, loader)
    losses: list[float] = []
    with torch.no_grad():
        for chunk in (chunk.batch.masked for chunk in loader.chunks()):
            logits = model.eval()(chunk.input_ids).flatten(0, 1)[chunk.positions]
            nll = -logits.double().log_softmax(-1).gather(1, chunk.labels[:, None])
            losses += nll.flatten().tolist()
    assert result.masked_count == len(losses)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(float(np.mean(losses))), rel=1e-5)


def test_every_example_is_scored_once() -> None:
    loader = _loader()
    chunks = [chunk.batch.masked for chunk in loader.chunks()]
    assert sum(len(chunk.input_ids) for chunk in chunks) == len(loader.blocks)
    assert chunks[-1].input_ids.shape == (1, 11)  # the rest, alone
    for chunk in chunks:
        chunk.input_ids.flatten()[chunk.positions] = chunk.labels
    text = torch.cat([chunk.input_ids.flatten() for chunk in chunks])
    assert torch.equal(text, torch.from_numpy(loader.blocks.shard.tokens.astype(np.int64)))


def test_evaluation_switches_dropout_off() -> None:
    with_dropout = _evaluate(_model(dropout=0.5), _loader())
    without = _evaluate(_model(dropout=0.0), _loader())
    assert with_dropout == without


def test_evaluation_masks_are_not_the_training_masks() -> None:
    from mlmlab.data.blocks import Order
    from mlmlab.data.loader import TrainLoader

    evaluation = _loader()
    train = TrainLoader(
        evaluation.blocks,
        Order(len(evaluation.blocks), 64, 0),
        64,
        dataclasses.replace(evaluation.masker, seed=SEEDS.masks),
        SEEDS,
    )
    _, examples = train.order.batch(0)
    masked = train.batch(0).micro_batches[0].masked.input_ids == 4
    chunks = list(evaluation.chunks())[:-1]
    rows = torch.cat([chunk.batch.masked.input_ids for chunk in chunks])[torch.from_numpy(examples)]
    both = (masked & (rows == 4)).float().mean().item()
    assert both == pytest.approx(0.12**2, rel=0.25)


def test_another_eval_seed_masks_other_tokens() -> None:
    loader = _loader()
    masker = dataclasses.replace(loader.masker, seed=Seeds.of(0, 1, 0).eval_masks)
    other = dataclasses.replace(loader, masker=masker)
    first, second = next(loader.chunks()), next(other.chunks())
    assert not torch.equal(first.batch.masked.input_ids, second.batch.masked.input_ids)


@dataclasses.dataclass
class Prediction:
    """One predicted token, scored in the plainest way."""

    document: int
    loss: float
    rank: int
    part: str


def _predictions(model: MaskedLanguageModel, loader: EvalLoader) -> list[Prediction]:
    found, first = [], 0
    offsets = loader.blocks.shard.offsets
    for chunk in (chunk.batch.masked for chunk in loader.chunks()):
        with torch.no_grad():
            logits = model(chunk.input_ids, positions=chunk.positions).double().log_softmax(-1)
        shown = chunk.input_ids.flatten()[chunk.positions].tolist()
        for number, (place, label) in enumerate(
            zip(chunk.positions.tolist(), chunk.labels.tolist(), strict=True)
        ):
            row, now = logits[number], shown[number]
            found.append(
                Prediction(
                    document=int((offsets <= first + place).sum()) - 1,
                    loss=-row[label].item(),
                    rank=row.argsort(descending=True).tolist().index(label),
                    part="masked" if now == 4 else "kept" if now == label else "random",
                )
            )
        first += chunk.input_ids.numel()
    return found


def test_the_standard_error_is_that_of_a_bootstrap_over_documents() -> None:
    rng = np.random.default_rng(0)
    model, loader = _model(), _loader()
    result = _evaluate(model, loader)
    predictions = _predictions(model, loader)
    documents = sorted({prediction.document for prediction in predictions})
    assert result.documents == len(documents)
    sums, counts = np.zeros(len(documents)), np.zeros(len(documents))
    for prediction in predictions:
        sums[documents.index(prediction.document)] += prediction.loss
        counts[documents.index(prediction.document)] += 1
    draws = rng.integers(0, len(sums), (4000, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    assert result.loss_standard_error == pytest.approx(means.std(), rel=0.1)


def test_accuracy_counts_first_choices_and_first_fives_by_part() -> None:
    model, loader = _model(), _loader()
    result = _evaluate(model, loader)
    predictions = _predictions(model, loader)
    for name, score in (("all", result), *result.parts.items()):
        own = [p for p in predictions if name in ("all", p.part)]
        assert score.masked_count == len(own) > 100
        assert score.top1_count == sum(p.rank < 1 for p in own)
        assert score.top5_count == sum(p.rank < 5 for p in own) > 0
        assert score.loss == pytest.approx(np.mean([p.loss for p in own]), rel=1e-6)
    shares = {
        name: score.masked_count / result.masked_count for name, score in result.parts.items()
    }
    assert shares == pytest.approx({"masked": 0.8, "random": 0.1, "kept": 0.1}, abs=0.02)


def test_equal_logits_are_a_guess() -> None:
    model = _model()
    for parameter in model.parameters():
        parameter.data.zero_()
    result = _evaluate(model, _loader())
    assert result.loss == pytest.approx(np.log(model.config.vocabulary_size))
    assert result.top1_count <= result.top5_count < result.masked_count / 4


def test_more_draws_score_the_same_examples_under_other_masks() -> None:
    model, loader = _model(), _loader()
    one = _evaluate(model, loader)
    three = dataclasses.replace(loader, draws=3)
    several = _evaluate(model, three)
    chunks = [chunk.batch.masked for chunk in three.chunks()]
    per_draw = len(chunks) // 3
    first, second = chunks[0], chunks[per_draw]
    assert torch.equal(first.input_ids, next(loader.chunks()).batch.masked.input_ids)
    assert not torch.equal(first.positions, second.positions)
    for chunk in (first, second):
        chunk.input_ids.flatten()[chunk.positions] = chunk.labels
    assert torch.equal(first.input_ids, second.input_ids)
    assert several.masked_count == pytest.approx(3 * one.masked_count, rel=0.05)
    assert several.loss_standard_error < one.loss_standard_error


def test_perplexity_of_an_absurd_loss_is_infinite_not_an_error() -> None:
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert math.isnan(Score(loss_sum=0.0, masked_count=0, top1_count=0, top5_count=0).loss)


def test_a_run_on_the_small_world_knows_its_floor_and_writes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = mlmlab.compose(
        "data.limit=200", "model.hidden_size=32", "train.max_steps=12", "run_dir=run",
        "eval.every_steps=6", "runtime.threads=1", "eval.fill_mask=['the cow <mask> .']",
    )  # fmt: skip
    summary = mlmlab.run(config, quiet=True).summary
    assert summary.floor_perplexity is not None
    assert 1 < summary.floor_perplexity < summary.eval_perplexity < summary.initial_eval_perplexity
    run = tmp_path / "run"
    expected = {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "export",
        "eval_documents.npz",
        "summary.json",
    }
    assert {path.name for path in run.iterdir()} == expected
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_6", "step_12"}
    assert {path.name for path in (run / "export").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "README.md", "modules.json", "1_Pooling",
        "sentence_bert_config.json",
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
    assert mlmlab.run(config, quiet=True).summary.floor_perplexity is None
