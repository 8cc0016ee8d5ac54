"""Micro-batches of a fixed shape, and passes that are compiled or replayed as CUDA graphs."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from test_training import BLOCK, SEEDS, VOCABULARY, _model

from mlmlab.data.batch import Masker, MicroBatch
from mlmlab.data.blocks import DocumentBlocks, Order, PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.data.loader import TrainLoader
from mlmlab.masking import MaskingConfig
from mlmlab.model import MaskedLanguageModel
from mlmlab.runtime.config import Precision, RuntimeConfig
from mlmlab.runtime.devices import Compute, torch_settings
from mlmlab.training.backward import Backward
from mlmlab.training.objective import masked_token_loss

CPU = Compute(torch.device("cpu"), Precision.FP32)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _shard() -> Shard:
    tokens = np.random.default_rng(0).integers(5, 60, 3200).astype(np.uint16)
    return Shard(tokens, np.array([0, 30, 41]), np.array([0, 30, 41, 3200]))


def _micro_batches(
    *sizes: int, rate: float = 0.15, fixed_for_rate: float | None = 0.15, pinned: bool = False
) -> list[MicroBatch]:
    config = MaskingConfig(rate=rate)
    masker = Masker(config, VOCABULARY, pin_memory=pinned, fixed_for_rate=fixed_for_rate)
    blocks = PackedBlocks(_shard(), BLOCK)
    return [
        masker.micro_batch(blocks.take(np.arange(size)), np.arange(size), epoch=number)
        for number, size in enumerate(sizes)
    ]


def _backward(model: MaskedLanguageModel, compute: Compute = CPU) -> Backward:
    return Backward(model, compute, masked_token_loss)


def _passes(
    backward: Backward, micro_batches: list[MicroBatch], *, steps: int = 1
) -> list[torch.Tensor]:
    """All losses, and the gradients that the last step leaves."""
    model, losses = backward.model, []
    model.train()
    for step in range(steps):
        model.zero_grad(set_to_none=True)
        for number, micro in enumerate(micro_batches):
            seed = SEEDS.dropout_noise(step, number, 0)
            losses.append(backward(micro, scale=3.0, divisor=7, seed=seed).clone())
    return [*losses, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_a_fixed_shape_adds_positions_that_are_not_predicted_and_changes_no_gradient() -> None:
    sizes = (16, 16, 3)
    exact, fixed = _micro_batches(*sizes, fixed_for_rate=None), _micro_batches(*sizes)
    counts = [len(micro.masked.positions) for micro in exact]
    assert counts[0] != counts[1]
    assert [len(micro.masked.positions) for micro in fixed] == [128, 128, 48]
    for before, after, count in zip(exact, fixed, counts, strict=True):
        assert (after.has_fixed_shape, before.has_fixed_shape) == (True, False)
        assert after.masked_count == before.masked_count == count
        assert len(after.masked.positions.unique()) == len(after.masked.positions)
        for mine, theirs in zip(after.masked[1:3], before.masked[1:3], strict=True):
            assert torch.equal(mine[:count], theirs)
        assert (after.masked.labels[count:] == -100).all()
    found = _passes(_backward(_model(dropout=0.0)), fixed)
    expected = _passes(_backward(_model(dropout=0.0)), exact)
    assert len(found) == len(expected) > 20
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_gradient_is_scaled_by_a_factor_that_is_rounded_once_as_in_a_graph() -> None:
    (micro,) = _micro_batches(3)
    model = torch.nn.Linear(1, 1, bias=False)
    backward = Backward(model, CPU, lambda model, _: model.weight.sum())  # type: ignore[union-attr]
    backward(micro, scale=3.0, divisor=7, seed=0)
    assert model.weight.grad is not None
    assert model.weight.grad.item() == np.float32(3.0 / 7) != np.float32(1 / 7) * np.float32(3)


def test_more_predictions_than_expected_and_padded_rows_keep_their_own_shape() -> None:
    (many,) = _micro_batches(16, rate=0.9)
    assert not many.has_fixed_shape
    assert len(many.masked.positions) == many.masked_count > 200
    masker = Masker(MaskingConfig(), VOCABULARY, fixed_for_rate=0.15)
    rows = DocumentBlocks(_shard(), BLOCK, frame=([], []), pad_id=1, cut_off=False)
    padded = masker.micro_batch(rows.take(np.arange(3)), np.arange(3), epoch=0)
    assert padded.attention_mask is not None
    assert not padded.has_fixed_shape
    assert len(padded.masked.positions) == padded.masked_count


def test_a_fixed_shape_is_wide_enough_for_ten_thousand_batches() -> None:
    blocks = PackedBlocks(_shard(), BLOCK)
    masker = Masker(MaskingConfig(), VOCABULARY, fixed_for_rate=0.15)
    loader = TrainLoader(blocks, Order(len(blocks), 4, 0), 4, masker, SEEDS)
    batches = (loader.batch(number).micro_batches[0] for number in range(10_000))
    assert all(micro.has_fixed_shape for micro in batches)


@pytest.mark.slow
def test_a_compiled_pass_has_the_loss_and_the_gradient_of_the_plain_one() -> None:
    micro_batches = _micro_batches(16, 16, 3)
    plain = _passes(_backward(_model(dropout=0.0)), micro_batches)
    compiled = _backward(_model(dropout=0.0), dataclasses.replace(CPU, compile=True))
    torch._dynamo.reset()
    found = _passes(compiled, micro_batches)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each shape
    for mine, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_passes_are_never_compiled_again_for_another_number_of_predictions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Which calls need another graph is Dynamo's to say; Inductor would take half a minute a graph.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled = _backward(_model(dropout=0.1), dataclasses.replace(CPU, compile=True))
    torch._dynamo.reset()
    _passes(compiled, _micro_batches(16, 3))
    later = _micro_batches(*[16] * 20, *[3] * 20)
    assert len({micro.masked_count for micro in later}) > 10
    with torch.compiler.set_stance("fail_on_recompile"):
        _passes(compiled, later)
        with pytest.raises(RuntimeError, match="recompile"):
            _passes(compiled, _micro_batches(5))


def _on_cuda(**changes: object) -> tuple[MaskedLanguageModel, Compute]:
    compute = Compute(torch.device("cuda"), Precision.FP32)
    return _model(dropout=0.1).to(compute.device), dataclasses.replace(compute, **changes)  # type: ignore[arg-type]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """By default `index_add_` on CUDA has other bits each time, as has attention in fp32."""
    with torch_settings(RuntimeConfig(deterministic=True)):
        yield


@needs_cuda
@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", list(Precision)[1:])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_replayed_pass_has_the_bits_of_the_plain_one(precision: Precision, pinned: bool) -> None:
    micro_batches = _micro_batches(16, 16, 3, 16, 3, pinned=pinned)
    plain = _backward(*_on_cuda(precision=precision))
    graphs = _backward(*_on_cuda(precision=precision, cuda_graphs=True))
    expected = _passes(plain, micro_batches, steps=3)
    found = _passes(graphs, micro_batches, steps=3)
    assert len(graphs._graphs) == 2
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@needs_cuda
@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
def test_a_replayed_compiled_pass_follows_the_compiled_one() -> None:
    micro_batches = _micro_batches(16, 16, pinned=True)
    plain = _backward(*_on_cuda(compile=True))
    graphs = _backward(*_on_cuda(compile=True, cuda_graphs=True))
    expected = _passes(plain, micro_batches, steps=3)
    found = _passes(graphs, micro_batches, steps=3)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@needs_cuda
@pytest.mark.gpu
def test_a_vocabulary_of_any_size_has_the_logits_of_the_cpu() -> None:
    model = _model(dropout=0.0, vocabulary_size=61).eval()
    ids = torch.arange(48).view(4, 12) % 61
    expected = model(ids)
    logits = model.to("cuda")(ids.to("cuda"))
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-5)
