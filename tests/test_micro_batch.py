"""Micro-batches: masked on the host or on the device, with the same bits."""

from pathlib import Path

import numpy as np
import pytest
import torch

import mlmlab
from mlmlab.data.blocks import DocumentBlocks, PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.errors import UserError
from mlmlab.masking import Budget, MaskingConfig, Unit, VocabularyInfo
from mlmlab.micro_batch import Masker, MicroBatch

HAS_DEVICE = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_DEVICE else "cpu")  # in Triton's interpreter (conftest.py)
VOCABULARY = VocabularyInfo(300, 4, (0, 1, 2, 3, 4))
FIELDS = ("input_ids", "positions", "labels", "row_offsets", "attention_mask", "documents")
pytest.importorskip("triton")


def shard() -> Shard:
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 300, 2000).astype(np.uint16)
    offsets = np.array([0, 13, 40, 41, 300, 800, 2000])
    starts = generator.random(2000) < 0.6
    starts[offsets[:-1]] = True
    return Shard(tokens, offsets[:-1], offsets, np.packbits(starts, bitorder="little"))


def same(one: MicroBatch, other: MicroBatch) -> bool:
    assert one.token_count == other.token_count
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None and not torch.equal(a, b.cpu()):
            return False
    return True


@pytest.mark.parametrize(
    "config",
    [
        MaskingConfig(),
        MaskingConfig(rate=0.9),
        MaskingConfig(unit=Unit.WORD),
        MaskingConfig(unit=Unit.SPAN),
        MaskingConfig(unit=Unit.SPAN, budget=Budget.EXACT),
        MaskingConfig(unit=Unit.WORD, budget=Budget.EXACT),
    ],
    ids=lambda config: f"{config.unit.value}-{config.budget.value}-{config.rate}",
)
def test_a_batch_masked_on_the_device_is_that_of_the_host(config: MaskingConfig) -> None:
    examples = np.array([5, 0, 11, 2])
    packed = PackedBlocks(shard(), 64, isolate=True)
    documents = DocumentBlocks(shard(), 64, frame=((0,), (2,)), pad_id=1, cut_off=False)
    for blocks in (packed, documents):
        host, device = (
            Masker(config, VOCABULARY, device=place).micro_batch(
                blocks, examples, epoch=3, seed=7, rate=config.rate
            )
            for place in (None, DEVICE)
        )
        assert host.masked_count > 0
        assert same(host, device)


def test_more_predictions_than_there_is_room_for_are_masked_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlmlab.masking.kernel_cuda.default_capacity", lambda size, config: 64)
    blocks, examples = PackedBlocks(shard(), 64), np.arange(16)
    host, device = (
        Masker(MaskingConfig(), VOCABULARY, device=place).micro_batch(
            blocks, examples, epoch=0, seed=0, rate=0.15
        )
        for place in (None, DEVICE)
    )
    assert host.masked_count > 64
    assert same(host, device)


def test_an_id_outside_the_vocabulary_is_refused_on_the_device_too() -> None:
    masker = Masker(MaskingConfig(), VocabularyInfo(100, 4, (4,)), device=DEVICE)
    with pytest.raises(ValueError, match="an id outside the vocabulary of 100"):
        masker.micro_batch(PackedBlocks(shard(), 64), np.arange(4), epoch=0, seed=0, rate=0.15)


def test_a_run_masked_on_the_device_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    losses = []
    for place in ("cpu", "device"):
        config = mlmlab.compose(
            "data.limit=200", "train.max_steps=3", "train.batch_size=8", "model.layers=1",
            "model.hidden_size=32", "model.heads=2", "model.intermediate_size=64",
            f"runtime.mask_on={place}", "runtime.deterministic=true",
        )  # fmt: skip
        losses.append(mlmlab.run(config, quiet=True).eval_loss)
    torch.use_deterministic_algorithms(False)
    assert losses[0] == losses[1]


def test_masking_on_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    config = mlmlab.compose("runtime.mask_on=device", "runtime.device=cpu")
    with pytest.raises(UserError, match=r"runtime\.mask_on"):
        mlmlab.run(config, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_micro_batch_without_predictions_keeps_its_rows() -> None:
    masker = Masker(MaskingConfig(), VOCABULARY)
    micro = masker.micro_batch(PackedBlocks(shard(), 64), np.arange(2), epoch=0, seed=0, rate=0.5)
    empty = micro.without_predictions()
    assert micro.masked_count > 0
    assert (empty.masked_count, empty.token_count) == (0, 0)
    assert torch.equal(empty.input_ids, micro.input_ids)
    assert empty.row_offsets.tolist() == [0, 0, 0]
