"""Batches for the loop: examples by index arithmetic, masked, prepared beside the step.

B sequences   T positions   M predicted tokens
"""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.data.blocks import Blocks, Rows
from mlmlab.data.order import Order
from mlmlab.masking import MaskingConfig, MaskingMode, Unit, VocabularyInfo, mask_batch
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
    attention_mask: torch.Tensor | None = None
    """bool `[B, T]`, True where a real token stands; None: no padding."""
    documents: torch.Tensor | None = None
    """int64 `[B, T]`, each token's document where documents are hidden from each other."""

    @property
    def masked_count(self) -> int:
        """Predicted tokens; known without asking the device."""
        return len(self.labels)

    @property
    def token_count(self) -> int:
        """Real tokens, padding not counted."""
        mask = self.attention_mask
        return self.input_ids.numel() if mask is None else int(mask.sum())

    def model_inputs(self, device: torch.device) -> dict[str, torch.Tensor | None]:
        """The arguments of the model's forward pass, on their way to the device."""
        tensors = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "positions": self.positions,
            "documents": self.documents,
        }
        return {
            name: None if tensor is None else tensor.to(device, non_blocking=True)
            for name, tensor in tensors.items()
        }


@dataclass(frozen=True, eq=False)
class EvalChunk:
    """A canonical chunk of an evaluation."""

    batch: MicroBatch
    owners: torch.Tensor
    """int64 `[M]`, the document of each predicted token."""


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
    """Real tokens of the whole update, predicted or not."""
    masking_rate: float
    """The share of them that was to be predicted."""


def _micro_batch(
    blocks: Blocks,
    examples: NDArray[np.int64],
    epoch: int,
    seed: int,
    masking: MaskingConfig,
    vocabulary: VocabularyInfo,
    pin_memory: bool,
) -> MicroBatch:
    rows = blocks.take(examples)
    batch = mask_batch(
        rows.input_ids,
        example_ids=examples,
        epoch=epoch,
        seed=seed,
        config=masking,
        vocabulary=vocabulary,
        word_starts=None if masking.unit is Unit.TOKEN else rows.word_starts,
    )
    tensors: list[torch.Tensor | None] = [
        torch.from_numpy(array)
        for array in (batch.input_ids, batch.positions, batch.labels, batch.row_offsets)
    ]
    for array in (_attention_mask(rows), rows.documents):
        tensors.append(None if array is None else torch.from_numpy(array))
    if pin_memory:
        tensors = [None if tensor is None else tensor.pin_memory() for tensor in tensors]
    return MicroBatch(*tensors)  # type: ignore[arg-type]  # the first four are never None


def _attention_mask(rows: Rows) -> NDArray[np.bool_] | None:
    width = rows.input_ids.shape[1]
    if rows.lengths is None or rows.lengths.min() == width:
        return None
    mask: NDArray[np.bool_] = np.arange(width) < rows.lengths[:, None]
    return mask


@dataclass(frozen=True, eq=False)
class TrainLoader:
    """Batch `n` as a function of `n`."""

    blocks: Blocks
    order: Order
    micro_batch_size: int
    masking: MaskingConfig
    vocabulary: VocabularyInfo
    seed: int
    updates: int = 1
    """Updates of the whole run, for a masking rate that moves."""
    pin_memory: bool = False
    """Whether tensors lie in page-locked memory, from where they reach CUDA without a stop."""

    def batch(self, number: int, update: int = 0) -> UpdateBatch:
        """A batch.

        Args:
            number: counted from 0 over the whole run: decides examples and masks.
            update: updates applied before it: decides the masking rate.
        """
        epoch, examples = self.order.batch(number)
        rate = self.masking.rate_at(update, self.updates)
        masking = dataclasses.replace(self.masking, rate=rate)
        mask_epoch = 0 if self.masking.mode is MaskingMode.STATIC else epoch
        micro_batches = tuple(
            _micro_batch(
                self.blocks,
                examples[start : start + self.micro_batch_size],
                mask_epoch,
                self.seed,
                masking,
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
            token_count=sum(micro.token_count for micro in micro_batches),
            masking_rate=rate,
        )

    def batches(self, first: int, update: int) -> Iterator[UpdateBatch]:
        """All batches from `first` on, endlessly, each prepared while the one before it runs.

        Args:
            first: the number of the first.
            update: updates applied before it; each batch with a predicted token is one more.
        """

        def prepared(number: int) -> UpdateBatch:
            nonlocal update
            batch = self.batch(number, update)
            update += batch.masked_count > 0
            return batch

        return _ahead(prepared, first)


@dataclass(frozen=True, eq=False)
class EvalLoader:
    """The test examples in canonical chunks, with masks that never change."""

    blocks: Blocks
    masking: MaskingConfig
    vocabulary: VocabularyInfo
    seed: int
    batch_size: int
    draws: int = 1
    """How often each example is scored, each time with other masks."""
    pin_memory: bool = False
    """As for `TrainLoader`."""

    @property
    def example_count(self) -> int:
        """Examples to score, over all draws."""
        return len(self.blocks) * self.draws

    def chunks(self) -> Iterator[EvalChunk]:
        """Every example once a draw, in order. `batch_size` decides only how many are prepared at
        a time: whole chunks, each of which meets the model alone."""
        size = max(1, CHUNK_TOKENS // self.blocks.block_size)
        bounds = [
            (draw, first, min(first + size, end))
            for draw in range(self.draws)
            for start, end in ((0, self.blocks.even), (self.blocks.even, len(self.blocks)))
            for first in range(start, end, size)
        ]
        group = max(1, self.batch_size // size)

        def prepared(number: int) -> list[EvalChunk]:
            return [self._chunk(*bound) for bound in bounds[number * group : (number + 1) * group]]

        for chunks in _ahead(prepared, 0, -(-len(bounds) // group)):
            yield from chunks

    def _chunk(self, draw: int, first: int, end: int) -> EvalChunk:
        examples = np.arange(first, end)
        batch = _micro_batch(
            self.blocks,
            examples,
            draw,
            derive_seed(self.seed, Domain.EVALUATE),
            self.masking,
            self.vocabulary,
            self.pin_memory,
        )
        rows, places = np.divmod(batch.positions.numpy(), batch.input_ids.shape[1])
        return EvalChunk(batch, torch.from_numpy(self.blocks.owners(examples[rows], places)))


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
