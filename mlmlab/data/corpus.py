"""Documents, tokenized once: shards on disk, opened by memory map.

A corpus is a folder named by the fingerprint of its data, tokenizer and split:

    train.tokens  test.tokens      uint16 (uint32 for a vocabulary above 65,536), documents joined
    train.offsets test.offsets     int64, where each document begins, and the end of the last
    meta.json                      fingerprint, type, counts; written last

The folder is written under a temporary name and renamed, so that it is complete or absent.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlmlab.data.bad_rows import BadRows
from mlmlab.data.sources import TextSource
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.fetch.cache import built_once, cache_folder
from mlmlab.random import Domain, uniforms

_DOCUMENTS_A_BATCH = 1024
_FORMAT = 2
"""Raise it when the files change their meaning: it is part of the fingerprint."""

Progress = Callable[[int, int], None]
"""Called with the documents and tokens done so far."""


@dataclass(frozen=True, eq=False)
class Shard:
    """The documents of one side of the split."""

    tokens: NDArray[np.integer]
    """uint16 or uint32 `[N]`, a memory map: the documents one after the other."""
    offsets: NDArray[np.int64]
    """int64 `[documents + 1]`, a memory map: where each document begins; the last is N."""
    word_starts: NDArray[np.uint8] | None = None
    """`[N / 8]`, a memory map: a bit a token (`word_starts.py`), where the masking needs them."""

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenized corpus on disk."""

    folder: Path
    train: Shard
    test: Shard
    empty_documents: int
    """Documents without any text, left out of both shards."""
    bad_rows: int
    """Rows that could not be read, left out because data.on_bad_row=skip."""
    first_bad_row: str | None
    """Where the first of them is, and what is wrong with it."""
    was_cached: bool
    """True if it was found, and nothing was tokenized."""


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
        for batch in split_batches(self.source, self.test_fraction, self.seed):
            yield from batch.train


def open_corpus(
    source: TextSource,
    tokenizer: Tokenizer,
    *,
    test_fraction: float,
    seed: int,
    progress: Progress | None = None,
) -> Corpus:
    """Tokenizes the source, or opens the corpus that an earlier run made of the same.

    Args:
        test_fraction: chance that a document belongs to the test shard; 0 and 1 are all or none.
        seed: decides the split.

    Raises:
        UserError: the source cannot be read, or the cache folder not written.
    """
    settings = f"{_FORMAT} test {test_fraction} seed {seed}"
    key = "\n".join((settings, source.fingerprint(), tokenizer.fingerprint()))
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = cache_folder() / "corpora" / fingerprint[:32]

    def build(building: Path) -> None:
        meta = _tokenize(source, tokenizer, building, test_fraction, seed, progress)
        text = json.dumps({"fingerprint": fingerprint, **meta}, indent=2)
        (building / "meta.json").write_text(text, encoding="utf-8")

    was_cached = built_once(folder, build)
    meta = json.loads((folder / "meta.json").read_text())
    shards = [_open_shard(folder, name, np.dtype(meta["type"])) for name in ("train", "test")]
    return Corpus(
        folder=folder,
        train=shards[0],
        test=shards[1],
        empty_documents=meta["empty_documents"],
        bad_rows=meta["bad_rows"],
        first_bad_row=meta["first_bad_row"],
        was_cached=was_cached,
    )


def _tokenize(
    source: TextSource,
    tokenizer: Tokenizer,
    folder: Path,
    test_fraction: float,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    kind = np.dtype(np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32)
    tokens = {False: 0, True: 0}
    documents = {False: 0, True: 0}
    empty = 0
    bad_rows = BadRows(source.on_bad_row)
    with _Pair(folder, "tokens") as token_files, _Pair(folder, "offsets") as offset_files:
        for side in (False, True):
            offset_files.file(side).write(np.zeros(1, np.int64).tobytes())
        for batch in split_batches(source, test_fraction, seed, bad_rows):
            for side, texts in ((False, batch.train), (True, batch.test)):
                encoded = tokenizer.encode_batch(texts)
                ends = np.cumsum([len(ids) for ids in encoded], dtype=np.int64)
                total = int(ends[-1]) if encoded else 0
                joined = np.fromiter((i for ids in encoded for i in ids), kind, total)
                token_files.file(side).write(joined.tobytes())
                offset_files.file(side).write((ends + tokens[side]).tobytes())
                tokens[side] += joined.size
                documents[side] += len(encoded)
            empty += batch.empty
            if progress is not None:
                progress(sum(documents.values()), sum(tokens.values()))
    return {
        "type": kind.name,
        "empty_documents": empty,
        "bad_rows": bad_rows.count,
        "first_bad_row": bad_rows.first,
        "train": {"documents": documents[False], "tokens": tokens[False]},
        "test": {"documents": documents[True], "tokens": tokens[True]},
    }


class _Pair:
    """The train and the test file of one kind."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.files: dict[bool, BinaryIO] = {
            test: (folder / f"{'test' if test else 'train'}.{kind}").open("wb")
            for test in (False, True)
        }

    def file(self, test: bool) -> BinaryIO:
        return self.files[test]

    def __enter__(self) -> "_Pair":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()


def _open_shard(folder: Path, name: str, kind: np.dtype[Any]) -> Shard:
    return Shard(
        tokens=memory_map(folder / f"{name}.tokens", kind),
        offsets=memory_map(folder / f"{name}.offsets", np.dtype(np.int64)),
    )


def memory_map(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    """A file's numbers, read when they are looked at."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, kind)
    return np.memmap(path, kind, "r").view(np.ndarray)  # the subclass is slow to index


@dataclass(frozen=True)
class SplitBatch:
    """Some documents in a row, each on its side of the split."""

    train: list[str]
    test: list[str]
    empty: int
    """Those without any text, which are on neither side."""


def split_batches(
    source: TextSource, test_fraction: float, seed: int, bad_rows: BadRows | None = None
) -> Iterator[SplitBatch]:
    """All documents, a batch at a time."""
    documents = source.documents(bad_rows)
    start = 0
    while batch := list(islice(documents, _DOCUMENTS_A_BATCH)):
        test = is_test_document(np.arange(start, start + len(batch)), test_fraction, seed)
        sides: tuple[list[str], list[str]] = ([], [])
        for text, is_test in zip(batch, test, strict=True):
            if text.strip():
                sides[int(is_test)].append(text)
        yield SplitBatch(*sides, len(batch) - len(sides[0]) - len(sides[1]))
        start += len(batch)
