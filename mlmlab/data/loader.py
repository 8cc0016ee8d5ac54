"""Batches for the loop: examples by index arithmetic, masked, prepared while the step runs.

B sequences   T positions   M predicted tokens
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.data.batch import Masker, MicroBatch
from mlmlab.data.blocks import Blocks, Examples, Order
from mlmlab.errors import Code, UserError
from mlmlab.masking import MaskingPolicy
from mlmlab.random import Seeds
from mlmlab.runtime.distributed import ALONE, Ranks
from mlmlab.runtime.signals import Requests

Item = TypeVar("Item")

CHUNK_TOKENS = 8192
"""Tokens in a canonical evaluation chunk. Kernels give other last bits for other shapes, so the
shape belongs to the data set and not to the user's batch size."""


@dataclass(frozen=True, eq=False)
class EvalChunk:
    """A canonical chunk of an evaluation."""

    batch: MicroBatch
    document_ids: torch.Tensor
    """int64 `[M]`, the document of each predicted token."""
    counts: bool = True
    """False: a dummy example that keeps the ranks in step; nothing of it is scored."""

    def __len__(self) -> int:
        """How many examples it has."""
        return len(self.batch.masked.input_ids)


@dataclass(frozen=True, eq=False)
class StepBatch:
    """This rank's micro-batches of one step; every rank has as many."""

    number: int
    """Batches consumed before this one."""
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    masked_count: int
    """Predicted tokens of the full step, over all processes."""
    loss_weight: float
    """What the loss of the full step is divided by, over all processes; 0: nothing to learn."""
    token_count: int
    """Real tokens of the full step, predicted or not."""
    masking_rate: float
    """The share of them that was to be predicted, or was, where a custom objective decides."""
    example_count: int = 0
    """Examples of the full step."""
    requests: Requests = field(default_factory=Requests)
    """All that had been asked for when this batch was prepared."""


class Prepares(Protocol):
    """What the loader asks of an objective; masked language modelling needs a `Masker` alone."""

    def prepare(
        self, examples: Examples, example_ids: NDArray[np.int64], epoch: int, step: int
    ) -> MicroBatch:
        """A micro-batch of these examples, a function of the arguments.

        Args:
            example_ids: int64 `[B]`.
            epoch: from 0.
            step: steps applied before it.
        """


@dataclass(frozen=True, eq=False)
class TrainLoader:
    """Batch `n` as a function of `n`."""

    blocks: Blocks
    order: Order
    micro_batch_size: int
    """Examples per forward pass, in each process."""
    objective: Prepares
    seeds: Seeds
    ranks: Ranks = ALONE
    """Of a batch's examples, this process takes every `size`-th, from its rank on."""
    requested: Callable[[], Requests] = Requests
    """Of this process; asked once for each batch."""
    groups_rows: bool = False
    """Whether padded rows and isolated documents are put in groups (`MicroBatch.in_groups`)."""

    def batch(self, number: int, step: int = 0) -> StepBatch:
        """A batch; every process asks for the same ones in the same order.

        Args:
            number: counted from 0 over the run: decides examples and masks.
            step: steps applied before it: decides the masking rate.
        """
        epoch, example_ids = self.order.batch(number)
        micro_batches = tuple(self._micro_batches(example_ids, epoch, step))
        requests = self.requested()
        weight, masked, tokens, stops, saves = self.ranks.sum_ahead(
            [
                sum(micro.divisor for micro in micro_batches),
                sum(micro.masked_count for micro in micro_batches),
                sum(micro.token_count for micro in micro_batches),
                requests.stops,
                requests.saves,
            ]
        )
        rate = micro_batches[0].masking_rate
        return StepBatch(
            number=number,
            epoch=epoch,
            micro_batches=micro_batches,
            loss_weight=weight,
            masked_count=int(masked),
            token_count=int(tokens),
            masking_rate=masked / tokens if rate is None else rate,
            example_count=len(example_ids),
            requests=Requests(stops=int(stops), saves=int(saves)),
        )

    def _micro_batches(
        self, example_ids: NDArray[np.int64], epoch: int, step: int
    ) -> Iterator[MicroBatch]:
        mine = example_ids[self.ranks.rank :: self.ranks.size]
        most = -(-len(example_ids) // self.ranks.size)  # those of rank 0
        for start in range(0, most, self.micro_batch_size):
            chosen = mine[start : start + self.micro_batch_size]
            ids = chosen if len(chosen) else example_ids[:1]
            micro = self.prepare(ids, epoch, step)
            if self.groups_rows:
                micro = micro.in_groups()
            yield micro if len(chosen) else micro.without_predictions()

    def prepare(self, example_ids: NDArray[np.int64], epoch: int, step: int) -> MicroBatch:
        """What the objective makes of some examples; see `Prepares.prepare`.

        Raises:
            UserError: a custom objective makes something else of them.
        """
        micro = self.objective.prepare(self.blocks.take(example_ids), example_ids, epoch, step)
        if not isinstance(micro, MicroBatch):
            raise UserError.of(
                "objective.name",
                code=Code.INVALID,
                found=f"{type(self.objective).__name__}, whose prepare returned "
                f"{type(micro).__name__}",
                expected="a MicroBatch",
                remedy="return what masker.micro_batch(...) returns, changed with "
                "dataclasses.replace",
            )
        return micro

    def batches(self, first: int, step: int) -> Generator[StepBatch, None, None]:
        """All batches from `first` on, endlessly, each prepared while the one before it runs.

        Args:
            first: the number of the first.
            step: steps applied before it; each batch with something to learn is one more.
        """

        def prepared(number: int) -> StepBatch:
            nonlocal step
            batch = self.batch(number, step)
            step += batch.loss_weight > 0
            return batch

        return _ahead(prepared, first)


@dataclass(frozen=True, eq=False)
class EvalLoader:
    """The test examples in canonical chunks, with masks that never change."""

    blocks: Blocks
    masker: Masker[MaskingPolicy]
    draws: int = 1
    """How often each example is scored, each time with other masks."""
    max_examples: int | None = None
    """Score the fewest chunks that hold this many examples; None: all."""

    @property
    def examples_per_draw(self) -> int:
        """Examples to score in one draw."""
        if self.max_examples is None or self.max_examples >= len(self.blocks):
            return len(self.blocks)
        size = self._chunk_size
        end = -(-self.max_examples // size) * size
        return end if end <= self.blocks.full_examples else len(self.blocks)

    @property
    def example_count(self) -> int:
        """Examples to score, over all draws."""
        return self.examples_per_draw * self.draws

    @property
    def chunk_count(self) -> int:
        """Chunks of the complete evaluation."""
        return len(self._bounds())

    def _bounds(self) -> list[tuple[int, int, int]]:
        """Draw, first example and last of each chunk, in order."""
        size, count = self._chunk_size, self.examples_per_draw
        full = min(self.blocks.full_examples, count)
        return [
            (draw, first, min(first + size, end))
            for draw in range(self.draws)
            for start, end in ((0, full), (full, count))
            for first in range(start, end, size)
        ]

    @property
    def _chunk_size(self) -> int:
        return max(1, CHUNK_TOKENS // self.blocks.block_size)

    def chunks(self, ranks: Ranks = ALONE) -> Iterator[EvalChunk]:
        """The examples once per draw, in order, one chunk prepared ahead.

        Args:
            ranks: of the chunks, a process gets every `size`-th from its rank on; and an example
                that does not count where the last round has no chunk for it, since the model may be
                in shards (fsdp) and every forward pass a meeting of all processes.
        """
        bounds = self._bounds()[ranks.rank :: ranks.size]
        yield from _ahead(lambda number: self._chunk(*bounds[number]), 0, len(bounds))
        if len(bounds) < -(-self.chunk_count // ranks.size):
            spare = self._chunk(0, 0, 1)
            yield EvalChunk(spare.batch.without_predictions(), spare.document_ids[:0], counts=False)

    def _chunk(self, draw: int, first: int, end: int) -> EvalChunk:
        example_ids = np.arange(first, end)
        batch = self.masker.micro_batch(self.blocks.take(example_ids), example_ids, epoch=draw)
        rows, places = np.divmod(batch.masked.positions.numpy(), batch.masked.input_ids.shape[1])
        document_ids = self.blocks.document_ids(example_ids[rows], places)
        return EvalChunk(batch, torch.from_numpy(document_ids))


def _ahead(
    prepare: Callable[[int], Item], first: int, end: int | None = None
) -> Generator[Item, None, None]:
    """`prepare(first)`, `prepare(first + 1)`, ... below `end`; a thread works one item ahead. The
    masking kernel releases the interpreter's lock, so that both run at once."""
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
