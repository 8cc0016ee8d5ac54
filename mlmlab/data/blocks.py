"""Examples: the documents of a shard cut to at most `block_size` tokens.

B examples   T positions
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlmlab.data.corpus import Shard
from mlmlab.data.groups import padded_length
from mlmlab.random import permuted


@dataclass(frozen=True, eq=False)
class Examples:
    """Some examples' tokens."""

    input_ids: NDArray[np.integer]
    """uint16 or uint32 `[B, T]`."""
    lengths: NDArray[np.int64] | None = None
    """`[B]`, the tokens of each, before its padding. None: no padding."""
    documents: NDArray[np.int64] | None = None
    """`[B, T]`, each token's document, where documents are hidden from each other."""
    word_starts: NDArray[np.uint8] | None = None
    """`[B, T]`: 1 where a word begins, 2 where a document does; None where the shard knows none."""


class Blocks(Protocol):
    """Example `i` as a function of `i`."""

    shard: Shard
    block_size: int
    dropped_tokens: int
    """Tokens of the shard that are cut off: in no example, sampled or not."""
    full_examples: int
    """Examples without the last one, if that is shorter and has to be taken alone; else all."""

    def __len__(self) -> int:
        """How many examples there are."""

    def take(self, example_ids: NDArray[np.int64]) -> Examples:
        """The examples' tokens."""

    def document_ids(
        self, example_ids: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The documents that some tokens belong to, int64 `[N]`.

        Args:
            example_ids: int64 `[N]`, their examples.
            places: int64 `[N]`, their positions there.
        """

    def account(self) -> str:
        """What became of the shard's tokens, for a person."""


class PackedBlocks:
    """The documents joined and cut into blocks: example `i` is the shard's tokens from
    `i * block_size` on.

    Nothing is dropped at document boundaries. The last partial block of a shard is dropped, or with
    `keep_rest` it is a last, shorter example.
    """

    def __init__(
        self, shard: Shard, block_size: int, *, isolate: bool = False, keep_rest: bool = False
    ) -> None:
        self.shard = shard
        self.block_size = block_size
        self.isolate = isolate
        self.full_examples, self.rest = divmod(shard.token_count, block_size)
        self.keeps_rest = keep_rest and self.rest > 0
        self.dropped_tokens = 0 if keep_rest else self.rest
        """Tokens of the last partial block."""

    def __len__(self) -> int:
        return self.full_examples + self.keeps_rest

    def take(self, example_ids: NDArray[np.int64]) -> Examples:
        shape = (len(example_ids), self.block_size)
        if self.keeps_rest and self.full_examples in example_ids:
            assert len(example_ids) == 1, "the last, shorter example is taken alone"
            shape = (1, self.rest)
        begins, offsets = self.shard.begins, self.shard.offsets
        first = example_ids * self.block_size  # [B], numbered in the shard, as are the offsets
        end = first + shape[1]
        first_document = np.searchsorted(offsets, first, side="right") - 1  # [B]
        end_document = np.searchsorted(offsets, end)  # [B], the one after the last
        # A piece is what a row has of one document; there are P of them, row after row.
        pieces = end_document - first_document  # [B]
        row = np.repeat(np.arange(len(example_ids)), pieces)  # [P]
        document = np.arange(len(row)) + (end_document - np.cumsum(pieces))[row]  # [P]
        begin = np.maximum(offsets[document], first[row])  # [P]
        sizes = np.minimum(offsets[document + 1], end[row]) - begin  # [P]
        in_corpus = begins[document] + begin - offsets[document]  # [P], where each piece begins
        shift = np.repeat(in_corpus - (np.cumsum(sizes) - sizes), sizes)  # [B * T]
        tokens = (np.arange(len(shift)) + shift).reshape(shape)  # [B, T], numbered in the corpus
        starts = _word_start_bits(self.shard, tokens)
        if starts is not None:
            is_begun_here = begin == offsets[document]  # [P]
            starts[row[is_begun_here], (begin - first[row])[is_begun_here]] = 2
        return Examples(
            self.shard.tokens[tokens],
            None,
            np.repeat(document, sizes).reshape(shape) if self.isolate else None,
            starts,
        )

    def document_ids(
        self, example_ids: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        tokens = example_ids * self.block_size + places
        return np.searchsorted(self.shard.offsets, tokens, side="right") - 1

    def account(self) -> str:
        last = f"one of {self.rest}" if self.keeps_rest else f"{self.rest} dropped"
        plural = "" if self.full_examples == 1 else "s"
        return f"{self.full_examples:,} block{plural} of {self.block_size} + {last}"


class DocumentBlocks:
    """No two documents share an example; shorter ones are padded.

    A document longer than a block is split into several examples, each with the tokenizer's own
    special tokens around it, or with `cut_off` only the first of them is kept.
    """

    def __init__(
        self,
        shard: Shard,
        block_size: int,
        *,
        frame: tuple[list[int], list[int]],
        pad_id: int,
        cut_off: bool,
    ) -> None:
        self.shard = shard
        self.block_size = block_size
        self.prefix, self.suffix = (np.array(ids, shard.tokens.dtype) for ids in frame)
        self.pad_id = pad_id
        self.frame_size = len(self.prefix) + len(self.suffix)
        self.inner_size = block_size - self.frame_size
        """A document's own tokens in one example, at most."""
        assert self.inner_size > 0, "no space for a token between the special ones"
        self.inner_lengths = np.maximum(np.diff(shard.offsets) - self.frame_size, 0)
        parts = np.maximum(-(-self.inner_lengths // self.inner_size), 1)
        if cut_off:
            parts = np.ones_like(parts)
        self.first_example = np.concatenate([[0], np.cumsum(parts)])
        """int64 `[documents + 1]`: each document's first example."""
        kept = np.minimum(self.inner_lengths, parts * self.inner_size)
        self.dropped_tokens = int((self.inner_lengths - kept).sum())
        """Tokens after the ends of documents that were cut off."""
        self.full_examples = int(self.first_example[-1])

    def __len__(self) -> int:
        return self.full_examples

    def take(self, example_ids: NDArray[np.int64]) -> Examples:
        document_ids = np.searchsorted(self.first_example, example_ids, side="right") - 1
        begin = (
            example_ids - self.first_example[document_ids]
        ) * self.inner_size  # [B], within its document
        inner = np.minimum(self.inner_lengths[document_ids] - begin, self.inner_size)[:, None]
        lengths = np.maximum(inner[:, 0] + self.frame_size, 1)  # attention needs something to see
        width = padded_length(int(lengths.max(initial=1)), self.block_size)
        place = np.arange(width)[None, :] - len(self.prefix)  # [1, T], within the inner tokens
        first = self.shard.begins[document_ids] + len(self.prefix) + begin  # [B], in the corpus
        tokens = first[:, None] + np.clip(place, 0, np.maximum(inner - 1, 0))  # [B, T]
        tokens = np.minimum(tokens, len(self.shard.tokens) - 1)
        ids = self.shard.tokens[tokens]
        ids[:, : len(self.prefix)] = self.prefix
        after = place - inner  # [B, T]
        for number, token in enumerate(self.suffix):
            ids[after == number] = token
        ids[after >= len(self.suffix)] = self.pad_id
        return Examples(ids, lengths, None, _word_start_bits(self.shard, tokens))

    def document_ids(
        self, example_ids: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        return np.searchsorted(self.first_example, example_ids, side="right") - 1

    def account(self) -> str:
        cut = f" + {self.dropped_tokens:,} tokens cut off" if self.dropped_tokens else ""
        return f"{len(self):,} examples of at most {self.block_size}{cut}"


class SampledBlocks:
    """Some of the examples, drawn at random without replacement, in their order.

    They are numbered again, from 0. A shorter last one is never among them.
    """

    def __init__(self, blocks: Blocks, count: int, seed: int) -> None:
        self.blocks = blocks
        self.shard = blocks.shard
        self.block_size = blocks.block_size
        self.dropped_tokens = blocks.dropped_tokens
        self.full_examples = count
        self.chosen = np.sort(permuted(np.arange(count), blocks.full_examples, seed, 0))
        """int64 `[count]`, the number of each in `blocks`."""

    def __len__(self) -> int:
        return self.full_examples

    def take(self, example_ids: NDArray[np.int64]) -> Examples:
        return self.blocks.take(self.chosen[example_ids])

    def document_ids(
        self, example_ids: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        return self.blocks.document_ids(self.chosen[example_ids], places)

    def account(self) -> str:
        return f"{len(self):,} of {self.blocks.account()}, sampled"


def _word_start_bits(shard: Shard, tokens: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Whether words begin at some tokens of the corpus, uint8 of the same shape."""
    if shard.word_starts is None:
        return None
    bits: NDArray[np.uint8] = shard.word_starts[tokens >> 3] >> (tokens & 7).astype(np.uint8) & 1
    return bits


@dataclass(frozen=True)
class Order:
    """The examples of every batch, each epoch in a new random order."""

    example_count: int
    batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        """The last batch of an epoch may be short: no example waits for the next epoch."""
        return -(-self.example_count // self.batch_size)

    def batch(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of batch `number`, counted from 0, and its examples, int64 `[B]`."""
        epoch, within = divmod(number, self.batches_per_epoch)
        first = within * self.batch_size
        places = np.arange(first, min(first + self.batch_size, self.example_count))
        return epoch, permuted(places, self.example_count, self.seed, epoch)
