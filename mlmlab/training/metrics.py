"""What is summed between two log lines, and the clocks of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from mlmlab.data.loader import StepBatch
from mlmlab.model import ModelConfig
from mlmlab.model.flops import actual_flops, dense_equivalent_flops
from mlmlab.runtime.distributed import Ranks
from mlmlab.training.state import LogWindow, ProgressRecord
from mlmlab.training.step import StepResult


class Window:
    """The figures since the last log line, kept on the device until they are shown."""

    def __init__(self, record: ProgressRecord, ranks: Ranks, device: torch.device) -> None:
        """Continues from the record."""
        self.ranks = ranks
        self._earlier = record
        sums = record.window.loss_sums
        if len(sums) != ranks.size:  # fewer or more processes than before
            sums = (sum(sums), *[0.0] * (ranks.size - 1))
        self.loss_sum = torch.tensor(sums[ranks.rank], dtype=torch.float32, device=device)
        self.loss_weight = record.window.loss_weight
        self.masking_rate = 0.0
        self._tokens = self._examples = self._predicted = 0
        self._data_seconds = 0.0
        self._seconds_before = 0.0
        """Of steps, when this window began."""
        self._step_seconds = 0.0
        """Of steps in this process; evaluations and checkpoints are paused out."""
        self._clock: float | None = None
        self._started = time.perf_counter()

    def add(self, result: StepResult, batch: StepBatch) -> None:
        """Counts a step in, without waiting for it."""
        self.loss_sum += result.loss_sum
        self.loss_weight += batch.loss_weight
        self.masking_rate = batch.masking_rate
        self._tokens += batch.token_count
        self._examples += batch.example_count
        self._predicted += batch.masked_count

    def mean_loss(self) -> float:
        """Nats per predicted token, over all processes; waits for the device."""
        return sum(self.ranks.gather(self.loss_sum.item())) / self.loss_weight

    @property
    def seconds(self) -> float:
        """Of steps in this window so far."""
        running = 0.0 if self._clock is None else time.perf_counter() - self._clock
        return self._step_seconds + running - self._seconds_before

    @property
    def step_seconds(self) -> float:
        """Of steps in this process, since the run began; asked for while the clock is paused."""
        return self._earlier.step_seconds + self._step_seconds

    def speed(self, config: ModelConfig, length: int) -> dict[str, float]:
        """How fast the steps of this window were, over all processes, by tag.

        Args:
            config: the model's.
            length: positions of a sequence, padding included.
        """
        seconds, examples = self.seconds, self._examples
        actual = actual_flops(config, examples=examples, length=length, predicted=self._predicted)
        dense = dense_equivalent_flops(config, examples=examples, length=length)
        return {
            "train/tokens_per_second": self._tokens / seconds,
            "usage/model_flops_per_second": actual / seconds,
            "usage/dense_equivalent_flops_per_second": dense / seconds,
            "usage/seconds": seconds,
            "usage/data_seconds": self._data_seconds,
        }

    def restart(self) -> None:
        """Begins a new window."""
        self.pause()
        self.loss_sum.zero_()
        self.loss_weight = 0.0
        self._tokens = self._examples = self._predicted = 0
        self._data_seconds = 0.0
        self._seconds_before = self._step_seconds
        self.resume()

    def pause(self) -> None:
        """Stops the clock of steps."""
        if self._clock is not None:
            self._step_seconds += time.perf_counter() - self._clock
            self._clock = None

    def resume(self) -> None:
        """Starts it again."""
        self._clock = time.perf_counter()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Measures how long the loop waits for a batch."""
        started = time.perf_counter()
        yield
        self._data_seconds += time.perf_counter() - started

    def noted(self, record: ProgressRecord) -> ProgressRecord:
        """The record, with this window and the clocks in it; all processes ask for it at once."""
        self.pause()
        sums = tuple(self.ranks.gather(self.loss_sum.item()))
        return replace(
            record,
            window=LogWindow(loss_sums=sums, loss_weight=self.loss_weight),
            seconds=self._earlier.seconds + time.perf_counter() - self._started,
            step_seconds=self.step_seconds,
        )
