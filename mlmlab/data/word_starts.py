"""Where words begin, one bit per token of a corpus: built when a masking unit first asks for it.

words/starts     bit n % 8 (lowest first) of byte n / 8 is token n's
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlmlab.data.corpus import Corpus, ShowCounts, document_batches, memory_map
from mlmlab.data.sources import TextSource
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.errors import Code, UserError
from mlmlab.fetch.cache import built_once


def with_word_starts(
    corpus: Corpus,
    source: TextSource,
    tokenizer: Tokenizer,
    *,
    show_counts: ShowCounts | None = None,
) -> Corpus:
    """The corpus with the word starts of its tokens, as the tokenizer's pre-tokenization has them.

    Args:
        source: what the corpus was made of, as is the tokenizer.

    Raises:
        UserError: the cache folder cannot be written, or the source has changed meanwhile.
    """
    words = corpus.folder / "words"

    def build(building: Path) -> None:
        with (building / "starts").open("wb") as file:
            count = _write_bits(_starts(source, tokenizer, show_counts), file)
        expected = int(corpus.offsets[-1])
        if count != expected:
            raise UserError.of(
                "data",
                code=Code.CHANGED,
                found=f"{count} tokens now, and {expected} when the text was tokenized",
                expected="the same text as before",
                remedy=f"remove {corpus.folder}, and run again",
            )

    built_once(words, build)
    bits = memory_map(words / "starts", np.dtype(np.uint8))
    train, test = (
        dataclasses.replace(shard, word_starts=bits) for shard in (corpus.train, corpus.test)
    )
    return dataclasses.replace(corpus, train=train, test=test)


def _starts(
    source: TextSource, tokenizer: Tokenizer, show_counts: ShowCounts | None
) -> Iterator[NDArray[np.bool_]]:
    """For each batch of documents, whether a word begins at each of their tokens."""
    documents = tokens = 0
    for batch in document_batches(source):
        starts = tokenizer.word_starts_batch(batch.texts)
        yield np.concatenate([np.empty(0, np.bool_), *starts])
        documents += len(starts)
        tokens += sum(map(len, starts))
        if show_counts is not None:
            show_counts(documents, tokens)


def _write_bits(parts: Iterator[NDArray[np.bool_]], file: BinaryIO) -> int:
    """Writes eight bits per byte; returns how many bits there were."""
    count = 0
    rest = np.empty(0, np.bool_)  # the bits of a byte that is not full yet
    for part in parts:
        count += len(part)
        bits = np.concatenate([rest, part])
        full = len(bits) - len(bits) % 8
        file.write(np.packbits(bits[:full], bitorder="little").tobytes())
        rest = bits[full:]
    file.write(np.packbits(rest, bitorder="little").tobytes())
    return count
