"""Where words begin, a bit a token beside the shards: built when a masking unit first asks for it.

train.word_starts  test.word_starts     bit n % 8 (lowest first) of byte n / 8 is token n's
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlmlab.data.corpus import Corpus, Progress, Shard, SplitBatch, memory_map, split_batches
from mlmlab.data.sources import TextSource
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.errors import UserError
from mlmlab.fetch.cache import flush


def with_word_starts(
    corpus: Corpus,
    source: TextSource,
    tokenizer: Tokenizer,
    *,
    test_fraction: float,
    seed: int,
    progress: Progress | None = None,
) -> Corpus:
    """The corpus with the word starts of its tokens, as the tokenizer's pre-tokenization has them.

    Args:
        source: what the corpus was made of, as are the other arguments.

    Raises:
        UserError: the cache folder cannot be written, or the source has changed meanwhile.
    """
    files = {side: corpus.folder / f"{side}.word_starts" for side in ("train", "test")}
    if not all(file.is_file() for file in files.values()):
        _build(corpus, split_batches(source, test_fraction, seed), tokenizer, files, progress)
    return dataclasses.replace(
        corpus,
        train=_opened(corpus.train, files["train"]),
        test=_opened(corpus.test, files["test"]),
    )


def _opened(shard: Shard, file: Path) -> Shard:
    return dataclasses.replace(shard, word_starts=memory_map(file, np.dtype(np.uint8)))


def _build(
    corpus: Corpus,
    batches: Iterator[SplitBatch],
    tokenizer: Tokenizer,
    files: dict[str, Path],
    progress: Progress | None,
) -> None:
    """Writes both files under temporary names, and renames them when they are complete."""
    writers = {side: _BitFile(file) for side, file in files.items()}
    documents = 0
    try:
        for batch in batches:
            for side, texts in (("train", batch.train), ("test", batch.test)):
                for starts in tokenizer.word_starts_batch(texts):
                    writers[side].write(starts)
                documents += len(texts)
            if progress is not None:
                progress(documents, sum(writer.count for writer in writers.values()))
        for side, shard in (("train", corpus.train), ("test", corpus.test)):
            writers[side].finish(len(shard.tokens))
    except OSError as error:
        raise UserError.of(
            "the cache folder",
            found=f"{corpus.folder}: {error.strerror or error}",
            expected="a folder that can be written, with room for a bit a token",
            remedy="set the environment variable MLMLAB_CACHE to another folder",
        ) from error
    finally:
        for writer in writers.values():
            writer.close()


class _BitFile:
    """Bits, eight a byte, in a file that appears when it is complete."""

    def __init__(self, target: Path) -> None:
        self.target = target
        # Of this process alone: another run may be building the same bits.
        self.building = target.with_name(f".{target.name}.{os.getpid()}.building")
        self.file = self.building.open("wb")
        self.count = 0
        self._pending: list[NDArray[np.bool_]] = []
        self._pending_count = 0

    def write(self, bits: NDArray[np.bool_]) -> None:
        """Appends them."""
        self._pending.append(bits)
        self._pending_count += len(bits)
        self.count += len(bits)
        if self._pending_count >= 1 << 16:
            self._flush(keep=self._pending_count % 8)

    def _flush(self, keep: int) -> None:
        bits = np.concatenate(self._pending) if self._pending else np.empty(0, np.bool_)
        whole = len(bits) - keep
        self.file.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._pending, self._pending_count = [bits[whole:]], keep

    def finish(self, expected: int) -> None:
        """Puts the file in its place.

        Raises:
            UserError: it does not have a bit for each token.
        """
        if self.count != expected:
            raise UserError.of(
                "data",
                found=f"{self.count} tokens now, and {expected} when the text was tokenized",
                expected="the same text as before",
                remedy=f"remove {self.target.parent}, and run again",
            )
        self._flush(keep=0)
        self.file.flush()
        flush(self.building)
        self.building.rename(self.target)

    def close(self) -> None:
        """Removes what is not complete."""
        self.file.close()
        self.building.unlink(missing_ok=True)
