"""Lines, documents and isolated documents: what an example holds, and what its tokens see."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import chi_square
from shares import SEEDS

from mlmlab.data.batch import Masker
from mlmlab.data.blocks import DocumentBlocks, Order, PackedBlocks, SampledBlocks
from mlmlab.data.config import TokenizerKind
from mlmlab.data.corpus import Shard
from mlmlab.data.loader import EvalLoader, TrainLoader
from mlmlab.data.tokenizer import train_tokenizer
from mlmlab.evaluation.masked_perplexity import evaluate
from mlmlab.masking import MaskingConfig, VocabularyInfo
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
from mlmlab.model.families import ARCHITECTURES
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.tracking.progress_bar import ProgressBar

CLS, PAD, SEP, UNK, MASK = range(5)
VOCABULARY = VocabularyInfo(60, MASK, (CLS, PAD, SEP, UNK, MASK))
FRAME = ([CLS], [SEP])
CPU = Compute(torch.device("cpu"), Precision.FP32)


def shard_of(inner_lengths: list[int]) -> Shard:
    """Framed documents of N tokens each, numbered through."""
    documents, token = [], 5
    for length in inner_lengths:
        inner = [5 + (token + place) % 55 for place in range(length)]
        token += length
        documents.append([CLS, *inner, SEP])
    tokens = np.array([token for document in documents for token in document], np.uint16)
    offsets = np.cumsum([0, *map(len, documents)])
    return Shard(tokens, offsets[:-1], offsets)


def inner_tokens(shard: Shard, document: int) -> list[int]:
    start, end = shard.offsets[document : document + 2]
    return shard.tokens[start + 1 : end - 1].tolist()  # type: ignore[no-any-return]


def blocks_of(shard: Shard, size: int, *, cut_off: bool, pad_id: int = PAD) -> DocumentBlocks:
    return DocumentBlocks(shard, size, frame=FRAME, pad_id=pad_id, cut_off=cut_off)


def rows_of(blocks: DocumentBlocks, examples: NDArray[np.int64]) -> list[list[int]]:
    rows = blocks.take(examples)
    assert rows.lengths is not None
    width = rows.input_ids.shape[1]
    assert width == blocks.block_size or width % 8 == 0
    for row, length in zip(rows.input_ids, rows.lengths, strict=True):
        assert (row[length:] == blocks.pad_id).all()
    return [row[:length].tolist() for row, length in zip(rows.input_ids, rows.lengths, strict=True)]


# What an example holds


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    size=st.integers(3, 24),
    draw=st.randoms(use_true_random=False),
)
def test_documents_are_split_without_losing_a_token_and_framed_again(
    lengths: list[int], size: int, draw: Any
) -> None:
    shard = shard_of(lengths)
    blocks = blocks_of(shard, size, cut_off=False)
    order = list(range(len(blocks)))
    draw.shuffle(order)
    taken = dict(zip(order, rows_of(blocks, np.array(order)), strict=True))
    joined: dict[int, list[int]] = {document: [] for document in range(len(lengths))}
    for example in range(len(blocks)):
        row = taken[example]
        assert 2 <= len(row) <= size
        assert (row[0], row[-1]) == (CLS, SEP)
        (owner,) = blocks.document_ids(np.array([example]), np.array([0]))
        joined[int(owner)] += row[1:-1]
    assert joined == {document: inner_tokens(shard, document) for document in joined}
    assert blocks.dropped_tokens == 0


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=20), size=st.integers(3, 24))
def test_a_line_is_one_example_cut_off_at_the_block_and_the_rest_counted(
    lengths: list[int], size: int
) -> None:
    shard = shard_of(lengths)
    blocks = blocks_of(shard, size, cut_off=True)
    assert len(blocks) == len(lengths)
    for document, row in enumerate(rows_of(blocks, np.arange(len(blocks)))):
        assert row == [CLS, *inner_tokens(shard, document)[: size - 2], SEP]
    assert blocks.dropped_tokens == sum(max(0, length - (size - 2)) for length in lengths)
    assert (f"{blocks.dropped_tokens:,} tokens cut off" in blocks.account()) == (
        blocks.dropped_tokens > 0
    )


def test_rows_are_only_as_wide_as_their_longest() -> None:
    blocks = blocks_of(shard_of([3, 9, 100]), 128, cut_off=False)
    assert blocks.take(np.array([0])).input_ids.shape == (1, 8)
    assert blocks.take(np.array([0, 1])).input_ids.shape == (2, 16)
    assert blocks.take(np.array([0, 2])).input_ids.shape == (2, 104)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=8, max_size=20),
    layout=st.sampled_from(["packed", "kept rest", "lines", "documents"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_sample_is_some_of_the_full_examples_in_their_order(
    lengths: list[int], layout: str, seed: int
) -> None:
    shard = shard_of(lengths)
    blocks: Any = PackedBlocks(shard, 8, keep_rest=layout == "kept rest")
    if layout in ("lines", "documents"):
        blocks = blocks_of(shard, 8, cut_off=layout == "lines")
    whole = SampledBlocks(blocks, blocks.full_examples, seed)
    assert whole.chosen.tolist() == list(range(blocks.full_examples))
    count = max(1, blocks.full_examples // 2)
    sample = SampledBlocks(blocks, count, seed)
    assert len(sample) == sample.full_examples == len(set(sample.chosen.tolist())) == count
    assert sorted(sample.chosen) == sample.chosen.tolist()
    ids = np.arange(count)
    taken, same = sample.take(ids), blocks.take(sample.chosen)
    assert taken.input_ids.tolist() == same.input_ids.tolist()
    owners = sample.document_ids(ids, np.zeros_like(ids))
    assert owners.tolist() == blocks.document_ids(sample.chosen, np.zeros_like(ids)).tolist()
    assert sample.account().startswith(f"{count} of {blocks.full_examples} ")


def test_every_example_is_as_likely_in_a_sample() -> None:
    blocks = PackedBlocks(shard_of([30] * 10), 16)  # 20 examples, of which 5 are drawn
    counts = np.zeros(20, np.int64)
    for seed in range(2000):
        counts[SampledBlocks(blocks, 5, seed).chosen] += 1
    assert chi_square.p_value(counts) > 1e-4


def test_the_rest_of_a_packed_shard_is_dropped_or_a_shorter_example() -> None:
    shard = shard_of([5, 9, 20])  # 40 tokens
    dropped, kept = PackedBlocks(shard, 16), PackedBlocks(shard, 16, keep_rest=True)
    assert (len(dropped), dropped.dropped_tokens) == (2, 8)
    assert (len(kept), kept.dropped_tokens, kept.full_examples) == (3, 0, 2)
    assert kept.take(np.array([2])).input_ids.tolist() == [shard.tokens[32:].tolist()]
    whole = PackedBlocks(shard, 8, keep_rest=True)
    assert (len(whole), whole.full_examples) == (5, 5)


def test_isolated_blocks_say_which_document_each_token_is_of() -> None:
    shard = shard_of([1, 4, 2, 30])  # framed: 3, 6, 4, 32
    blocks = PackedBlocks(shard, 9, isolate=True)
    assert PackedBlocks(shard, 9).take(np.array([0])).documents is None
    documents = blocks.take(np.array([1, 0])).documents
    assert documents is not None
    assert documents.tolist() == [[2, 2, 2, 2, 3, 3, 3, 3, 3], [0, 0, 0, 1, 1, 1, 1, 1, 1]]
    assert blocks.document_ids(np.array([0, 1]), np.array([3, 3])).tolist() == [1, 2]


@pytest.mark.parametrize("kind", TokenizerKind)
def test_a_tokenizers_frame_is_what_it_puts_around_a_text(kind: TokenizerKind) -> None:
    tokenizer = train_tokenizer(["some words to learn from"] * 9, kind, 400)
    first, last = tokenizer.roles["cls_token"], tokenizer.roles["sep_token"]
    ids = tokenizer.backend.token_to_id
    assert tokenizer.frame == ([ids(first)], [ids(last)])
    framed = tokenizer.encode("some words")
    assert framed == [ids(first), *framed[1:-1], ids(last)]
    tokenizer.backend.post_processor = None  # type: ignore[assignment]
    del tokenizer.__dict__["frame"]
    assert tokenizer.frame == ([], [])


# What is masked and scored


@pytest.mark.parametrize("cut_off", [True, False])
@pytest.mark.parametrize("pad_id", [PAD, SEP, MASK])
def test_padding_is_never_predicted_whatever_id_pads(cut_off: bool, pad_id: int) -> None:
    blocks = blocks_of(shard_of([3, 20, 7, 60] * 20), 32, cut_off=cut_off, pad_id=pad_id)
    loader = EvalLoader(blocks, Masker(MaskingConfig(rate=0.9), VOCABULARY, SEEDS.eval_masks))
    real = 0
    for chunk in loader.chunks():
        batch = chunk.batch
        assert batch.attention_mask is not None
        assert batch.attention_mask.flatten()[batch.masked.positions].all()
        restored = batch.masked.input_ids.flatten().clone()
        restored[batch.masked.positions] = batch.masked.labels
        assert (restored[~batch.attention_mask.flatten()] == pad_id).all()
        real += batch.token_count
    kept = len(blocks.shard.tokens) - blocks.dropped_tokens
    assert real == kept + 2 * (len(blocks) - blocks.shard.documents)


def _model(family: Family, dropout: float = 0.0) -> MaskedLanguageModel:
    model = MaskedLanguageModel(
        ModelConfig(
            family=family,
            vocabulary_size=60,
            hidden_size=32,
            layers=2,
            heads=4,
            intermediate_size=64,
            max_positions=64,
            **ARCHITECTURES[family].checkpoint_defaults(),
            pad_id=PAD,
            initializer_range=0.3,  # wide, so that tokens do influence each other
            dropout=dropout,
            attention_dropout=dropout,
        )
    )
    model.initialize(0)
    return model.eval()


@pytest.mark.parametrize("family", [Family.ROBERTA, Family.DISTILBERT, Family.MODERNBERT])
def test_padded_rows_are_scored_as_each_row_alone(family: Family) -> None:
    blocks = blocks_of(shard_of([3, 20, 7, 60] * 20), 32, cut_off=False)
    loader = EvalLoader(blocks, Masker(MaskingConfig(), VOCABULARY, SEEDS.eval_masks))
    model = _model(family)
    result = evaluate(model, loader, CPU, ProgressBar(0, quiet=True))
    alone = 0.0
    for chunk in loader.chunks():
        batch = chunk.batch
        assert batch.attention_mask is not None
        width = batch.masked.input_ids.shape[1]
        for row, mask in enumerate(batch.attention_mask):
            chosen = (batch.masked.positions >= row * width) & (
                batch.masked.positions < (row + 1) * width
            )
            if chosen.any():
                with torch.no_grad():
                    logits = model(batch.masked.input_ids[row, mask][None])[0]
                places = batch.masked.positions[chosen] - row * width
                losses = logits[places].double().log_softmax(-1)
                alone -= losses.gather(1, batch.masked.labels[chosen][:, None]).sum().item()
    assert result.loss == pytest.approx(alone / result.masked_count, rel=1e-5)
    assert result.documents <= blocks.shard.documents


def test_every_line_is_trained_on_once_an_epoch_and_only_real_tokens_are_counted() -> None:
    blocks = blocks_of(shard_of([3, 20, 7] * 10), 32, cut_off=False)
    masker = Masker(MaskingConfig(), VOCABULARY)
    loader = TrainLoader(blocks, Order(len(blocks), 8, 0), 4, masker, seeds=SEEDS)
    tokens = sum(loader.batch(number).token_count for number in range(4))
    assert tokens == len(blocks.shard.tokens)


# What the tokens of packed documents see


def packed_row(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents A, B and C of 10, 14 and 8 tokens, in one row."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(5, 60, (1, 32)))
    documents = torch.tensor([[0] * 10 + [1] * 14 + [2] * 8])
    return ids, documents


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("gathered", [False, True])
def test_an_edit_of_one_document_leaves_the_others_logits_bit_identical(
    family: Family, gathered: bool
) -> None:
    model = _model(family)
    ids, documents = packed_row(0)
    edited = ids.clone()
    edited[0, :10] = packed_row(1)[0][0, :10]  # all of A
    positions = torch.arange(32) if gathered else None
    with torch.no_grad():
        first = model(ids, positions=positions, documents=documents).view(32, -1)
        second = model(edited, positions=positions, documents=documents).view(32, -1)
        open_first = model(ids, positions=positions).view(32, -1)
        open_second = model(edited, positions=positions).view(32, -1)
    assert torch.equal(first[10:], second[10:])
    assert not torch.equal(first[:10], second[:10])
    assert (open_first[10:] - open_second[10:]).abs().max() > 1e-3


@pytest.mark.parametrize("family", Family)
def test_an_isolated_document_is_read_as_if_it_were_alone(family: Family) -> None:
    model = _model(family)
    ids, documents = packed_row(0)
    with torch.no_grad():
        together = model(ids, documents=documents)[0]
        alone = [model(ids[:, documents[0] == number])[0] for number in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_isolation_reaches_the_loss_of_training_and_evaluation() -> None:
    shard = shard_of([7, 12, 3] * 40)
    losses = []
    for isolate in (False, True):
        blocks = PackedBlocks(shard, 32, isolate=isolate, keep_rest=True)
        loader = EvalLoader(blocks, Masker(MaskingConfig(), VOCABULARY, SEEDS.eval_masks))
        losses.append(
            evaluate(_model(Family.ROBERTA), loader, CPU, ProgressBar(0, quiet=True)).loss
        )
        train = TrainLoader(
            blocks, Order(4, 4, 0), 4, Masker(MaskingConfig(), VOCABULARY), seeds=SEEDS
        )
        assert (train.batch(0).micro_batches[0].documents is not None) == isolate
    assert all(map(math.isfinite, losses))
    assert abs(losses[0] - losses[1]) > 1e-3


def test_padding_and_documents_at_once_are_refused() -> None:
    ids, documents = packed_row(0)
    with pytest.raises(ValueError, match="documents: packed rows have no padding"):
        _model(Family.BERT)(ids, torch.ones(1, 32, dtype=torch.bool), documents=documents)
