"""One step, many steps, and what they leave on the disk."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shares import SEEDS

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import Order, PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.data.loader import EvalLoader, StepBatch, TrainLoader
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.errors import RunFailed
from mlmlab.evaluation.masked_perplexity import PIECE_TOKENS, evaluate
from mlmlab.masking import EvalMaskingConfig, MaskingConfig, MaskingMode, VocabularyInfo
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
from mlmlab.model.families import ARCHITECTURES
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import ALONE
from mlmlab.tracking.progress_bar import ProgressBar
from mlmlab.training.config import TrainConfig
from mlmlab.training.memory import expected_memory_bytes
from mlmlab.training.optimizer import build_optimizers
from mlmlab.training.parallel import Replica
from mlmlab.training.schedule import SCHEDULES, constant, cosine, learning_rate_factor, linear
from mlmlab.training.state import (
    ProgressRecord,
    checkpoint_folders,
    load_state,
    remove_old,
    save_state,
)
from mlmlab.training.step import StepResult, train_step

VOCABULARY = VocabularyInfo(60, 4, (0, 1, 2, 3, 4))
CPU = Compute(torch.device("cpu"), Precision.FP32)
BLOCK = 16

TOKENIZER = word_tokenizer([f"w{number}" for number in range(55)])


def _model(
    dropout: float = 0.0, seed: int = 0, family: Family = Family.ROBERTA, **changes: int
) -> MaskedLanguageModel:
    config = ModelConfig(
        family=family,
        vocabulary_size=60,
        hidden_size=32,
        layers=2,
        heads=4,
        intermediate_size=64,
        max_positions=BLOCK,
        **ARCHITECTURES[family].checkpoint_defaults(),
        pad_id=1,
        initializer_range=0.02,
        dropout=dropout,
        attention_dropout=dropout,
    )
    model = MaskedLanguageModel(dataclasses.replace(config, **changes))
    model.initialize(seed)
    return model


def _loader(micro_batch_size: int, *, rate: float = 0.15, batch_size: int = 16) -> TrainLoader:
    tokens = np.random.default_rng(0).integers(5, 60, 50 * BLOCK).astype(np.uint16)
    blocks = PackedBlocks(Shard(tokens, np.array([0]), np.array([0, len(tokens)])), BLOCK)
    return TrainLoader(
        blocks=blocks,
        order=Order(len(blocks), batch_size, 0),
        micro_batch_size=micro_batch_size,
        objective=Masker(MaskingConfig(rate=rate), VOCABULARY),
        seeds=SEEDS,
    )


def _step(
    model: MaskedLanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: StepBatch,
    *,
    learning_rate: float = 1e-3,
    max_grad_norm: float = 0.0,
    compute: Compute = CPU,
) -> StepResult:
    return train_step(
        Replica(model, ALONE, compute),
        [optimizer],
        batch,
        schedule_factor=learning_rate / optimizer.param_groups[0]["initial_lr"],
        max_grad_norm=max_grad_norm,
        seeds=SEEDS,
        suppressed=torch.zeros(()),
    )


@pytest.fixture
def train_config() -> Iterator[object]:
    return mlmlab.compose().train  # type: ignore[return-value]


def _gradient(model: MaskedLanguageModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def _optimizer(model: MaskedLanguageModel) -> torch.optim.AdamW:
    (optimizer,) = build_optimizers(model, mlmlab.compose().train)
    return optimizer


def test_accumulation_changes_the_gradient_by_rounding_only() -> None:
    gradients, losses, norms = [], [], []
    for micro_batch_size in (16, 8, 4, 2):
        model = _model()
        batch = _loader(micro_batch_size).batch(0)
        assert len(batch.micro_batches) == 16 // micro_batch_size
        assert (
            len({micro.masked_count for micro in batch.micro_batches}) > 1 or micro_batch_size > 8
        )
        result = _step(model, _optimizer(model), batch)
        gradients.append(_gradient(model))
        losses.append(result.loss_sum.item() / batch.masked_count)
        norms.append(result.grad_norm.item())
    for gradient, loss, norm in zip(gradients[1:], losses[1:], norms[1:], strict=True):
        assert (gradient - gradients[0]).norm() <= 1e-6 * gradients[0].norm()
        assert loss == pytest.approx(losses[0], rel=1e-6)
        assert norm == pytest.approx(norms[0], rel=1e-6)


def test_masks_do_not_depend_on_the_micro_batch_size() -> None:
    for number in (0, 2, 3, 7):
        whole = _loader(16).batch(number).micro_batches[0]
        parts = _loader(3).batch(number).micro_batches
        assert torch.equal(
            torch.cat([part.masked.input_ids for part in parts]), whole.masked.input_ids
        )
        assert torch.equal(torch.cat([part.masked.labels for part in parts]), whole.masked.labels)


def test_the_last_batch_of_an_epoch_is_short_and_counts_its_own_tokens() -> None:
    loader = _loader(16)  # 50 examples: 16, 16, 16, 2
    last = loader.batch(3)
    assert (last.epoch, len(last.micro_batches[0].masked.input_ids)) == (0, 2)
    assert last.token_count == 2 * BLOCK
    assert last.masked_count == last.micro_batches[0].masked_count
    assert loader.batch(4).epoch == 1


def test_batches_prepared_ahead_are_those_asked_for_one_by_one() -> None:
    loader = _loader(8)
    ahead = loader.batches(2, 0)
    for number in range(2, 9):
        batch = next(ahead)
        assert batch.number == number
        for micro, expected in zip(
            batch.micro_batches, loader.batch(number).micro_batches, strict=True
        ):
            assert torch.equal(micro.masked.input_ids, expected.masked.input_ids)
    ahead.close()  # type: ignore[attr-defined]


def test_static_masking_repeats_the_masks_and_dynamic_masking_does_not() -> None:
    for mode, same in ((MaskingMode.STATIC, True), (MaskingMode.DYNAMIC, False)):
        loader = _loader(50, batch_size=50)
        masker = Masker(MaskingConfig(mode=mode), VOCABULARY)
        loader = dataclasses.replace(loader, objective=masker)
        epochs = []
        for number in (0, 1):
            _, examples = loader.order.batch(number)
            ids = loader.batch(number).micro_batches[0].masked.input_ids
            epochs.append(ids[torch.from_numpy(examples).argsort()])
        assert torch.equal(epochs[0], epochs[1]) is same


def test_dropout_noise_is_a_function_of_seed_batch_and_micro_batch() -> None:
    results = []
    for disturbance in (0, 7):
        model = _model(dropout=0.1)
        torch.manual_seed(disturbance)  # whatever was drawn before must not matter
        torch.rand(disturbance + 1)
        _step(model, _optimizer(model), _loader(4).batch(1))
        results.append(_gradient(model))
    assert torch.equal(results[0], results[1])
    model = _model(dropout=0.1)
    batch = dataclasses.replace(_loader(4).batch(1), number=2)  # the same data, another number
    _step(model, _optimizer(model), batch)
    assert not torch.equal(_gradient(model), results[0])


def test_clipping_scales_the_gradient_to_the_norm() -> None:
    model = _model()
    result = _step(model, _optimizer(model), _loader(16).batch(0), max_grad_norm=0.01)
    assert result.grad_norm.item() > 0.1
    assert _gradient(model).norm().item() == pytest.approx(0.01, rel=1e-4)


def test_biases_and_norms_are_not_decayed() -> None:
    model = _model()
    model.embeddings.norm.weight.data.fill_(1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (optimizer,) = build_optimizers(
        model, dataclasses.replace(mlmlab.compose().train, weight_decay=0.5)
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim >= 2 else 1.0
        assert torch.allclose(parameter, before[name] * factor), name


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_non_finite_gradient_never_reaches_the_weights(poison: float) -> None:
    model = _model()
    optimizer = _optimizer(model)
    loader = _loader(16)
    _step(model, optimizer, loader.batch(0))  # moments exist
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    handle = model.head.dense.weight.register_hook(lambda grad: grad * poison)
    result = _step(model, optimizer, loader.batch(1), max_grad_norm=1.0)
    assert result.non_finite.item() == 1
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    after = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))
    handle.remove()
    assert _step(model, optimizer, loader.batch(2)).non_finite.item() == 0
    assert not torch.equal(model.head.dense.weight, before["head.dense.weight"])


def test_bf16_autocast_stays_close_to_fp32_and_keeps_fp32_weights() -> None:
    losses = {}
    for precision in (Precision.FP32, Precision.BF16):
        model = _model()
        optimizer = _optimizer(model)
        compute = Compute(torch.device("cpu"), precision)
        loader = _loader(16)
        for number in range(10):
            batch = loader.batch(number)
            result = _step(model, optimizer, batch, compute=compute)
            losses[precision, number] = result.loss_sum.item() / batch.masked_count
        assert result.loss_sum.dtype is torch.float32
        assert all(p.dtype is torch.float32 for p in model.parameters())
    for number in range(10):
        assert losses[Precision.BF16, number] == pytest.approx(
            losses[Precision.FP32, number], rel=0.01
        )
    assert losses[Precision.BF16, 0] != losses[Precision.FP32, 0]  # it did compute in bf16


def test_the_schedule_is_that_of_transformers_after_warmup() -> None:
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    for schedule, reference in (
        (linear, get_linear_schedule_with_warmup),
        (cosine, get_cosine_schedule_with_warmup),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = reference(optimizer, 5, 40)
        for steps in range(40):
            if steps >= 5:
                ours = learning_rate_factor(steps, 40, 5, schedule)
                assert ours == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            scheduler.step()
    assert learning_rate_factor(39, 40, 5, constant) == 1.0


def test_no_step_is_wasted_on_a_rate_of_zero() -> None:
    for schedule in SCHEDULES.values():
        for total, warmup in ((1, 0), (10, 0), (10, 3), (10, 10), (3, 100)):
            factors = [learning_rate_factor(k, total, warmup, schedule) for k in range(total)]
            assert all(0 < factor <= 1 for factor in factors), (schedule, total, warmup)


def test_a_saved_state_continues_with_the_same_bits(tmp_path: Path) -> None:
    loader = _loader(8)

    def train(model: MaskedLanguageModel, optimizer: torch.optim.AdamW, numbers: range) -> None:
        for number in numbers:
            _step(model, optimizer, loader.batch(number))

    straight = _model(dropout=0.1)
    straight_optimizer = _optimizer(straight)
    train(straight, straight_optimizer, range(3))
    record = ProgressRecord(batches=3, steps=3, tokens=99, initial_eval_loss=4.5)
    folder = tmp_path / "checkpoints" / "step_3"
    save_state(folder, Replica(straight, ALONE, CPU), TOKENIZER, [straight_optimizer], record, "")
    train(straight, straight_optimizer, range(3, 6))

    resumed = _model(dropout=0.1, seed=1)
    resumed_optimizer = _optimizer(resumed)
    assert load_state(folder, Replica(resumed, ALONE, CPU), [resumed_optimizer]) == record
    train(resumed, resumed_optimizer, range(3, 6))
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("max_grad_norm", [0.01, 100.0])
def test_clipping_in_the_fused_optimizer_is_that_before_another(max_grad_norm: float) -> None:
    batch, weights, gradients = _loader(16).batch(0), [], []
    for fused in (True, False):
        model = _model()
        # A large epsilon: by itself, Adam's first step is the same for any clipping.
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=0.01, fused=fused)
        optimizer.param_groups[0] |= {"initial_lr": 0.1, "rate_factor": 1.0}
        result = _step(model, optimizer, batch, max_grad_norm=max_grad_norm)
        assert 0.1 < result.grad_norm.item() < 10  # before clipping
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        gradients.append(_gradient(model))
    assert gradients[0].norm() == pytest.approx(min(max_grad_norm, result.grad_norm.item()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


def test_old_checkpoints_are_removed_by_number_not_by_name(tmp_path: Path) -> None:
    model = _model()
    optimizer = _optimizer(model)
    for step in (2, 9, 10, 100):
        folder = tmp_path / "checkpoints" / f"step_{step}"
        record = ProgressRecord(steps=step)
        save_state(folder, Replica(model, ALONE, CPU), TOKENIZER, [optimizer], record, "")
    remove_old(tmp_path, 2, ProgressRecord(steps=100, best_step=2))
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [
        "step_2",
        "step_10",
        "step_100",
    ]


def test_a_checkpoint_that_could_not_be_finished_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    model = _model()
    monkeypatch.setattr("mlmlab.training.state.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(
            tmp_path / "checkpoints" / "step_1",
            Replica(model, ALONE, CPU),
            TOKENIZER,
            [_optimizer(model)],
            ProgressRecord(),
            "",
        )
    assert checkpoint_folders(tmp_path) == []


SHORT = (
    "data.limit=60",
    "data.block_size=32",
    "model.hidden_size=32",
    "model.layers=1",
    "train.batch_size=8",
    "train.log_every_steps=2",
    "runtime.threads=1",
)


def test_a_run_with_the_same_config_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = []
    for name in ("a", "b"):
        config = mlmlab.compose(*SHORT, "train.max_steps=12", f"run_dir={name}")
        runs.append(mlmlab.run(config, quiet=True).summary)
    assert runs[0].eval_loss == runs[1].eval_loss
    weights = [(tmp_path / n / "export" / "model.safetensors").read_bytes() for n in "ab"]
    assert weights[0] == weights[1]
    other = mlmlab.run(mlmlab.compose(*SHORT, "train.max_steps=12", "seed=1"), quiet=True).summary
    assert other.eval_loss != runs[0].eval_loss
    assert other.eval_masked_tokens == runs[0].eval_masked_tokens  # the test set is the same


def test_max_steps_counts_steps_and_epochs_count_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mlmlab.run(mlmlab.compose(*SHORT, "train.max_steps=3"), quiet=True).summary.steps == 3
    two = mlmlab.run(mlmlab.compose(*SHORT, "train.epochs=2"), quiet=True).summary
    one = mlmlab.run(mlmlab.compose(*SHORT, "train.epochs=1"), quiet=True).summary
    assert (two.steps, two.tokens) == (2 * one.steps, 2 * one.tokens)


def test_a_diverging_run_stops_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = mlmlab.compose(*SHORT, "train.learning_rate=1e30", "train.max_steps=20")
    with pytest.raises(RunFailed, match="not finite"):
        mlmlab.run(config, quiet=True)
    assert not list(tmp_path.glob("runs/*/*/summary.json"))


def test_overfitting_one_batch_drives_the_loss_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    config = mlmlab.compose(*SHORT, "model.hidden_size=64", "debug=overfit", "run_dir=run")
    mlmlab.run(config, quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    losses = [event["train/loss"] for event in events if "train/loss" in event]
    assert losses[0] > 4
    assert losses[-1] < 0.1


def test_debug_overfit_evaluates_at_the_ends_only() -> None:
    config = mlmlab.compose("debug=overfit")
    assert config.eval.every_steps == config.train.max_steps


def test_a_cuda_device_can_be_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "H200")
    assert str(Compute(torch.device("cuda"), Precision.BF16)) == "cuda (H200), bf16"
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert str(CPU) == "cpu (1 thread), fp32"


def test_the_reported_speed_leaves_the_evaluations_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlmlab.training import loop

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return evaluate(*arguments, **options)

    evaluate = loop.evaluate
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "evaluate", slow)
    summary = mlmlab.run(mlmlab.compose(*SHORT, "train.max_steps=4"), quiet=True).summary
    assert summary.tokens / summary.tokens_per_second <= summary.seconds - 2 * 0.5


def test_weights_that_are_not_finite_are_refused_at_the_first_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MaskedLanguageModel, "initialize", _poison)
    with pytest.raises(RunFailed, match="evaluation's loss is nan"):
        mlmlab.run(mlmlab.compose(*SHORT), quiet=True)


def _poison(model: MaskedLanguageModel, seed: int) -> None:
    with torch.no_grad():
        model.head.dense.weight.fill_(math.nan)


def _peak_bytes(work: Callable[[], object]) -> int:
    """Of the CPU's tensors, above those that are there before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    sizes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return int(np.cumsum([size for _, size in sorted(sizes)]).max())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("family", [Family.ROBERTA, Family.MODERNBERT])
@pytest.mark.parametrize(
    ("sizes", "micro_batches", "checkpointing"),
    [
        ({"hidden_size": 256, "layers": 6, "vocabulary_size": 500}, 1, False),
        ({"hidden_size": 64, "layers": 4, "vocabulary_size": 20_000}, 1, False),
        ({"hidden_size": 256, "layers": 6, "vocabulary_size": 5000}, 2, False),
        ({"hidden_size": 256, "layers": 6, "vocabulary_size": 500}, 1, True),
    ],
)
def test_the_memory_that_a_run_announces_is_near_the_peak_of_its_step(
    dropout: float, precision: Precision, family: Family, sizes: dict[str, int],
    micro_batches: int, checkpointing: bool,
) -> None:  # fmt: skip
    compute = dataclasses.replace(CPU, precision=precision)
    if compute.is_emulated:
        pytest.skip("bf16 is emulated on this CPU: a minute for each case")
    rows, length = 16, 128
    inner = 4 * sizes["hidden_size"]
    model = _model(dropout, family=family, intermediate_size=inner, max_positions=length, **sizes)
    model.gradient_checkpointing = checkpointing
    replica, optimizers = Replica(model, ALONE, compute), build_optimizers(model, TrainConfig())
    known = VocabularyInfo(sizes["vocabulary_size"], 4, (0, 1, 2, 3, 4))
    ids = np.random.default_rng(0).integers(5, 400, rows * length * 8).astype(np.uint16)
    offsets = np.array([0, len(ids)])
    blocks = PackedBlocks(Shard(ids, offsets[:1], offsets), length)
    order = Order(len(blocks), rows * micro_batches, 0)
    loader = TrainLoader(blocks, order, rows, Masker(MaskingConfig(), known), SEEDS)

    def step(number: int) -> None:
        train_step(
            replica, optimizers, loader.batch(number), schedule_factor=1.0, max_grad_norm=1.0,
            seeds=SEEDS, suppressed=torch.zeros(()),
        )  # fmt: skip

    step(0)  # now there are moments
    model.zero_grad()  # which the step does at once: the profiler may count what is not its own
    peak = 12 * model.parameter_count() + _peak_bytes(partial(step, 1))
    expected = expected_memory_bytes(
        model, compute, examples=rows, length=length, masked_tokens=round(rows * length * 0.15),
        accumulates=micro_batches > 1,
    )  # fmt: skip
    assert 0.9 < expected / peak < 1.1


@pytest.mark.parametrize(("hidden", "vocabulary"), [(256, 500), (64, 20_000)])
def test_the_memory_of_an_evaluation_is_near_what_it_takes(hidden: int, vocabulary: int) -> None:
    model = _model(
        hidden_size=hidden, intermediate_size=4 * hidden, vocabulary_size=vocabulary, layers=2,
        max_positions=128,
    )  # fmt: skip
    rows, length = 64, 128
    count = rows * length
    blocks = PackedBlocks(
        Shard(np.arange(count).astype(np.uint16) % 400 + 5, np.zeros(1, np.int64),
              np.array([0, count])),
        length,
    )  # fmt: skip
    known = VocabularyInfo(vocabulary, 4, (0, 1, 2, 3, 4))
    masker = Masker(EvalMaskingConfig(), known, SEEDS.eval_masks)
    loader = EvalLoader(blocks, masker)
    taken = _peak_bytes(lambda: evaluate(model, loader, CPU, ProgressBar(0, quiet=True)))
    states = 16 * model.parameter_count()
    expected = expected_memory_bytes(
        model,
        CPU,
        examples=PIECE_TOKENS // length,
        length=length,
        masked_tokens=round(PIECE_TOKENS * 0.15),
        trains=False,
    )
    assert 0.6 < (expected - states) / taken < 1.4
