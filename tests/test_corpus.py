"""Documents become shards, shards blocks, blocks batches: nothing lost, nothing twice."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from refusals import refusal

from mlmlab.data import corpus as corpus_module
from mlmlab.data.blocks import Order, PackedBlocks
from mlmlab.data.config import OnBadRow, TokenizerKind
from mlmlab.data.corpus import Corpus, Shard, TrainingDocuments, is_test_document, open_corpus
from mlmlab.data.formats import BadRows
from mlmlab.data.sources import FileSource, TextSource
from mlmlab.data.tokenizer import Tokenizer, train_tokenizer, word_tokenizer
from mlmlab.errors import Code

WORDS = word_tokenizer([f"w{number}" for number in range(20)])
FRACTION = 0.3


@dataclass(frozen=True)
class Documents:
    """A source that is a list."""

    texts: tuple[str, ...]
    description: str = "a list"
    on_bad_row: OnBadRow = OnBadRow.STOP

    def fingerprint(self) -> str:
        return json.dumps(self.texts)

    def documents(self, bad_rows: BadRows | None = None) -> Iterator[str]:
        return iter(self.texts)


def texts_of(lengths: list[int]) -> Documents:
    """Documents of N words, no two words in a row alike."""
    words = [f"w{number}" for number in range(20)]
    starts = np.cumsum([0, *lengths])
    return Documents(
        tuple(
            " ".join(words[(start + place) % 20] for place in range(length))
            for start, length in zip(starts, lengths, strict=False)
        )
    )


def opened(
    source: TextSource, tokenizer: Tokenizer = WORDS, fraction: float = FRACTION, seed: int = 0
) -> Corpus:
    return open_corpus(source, tokenizer, test_fraction=fraction, seed=seed)


def documents_of(shard: Shard) -> list[list[int]]:
    return [
        shard.tokens[begin : begin + size].tolist()
        for begin, size in zip(shard.begins, np.diff(shard.offsets), strict=True)
    ]


# Shards


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(lengths=st.lists(st.integers(0, 30), max_size=40), block_size=st.integers(2, 40))
def test_every_token_is_in_a_block_or_counted_as_dropped(
    fresh_cache: Path, lengths: list[int], block_size: int
) -> None:
    source = texts_of(lengths)
    corpus = opened(source)
    expected = [WORDS.encode(text) for text in source.texts if text]
    assert corpus.empty_documents == sum(not text for text in source.texts)
    assert corpus.train.documents + corpus.test.documents == len(expected)
    tokens = 0
    for shard in (corpus.train, corpus.test):
        blocks = PackedBlocks(shard, block_size)
        assert 0 <= blocks.dropped_tokens < block_size
        assert shard.offsets[0] == 0
        tokens += blocks.full_examples * block_size + blocks.dropped_tokens
    assert tokens == sum(map(len, expected))


def test_the_shards_hold_the_documents_in_order_each_on_its_side(fresh_cache: Path) -> None:
    source = texts_of([5, 9, 2] * 1000)  # more than one batch of documents
    corpus = opened(source)
    is_test = is_test_document(np.arange(3000), FRACTION, 0)
    for shard, wanted in ((corpus.train, ~is_test), (corpus.test, is_test)):
        expected = [WORDS.encode(source.texts[index]) for index in np.flatnonzero(wanted)]
        assert documents_of(shard) == expected
    assert 0 < corpus.test.documents < corpus.train.documents


def test_blank_documents_are_left_out_and_counted(fresh_cache: Path) -> None:
    corpus = opened(Documents(("w1", "", " \n\t", "w2")))
    assert corpus.empty_documents == 2
    assert sorted(documents_of(corpus.train) + documents_of(corpus.test)) == sorted(
        [WORDS.encode("w1"), WORDS.encode("w2")]
    )


@pytest.mark.parametrize(
    ("words", "kind"), [((1 << 16) - 5, np.uint16), ((1 << 16) - 4, np.uint32)]
)
def test_ids_take_two_bytes_wherever_they_fit(
    fresh_cache: Path, words: int, kind: type[np.integer]
) -> None:
    names = [f"w{number}" for number in range(words)]
    tokenizer = word_tokenizer(names)
    corpus = opened(Documents((names[-1],) * 20), tokenizer)
    assert corpus.train.tokens.dtype == kind
    assert corpus.train.tokens.max() == tokenizer.vocabulary_size - 1


# The cache


def test_a_second_opening_tokenizes_nothing(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = texts_of([7] * 50)
    first = opened(source)

    def refuse(*_: object) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(Tokenizer, "encode_joined", refuse)
    monkeypatch.setattr(Documents, "documents", refuse)
    second = opened(source)
    assert not first.was_cached
    assert second.was_cached
    assert second.folder == first.folder
    assert second.empty_documents == first.empty_documents
    for name in ("train", "test"):
        assert documents_of(getattr(second, name)) == documents_of(getattr(first, name))
    with pytest.raises(AssertionError, match="tokenized again"):
        opened(texts_of([7] * 51))


def test_another_split_tokenizes_nothing(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = texts_of([7] * 50)
    first = opened(source)
    monkeypatch.setattr(Tokenizer, "encode_joined", None)  # nobody asks again
    for fraction, seed in ((0.2, 0), (FRACTION, 1), (0.0, 0), (1.0, 0)):
        other = opened(source, fraction=fraction, seed=seed)
        assert other.was_cached
        is_test = is_test_document(np.arange(50), fraction, seed)
        expected = [WORDS.encode(source.texts[n]) for n in np.flatnonzero(is_test)]
        assert documents_of(other.test) == expected
        assert other.train.documents == 50 - len(expected)
    assert documents_of(opened(source).test) == documents_of(first.test)


def test_whatever_decides_the_tokens_decides_their_folder(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = texts_of([7] * 50)
    folders = {
        opened(source).folder,
        opened(texts_of([7] * 49 + [8])).folder,
        opened(source, word_tokenizer([f"w{number}" for number in range(21)])).folder,
    }
    monkeypatch.setattr(corpus_module, "version", lambda _: "0.0.1")  # of the tokenizers package
    folders.add(opened(source).folder)
    assert len(folders) == 4
    assert all(folder.parent == fresh_cache / "corpora" for folder in folders)


def test_the_counts_of_the_corpus_stand_beside_it(fresh_cache: Path) -> None:
    corpus = opened(texts_of([7] * 50 + [0]))
    meta = json.loads((corpus.folder / "meta.json").read_text())
    shards = (corpus.train, corpus.test)
    assert meta["documents"] == sum(shard.documents for shard in shards) == 50
    assert meta["tokens"] == sum(shard.token_count for shard in shards) == len(shards[0].tokens)
    assert meta["empty_documents"] == 1
    assert corpus.folder.name == meta["fingerprint"][:32]


def test_an_interrupted_build_leaves_nothing_to_open(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = texts_of([7] * 3000)
    batches = []
    encode_joined = Tokenizer.encode_joined

    def interrupted(self: Tokenizer, texts: list[str], kind: np.dtype[Any]) -> tuple[Any, Any]:
        batches.append(len(texts))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return encode_joined(self, texts, kind)

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_joined", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened(source)
    assert not [path for path in (fresh_cache / "corpora").iterdir() if path.is_dir()]
    corpus = opened(source)
    assert not corpus.was_cached
    assert corpus.train.documents + corpus.test.documents == 3000


def test_a_cache_that_cannot_be_written_is_named(fresh_cache: Path) -> None:
    fresh_cache.write_text("a file where a folder should be")
    with refusal("the cache folder", Code.NOT_WRITABLE, fresh_cache, "MLMLAB_CACHE"):
        opened(texts_of([7]))


def test_progress_counts_documents_and_tokens(fresh_cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = texts_of([7] * 1500)
    open_corpus(
        source,
        WORDS,
        test_fraction=FRACTION,
        seed=0,
        show_counts=lambda documents, tokens: seen.append((documents, tokens)),
    )
    per_document = len(WORDS.encode(source.texts[0]))
    assert seen == [(1024, 1024 * per_document), (1500, 1500 * per_document)]


# The split


def test_the_split_is_a_function_of_seed_and_index_alone() -> None:
    whole = is_test_document(np.arange(10_000), 0.2, 3)
    parts = [is_test_document(part, 0.2, 3) for part in np.split(np.arange(10_000), [1, 17, 5000])]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(is_test_document(np.arange(10_000), 0.2, 4), whole)
    assert abs(whole.mean() - 0.2) < 3 * (0.2 * 0.8 / 10_000) ** 0.5
    # Another version of mlmlab must not move documents across the split.
    assert np.flatnonzero(whole)[:8].tolist() == [13, 16, 17, 18, 26, 29, 33, 39]
    # Raising the fraction moves documents into the test set and none out of it.
    assert (is_test_document(np.arange(10_000), 0.3, 3) >= whole).all()


def test_a_limit_changes_no_documents_side(tmp_path: Path, fresh_cache: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(texts_of([4] * 100).texts))
    whole = opened(FileSource((path,)))
    limited = opened(FileSource((path,), limit=60))
    for name in ("train", "test"):
        short, long = documents_of(getattr(limited, name)), documents_of(getattr(whole, name))
        assert short == long[: len(short)]
    assert limited.train.documents + limited.test.documents == 60


def test_what_is_learned_from_text_sees_no_test_document() -> None:
    source = texts_of([3] * 2000)
    is_test = is_test_document(np.arange(2000), 0.25, 7)
    documents = TrainingDocuments(source, 0.25, 7)
    expected = [text for text, out in zip(source.texts, is_test, strict=True) if not out]
    assert list(documents) == list(documents) == expected


# Blocks


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    fraction=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 3),
    block_size=st.integers(2, 40),
    draw=st.randoms(use_true_random=False),
)
def test_blocks_are_the_documents_of_a_side_joined_and_cut(
    fresh_cache: Path, lengths: list[int], fraction: float, seed: int, block_size: int, draw: Any
) -> None:
    source = texts_of(lengths)
    corpus = opened(source, fraction=fraction, seed=seed)
    is_test = is_test_document(np.arange(len(lengths)), fraction, seed)
    for shard, wanted in ((corpus.train, ~is_test), (corpus.test, is_test)):
        texts = [source.texts[n] for n in np.flatnonzero(wanted) if source.texts[n]]
        documents = [WORDS.encode(text) for text in texts]
        joined = [token for ids in documents for token in ids]
        document_ids = [number for number, ids in enumerate(documents) for _ in ids]
        blocks = PackedBlocks(shard, block_size, isolate=True, keep_rest=True)
        examples = list(range(blocks.full_examples))
        draw.shuffle(examples)
        taken = [blocks.take(np.array(examples, np.int64))]
        if blocks.keeps_rest:
            examples.append(blocks.full_examples)
            taken.append(blocks.take(np.array([blocks.full_examples])))
        ids = [row for rows in taken for row in rows.input_ids.tolist()]
        numbers = [row for rows in taken for row in rows.documents.tolist()]  # type: ignore[union-attr]
        cuts = [slice(n * block_size, (n + 1) * block_size) for n in examples]
        assert ids == [joined[cut] for cut in cuts]
        assert numbers == [document_ids[cut] for cut in cuts]


def test_tokens_and_index_are_mapped_and_not_read(fresh_cache: Path) -> None:
    corpus = opened(texts_of([50] * 20))
    assert np.shares_memory(corpus.train.tokens, corpus.test.tokens)
    for shard in (corpus.train, corpus.test):
        for numbers in (shard.tokens, shard.begins, shard.offsets):
            assert isinstance(numbers.base, np.memmap)


def test_the_real_text_is_conserved(shared_data: Path, fresh_cache: Path) -> None:
    path = shared_data / "eli5-category-validation-2.json.gz"
    source = FileSource((path,), "answers.text", limit=300)
    documents = list(source.documents())
    tokenizer = train_tokenizer(iter(documents), TokenizerKind.BPE, 1000)
    corpus = opened(source, tokenizer, 0.2)
    blocks = [PackedBlocks(shard, 128) for shard in (corpus.train, corpus.test)]
    in_blocks = sum(128 * len(side) + side.dropped_tokens for side in blocks)
    assert in_blocks == sum(len(tokenizer.encode(text)) for text in documents if text.strip())


# Order


def epoch_of(order: Order, epoch: int) -> list[NDArray[np.int64]]:
    first = epoch * order.batches_per_epoch
    batches = [order.batch(first + number) for number in range(order.batches_per_epoch)]
    assert {number for number, _ in batches} == {epoch}
    return [examples for _, examples in batches]


@settings(max_examples=60, deadline=None)
@given(
    examples=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    seed=st.integers(-(2**63), 2**64),
    epoch=st.integers(0, 2**20),
)
def test_every_example_comes_once_an_epoch(
    examples: int, batch_size: int, seed: int, epoch: int
) -> None:
    order = Order(examples, batch_size, seed)
    batches = epoch_of(order, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(examples))
    sizes = [len(batch) for batch in batches]
    assert all(size == batch_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= batch_size


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    orders = [
        np.concatenate(epoch_of(Order(1000, 32, seed), epoch)).tolist()
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len({tuple(order) for order in orders}) == 6
    assert list(range(1000)) not in orders


def test_batch_n_is_the_same_whenever_it_is_asked_for() -> None:
    order = Order(101, 8, 5)
    forward = [order.batch(number) for number in range(40)]
    for number in (39, 0, 13, 12, 39):
        epoch, examples = Order(101, 8, 5).batch(number)
        assert epoch == forward[number][0] == number // 13
        assert np.array_equal(examples, forward[number][1])


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    whole = np.concatenate(epoch_of(Order(101, 101, 5), 3))
    for batch_size in (1, 8, 100):
        assert np.array_equal(np.concatenate(epoch_of(Order(101, batch_size, 5), 3)), whole)
