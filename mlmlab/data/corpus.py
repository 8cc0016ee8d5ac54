"""Documents, tokenized once and opened by memory map; and the split, an index over them.

A corpus is a folder named by the fingerprint of its data and tokenizer:

    tokens       uint16 (uint32 for a vocabulary above 65,536), all documents joined
    offsets      int64, where each document begins, and the end of the last
    numbers      int64, each document's number in the source; those without any text are left out
    meta.json    fingerprint, type, counts
    splits/FRACTION-SEED/
        train.begins  test.begins      int64, where each document of a side begins in `tokens`
        train.offsets test.offsets     int64, where it would begin if its side were joined
    words/starts                       where words begin (word_starts.py)

Each folder is filled under another name and renamed, so that it is complete or absent. All of it is
memory-mapped: a corpus may be larger than memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmlab.data.formats import BadRows
from mlmlab.data.sources import TextSource
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.fetch.cache import built_once, cache_folder
from mlmlab.random import Domain, uniforms

_DOCUMENTS_A_BATCH = 1024
_SPLIT_AT_ONCE = 1 << 16
"""Documents whose side is decided at once."""
_FORMAT = 3
"""Raise it when the files change their meaning: it is part of the fingerprint."""

ShowCounts = Callable[[int, int], None]
"""Called with the documents and tokens done so far."""


@dataclass(frozen=True, eq=False)
class Shard:
    """The documents of one side of the split: an index over the corpus's tokens.

    A shard's tokens are numbered as if its documents were joined: token `n` of the shard, in
    document `d`, is token `begins[d] + n - offsets[d]` of the corpus.
    """

    tokens: NDArray[np.integer]
    """uint16 or uint32 `[N]`, a memory map: the tokens of all documents of the corpus."""
    begins: NDArray[np.int64]
    """int64 `[documents]`, a memory map: where each document begins in `tokens`."""
    offsets: NDArray[np.int64]
    """int64 `[documents + 1]`, a memory map: where each begins in the shard; and the shard's end.
    """
    word_starts: NDArray[np.uint8] | None = None
    """`[N / 8]`, a memory map: one bit per token of `tokens` (`word_starts.py`), where the masking
    needs them."""

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.begins)

    @property
    def token_count(self) -> int:
        """How many tokens these documents have."""
        return int(self.offsets[-1])


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenized corpus on disk, and a split of it."""

    folder: Path
    train: Shard
    test: Shard
    offsets: NDArray[np.int64]
    """int64 `[documents + 1]`, a memory map: where each document of either side begins."""
    empty_documents: int
    """Documents without any text, left out of both shards."""
    bad_rows: int
    """Rows that could not be read, left out because data.on_bad_row=skip."""
    first_bad_row: str | None
    """Where the first of them is, and what is wrong with it."""
    was_cached: bool
    """True if it was found, and nothing was tokenized."""

    @property
    def median_document_tokens(self) -> float:
        """The median length of the first million documents."""
        if len(self.offsets) == 1:
            return 0.0
        return float(np.median(np.diff(self.offsets[:1_000_001])))


def is_test_document(documents: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """The split, a pure function of (data seed, document index): bool `[N]`."""
    chosen: NDArray[np.bool_] = uniforms(seed, Domain.SPLIT, documents, 1)[:, 0] < fraction
    return chosen


@dataclass(frozen=True)
class TrainingDocuments:
    """The documents that are not in the test set, for whatever is learned from text."""

    source: TextSource
    test_fraction: float
    seed: int

    def __iter__(self) -> Iterator[str]:
        for batch in document_batches(self.source):
            is_test = is_test_document(batch.numbers, self.test_fraction, self.seed)
            yield from (text for text, out in zip(batch.texts, is_test, strict=True) if not out)


def open_corpus(
    source: TextSource,
    tokenizer: Tokenizer,
    *,
    test_fraction: float,
    seed: int,
    show_counts: ShowCounts | None = None,
) -> Corpus:
    """Tokenizes the source, or opens the corpus that an earlier run made of the same, whatever its
    split was.

    Args:
        test_fraction: chance that a document belongs to the test shard; 0 and 1 are all or none.
        seed: decides the split.

    Raises:
        UserError: the source cannot be read, or the cache folder not written.
    """
    settings = f"{_FORMAT} tokenizers {version('tokenizers')}"
    key = "\n".join((settings, source.fingerprint(), tokenizer.fingerprint()))
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = cache_folder() / "corpora" / fingerprint[:32]

    def build(building: Path) -> None:
        meta = _tokenize(source, tokenizer, building, show_counts)
        text = json.dumps({"fingerprint": fingerprint, **meta}, indent=2)
        (building / "meta.json").write_text(text, encoding="utf-8")

    was_cached = built_once(folder, build)
    meta = json.loads((folder / "meta.json").read_text())
    offsets = memory_map(folder / "offsets", np.dtype(np.int64))
    numbers = memory_map(folder / "numbers", np.dtype(np.int64))
    split = folder / "splits" / f"{test_fraction}-{seed}"
    built_once(split, lambda building: _split(numbers, offsets, building, test_fraction, seed))
    tokens = memory_map(folder / "tokens", np.dtype(meta["type"]))
    return Corpus(
        folder=folder,
        train=_open_shard(tokens, split, "train"),
        test=_open_shard(tokens, split, "test"),
        offsets=offsets,
        empty_documents=meta["empty_documents"],
        bad_rows=meta["bad_rows"],
        first_bad_row=meta["first_bad_row"],
        was_cached=was_cached,
    )


def _tokenize(
    source: TextSource, tokenizer: Tokenizer, folder: Path, show_counts: ShowCounts | None
) -> dict[str, Any]:
    kind = np.dtype(np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32)
    documents = tokens = empty = 0
    bad_rows = BadRows(source.on_bad_row)
    with (
        (folder / "tokens").open("wb") as token_file,
        (folder / "offsets").open("wb") as offset_file,
        (folder / "numbers").open("wb") as number_file,
    ):
        offset_file.write(np.zeros(1, np.int64).tobytes())
        for batch in document_batches(source, bad_rows):
            ids, counts = tokenizer.encode_joined(batch.texts, kind)
            token_file.write(ids.tobytes())
            offset_file.write((tokens + counts.cumsum()).tobytes())
            number_file.write(batch.numbers.tobytes())
            tokens += len(ids)
            documents += len(counts)
            empty += batch.empty
            if show_counts is not None:
                show_counts(documents, tokens)
    return {
        "type": kind.name,
        "documents": documents,
        "tokens": tokens,
        "empty_documents": empty,
        "bad_rows": bad_rows.count,
        "first_bad_row": bad_rows.first,
    }


def _split(
    numbers: NDArray[np.int64],
    offsets: NDArray[np.int64],
    folder: Path,
    test_fraction: float,
    seed: int,
) -> None:
    """Writes the index of both shards."""
    for name, is_test in (("train", False), ("test", True)):
        end = 0
        with (
            (folder / f"{name}.begins").open("wb") as begin_file,
            (folder / f"{name}.offsets").open("wb") as offset_file,
        ):
            offset_file.write(np.zeros(1, np.int64).tobytes())
            for first in range(0, len(numbers), _SPLIT_AT_ONCE):
                some = slice(first, first + _SPLIT_AT_ONCE)
                mine = is_test_document(numbers[some], test_fraction, seed) == is_test
                begins = offsets[:-1][some][mine]
                ends = end + np.cumsum(offsets[1:][some][mine] - begins)
                begin_file.write(begins.tobytes())
                offset_file.write(ends.tobytes())
                end = int(ends[-1]) if len(ends) else end


def _open_shard(tokens: NDArray[np.integer], split: Path, name: str) -> Shard:
    begins, offsets = (
        memory_map(split / f"{name}.{kind}", np.dtype(np.int64)) for kind in ("begins", "offsets")
    )
    return Shard(tokens, begins, offsets)


def memory_map(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    """A file's numbers, read when they are looked at."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, kind)
    return np.memmap(path, kind, "r").view(np.ndarray)  # the subclass is slow to index


@dataclass(frozen=True)
class DocumentBatch:
    """The documents with any text among some that follow each other in the source."""

    texts: list[str]
    numbers: NDArray[np.int64]
    """int64 `[len(texts)]`, their numbers in the source."""
    empty: int
    """How many have no text."""


def document_batches(
    source: TextSource, bad_rows: BadRows | None = None
) -> Iterator[DocumentBatch]:
    """All documents, a batch at a time."""
    documents = enumerate(source.documents(bad_rows))
    while batch := list(islice(documents, _DOCUMENTS_A_BATCH)):
        filled = [(number, text) for number, text in batch if text.strip()]
        yield DocumentBatch(
            [text for _, text in filled],
            np.array([number for number, _ in filled], np.int64),
            len(batch) - len(filled),
        )
