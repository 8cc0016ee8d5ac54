"""Batches for the loop: examples by index arithmetic, masked, prepared beside the step.

B sequences   T positions   M predicted tokens
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.data.blocks import PackedBlocks
from mlmlab.data.order import Order
from mlmlab.masking import MaskingConfig, MaskingMode, VocabularyInfo, mask_batch
from mlmlab.random import Domain, derive_seed

Item = TypeVar("Item")

CHUNK_TOKENS = 8192
"""Tokens in a canonical evaluation chunk. Kernels give other last bits for other shapes, so the
shape belongs to the data set and not to the user's batch size."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward pass needs, on the host."""

    input_ids: torch.Tensor
    """int64 `[B, T]`, corrupted."""
    positions: torch.Tensor
    """int64 `[M]`, flat indices into B*T."""
    labels: torch.Tensor
    """int64 `[M]`, the original ids there."""
    row_offsets: torch.Tensor
    """int64 `[B + 1]`, where each row's positions begin."""

    @property
    def masked_count(self) -> int:
        """Predicted tokens; known without asking the device."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class UpdateBatch:
    """The micro-batches of one update."""

    number: int
    """Batches consumed before this one."""
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    masked_count: int
    """Predicted tokens of the whole update: what the loss is divided by."""
    token_count: int
    """Tokens of the whole update, predicted or not."""


def _micro_batch(
    blocks: PackedBlocks,
    examples: NDArray[np.int64],
    epoch: int,
    seed: int,
    masking: MaskingConfig,
    vocabulary: VocabularyInfo,
    pin_memory: bool,
) -> MicroBatch:
    batch = mask_batch(
        blocks.take(examples),
        example_ids=examples,
        epoch=epoch,
        seed=seed,
        config=masking,
        vocabulary=vocabulary,
    )
    arrays = (batch.input_ids, batch.positions, batch.labels, batch.row_offsets)
    tensors = [torch.from_numpy(array) for array in arrays]
    if pin_memory:
        tensors = [tensor.pin_memory() for tensor in tensors]
    return MicroBatch(*tensors)


@dataclass(frozen=True, eq=False)
class TrainLoader:
    """Batch `n` as a function of `n`."""

    blocks: PackedBlocks
    order: Order
    micro_batch_size: int
    masking: MaskingConfig
    vocabulary: VocabularyInfo
    seed: int
    pin_memory: bool = False
    """Whether tensors lie in page-locked memory, from where they reach CUDA without a stop."""

    def batch(self, number: int) -> UpdateBatch:
        """The batch with this number, counted from 0 over the whole run."""
        epoch, examples = self.order.batch(number)
        mask_epoch = 0 if self.masking.mode is MaskingMode.STATIC else epoch
        micro_batches = tuple(
            _micro_batch(
                self.blocks,
                examples[start : start + self.micro_batch_size],
                mask_epoch,
                self.seed,
                self.masking,
                self.vocabulary,
                self.pin_memory,
            )
            for start in range(0, len(examples), self.micro_batch_size)
        )
        return UpdateBatch(
            number=number,
            epoch=epoch,
            micro_batches=micro_batches,
            masked_count=sum(micro.masked_count for micro in micro_batches),
            token_count=len(examples) * self.blocks.block_size,
        )

    def batches(self, first: int) -> Iterator[UpdateBatch]:
        """All batches from `first` on, endlessly, each prepared while the one before it runs."""
        return _ahead(self.batch, first)


@dataclass(frozen=True, eq=False)
class EvalLoader:
    """The test examples in canonical chunks, with masks that never change."""

    blocks: PackedBlocks
    masking: MaskingConfig
    vocabulary: VocabularyInfo
    seed: int
    batch_size: int
    pin_memory: bool = False
    """As for `TrainLoader`."""

    @property
    def chunk_size(self) -> int:
        """Sequences in a chunk; the last one may be short."""
        return max(1, CHUNK_TOKENS // self.blocks.block_size)

    def chunks(self) -> Iterator[MicroBatch]:
        """Every example once, in order. `batch_size` decides only how many are prepared at a
        time: whole chunks, each of which meets the model alone."""
        chunk_count = -(-len(self.blocks) // self.chunk_size)
        group = max(1, self.batch_size // self.chunk_size)
        group_count = -(-chunk_count // group)

        def prepared(number: int) -> list[MicroBatch]:
            chunks = range(number * group, min((number + 1) * group, chunk_count))
            return [self._chunk(chunk) for chunk in chunks]

        for chunks in _ahead(prepared, 0, group_count):
            yield from chunks

    def _chunk(self, number: int) -> MicroBatch:
        first = number * self.chunk_size
        examples = np.arange(first, min(first + self.chunk_size, len(self.blocks)))
        mask_seed = derive_seed(self.seed, Domain.EVALUATE)
        return _micro_batch(
            self.blocks, examples, 0, mask_seed, self.masking, self.vocabulary, self.pin_memory
        )


def _ahead(prepare: Callable[[int], Item], first: int, end: int | None = None) -> Iterator[Item]:
    """`prepare(first)`, `prepare(first + 1)`, ... below `end`; a thread works one item ahead. The
    masking kernel releases the interpreter's lock, so that it runs beside the step."""
    if end is not None and first >= end:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        ahead: Future[Item] = thread.submit(prepare, first)
        number = first
        while True:
            item = ahead.result()
            number += 1
            if end is not None and number >= end:
                yield item
                return
            ahead = thread.submit(prepare, number)
            yield item
