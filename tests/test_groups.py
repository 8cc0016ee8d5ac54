"""Rows and documents in groups: the same tokens, losses and gradients, and little padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlmlab.data.batch import Masker, MicroBatch
from mlmlab.data.blocks import DocumentBlocks, Order, PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.data.groups import bounds_of_groups
from mlmlab.data.loader import TrainLoader
from mlmlab.masking import MaskingConfig, VocabularyInfo
from mlmlab.model import token_losses
from mlmlab.model.families import Family
from mlmlab.random import Seeds
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.training.objective import masked_token_loss
from tests.test_training import _model

VOCABULARY = VocabularyInfo(60, 4, (0, 1, 2, 3, 4))
WIDTH = 48


def _shard(seed: int, documents: int = 40) -> Shard:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, WIDTH + 20, documents)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = draw.integers(5, 60, offsets[-1]).astype(np.uint16)
    return Shard(tokens, offsets[:-1], offsets)


def _blocks(seed: int, *, lines: bool) -> DocumentBlocks | PackedBlocks:
    if lines:
        return DocumentBlocks(_shard(seed), WIDTH, frame=([2], [3]), pad_id=1, cut_off=False)
    return PackedBlocks(_shard(seed), WIDTH, isolate=True)


def _micro_batch(seed: int, *, lines: bool, rows: int, position_multiple: int = 1) -> MicroBatch:
    blocks = _blocks(seed, lines=lines)
    masker = Masker(
        MaskingConfig(rate=0.4), VOCABULARY, seed=seed, position_multiple=position_multiple
    )
    return masker.micro_batch(blocks.take(np.arange(rows)), np.arange(rows), epoch=0)


def _sequences(micro: MicroBatch) -> list[tuple[int, ...]]:
    """What attention sees as one: ids, with the labels of what is predicted among them."""
    ids, positions, labels, _ = micro.masked
    predicted = dict(zip(positions.tolist(), labels.tolist(), strict=True))
    tokens = [(i, predicted.get(n, -100)) for n, i in enumerate(ids.flatten().tolist())]
    mask = micro.attention_mask
    real = [True] * len(tokens) if mask is None else mask.flatten().tolist()
    found = []
    begin = 0
    for rows, length in micro.groups or [tuple(ids.shape)]:
        for _ in range(rows):
            row = range(begin, begin + length)
            begin += length
            if micro.documents is None:
                found.append(tuple(tokens[n] for n in row if real[n]))
                continue
            owners = micro.documents.flatten()[row.start : row.stop].tolist()
            found += [
                tuple(tokens[n] for n, owner in zip(row, owners, strict=True) if owner == one)
                for one in dict.fromkeys(owners)
            ]
    assert begin == len(tokens)
    return sorted(found)  # type: ignore[return-value, arg-type]


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_groups_have_every_sequence_once_with_its_labels(seed: int, lines: bool) -> None:
    plain = _micro_batch(seed, lines=lines, rows=9)
    grouped = plain.in_groups()
    assert grouped.groups is not None
    assert all(length % 8 == 0 for _, length in grouped.groups)
    assert _sequences(grouped) == _sequences(plain)
    assert torch.equal(grouped.masked.labels, plain.masked.labels)  # in their order
    assert grouped.masked_count == plain.masked_count


@pytest.mark.parametrize("lines", [True, False])
def test_positions_in_addition_are_of_real_tokens_and_go_with_them(lines: bool) -> None:
    plain = _micro_batch(1, lines=lines, rows=9)
    more = _micro_batch(1, lines=lines, rows=9, position_multiple=64)
    count = len(plain.masked.positions)
    assert len(more.masked.positions) == count + -count % 64 > count
    assert len(more.masked.positions.unique()) == len(more.masked.positions)
    assert torch.equal(more.masked.positions[:count], plain.masked.positions)
    assert (more.masked.labels[count:] == -100).all()
    if more.attention_mask is not None:
        assert more.attention_mask.flatten()[more.masked.positions].all()
    ids = more.masked.input_ids.flatten()[more.masked.positions]
    grouped = more.in_groups()
    assert torch.equal(grouped.masked.input_ids[grouped.masked.positions], ids)


@pytest.mark.parametrize("lines", [True, False])
def test_a_loader_makes_groups_where_it_is_asked_to(lines: bool) -> None:
    blocks = _blocks(7, lines=lines)
    masker, seeds = Masker(MaskingConfig(), VOCABULARY), Seeds.of(0, 0, 0)
    order = Order(len(blocks), 6, 0)
    plain, grouping = (
        TrainLoader(blocks, order, 6, masker, seeds, groups_rows=asked) for asked in (False, True)
    )
    (before,), (after,) = plain.batch(0).micro_batches, grouping.batch(0).micro_batches
    assert before.groups is None
    assert after.groups is not None
    assert _sequences(after) == _sequences(before)


def test_packed_rows_without_padding_are_one_group_already() -> None:
    blocks = PackedBlocks(_shard(0), WIDTH)
    micro = Masker(MaskingConfig(), VOCABULARY).micro_batch(
        blocks.take(np.arange(4)), np.arange(4), epoch=0
    )
    assert micro.in_groups() is micro


@pytest.mark.parametrize("seed", range(20))
def test_groups_have_little_padding_and_are_few(seed: int) -> None:
    lengths = -np.sort(-np.random.default_rng(seed).integers(1, 513, 300))
    bounds = bounds_of_groups(lengths)
    assert [first for first, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == len(lengths)
    computed = sum((end - first) * lengths[first] for first, end in bounds)
    assert computed < 1.1 * lengths.sum()
    assert len(bounds) < 25


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("family", [Family.BERT, Family.ROBERTA, Family.MODERNBERT])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # the latter for the CPU's attention with dropout
def test_groups_change_neither_loss_nor_gradients(
    family: Family, lines: bool, dropout: float
) -> None:
    settings = {"local_attention": 6} if family is Family.MODERNBERT else {}
    model = _model(dropout, family=family, max_positions=WIDTH, layers=3, **settings).train()
    plain = _micro_batch(3, lines=lines, rows=9)
    results = []
    for micro in (plain, plain.in_groups()):
        model.zero_grad()
        loss = masked_token_loss(model, micro)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients))
    (loss, expected), (grouped, found) = results
    torch.testing.assert_close(grouped, loss, rtol=1e-5, atol=0)
    assert len(found) == len(list(model.parameters()))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("tokens", [1, 60, 10_000])
def test_pieces_have_every_prediction_once_and_its_loss(lines: bool, tokens: int) -> None:
    model, plain = _model(max_positions=WIDTH).eval(), _micro_batch(5, lines=lines, rows=9)
    expected = token_losses(model(**plain.model_inputs()), plain.masked.labels)
    found = torch.full_like(expected, torch.nan)
    for which, piece in plain.pieces(tokens, 16):
        assert piece.groups is not None
        assert piece.masked_count == len(which)
        assert len(piece.masked.input_ids) <= max(tokens, WIDTH)
        assert len(piece.masked.positions) % 16 == 0 or tokens < 60
        losses = token_losses(model(**piece.model_inputs()), piece.masked.labels)
        assert found[which].isnan().all()
        found[which] = losses[: len(which)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_steps_on_the_cpu_have_few_numbers_of_positions() -> None:
    cpu = Compute(torch.device("cpu"), Precision.FP32)
    assert cpu.position_multiple == replace(cpu, precision=Precision.BF16).position_multiple == 32
    assert replace(cpu, device=torch.device("cuda")).position_multiple == 1
