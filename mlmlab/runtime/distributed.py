"""The ranks of a run: processes that torchrun starts, one for each device.

Gradients are reduced on the default group (nccl on CUDA, gloo on the CPU). The host has two gloo
groups: one for the main thread, and one for the loader's thread, which works a batch ahead of it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mlmlab.errors import FailedElsewhere, RunFailed

Value = TypeVar("Value")

_PATIENCE = timedelta(days=1)
"""How long a rank waits for rank 0 to download and tokenize. That a process has died is noticed at
once, by its closed connection."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process and the others of its run; without torchrun it is the only one."""

    rank: int = 0
    """0 ... size - 1; rank 0 writes, prints and downloads."""
    size: int = 1
    local_rank: int = 0
    """The number of this process on its machine, and of its CUDA device."""
    host: dist.ProcessGroup | None = None
    """The gloo group of the main threads; None without torchrun."""
    ahead: dist.ProcessGroup | None = None
    """The gloo group of the loaders' threads."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether torchrun started this process."""
        return self.host is not None

    def sum_ahead(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all processes, for the loader's thread; those of integers are exact."""
        if self.ahead is None:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self.ahead)
        return total.tolist()

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in the order of their ranks."""
        if self.host is None:
            return [value]
        values: list[Value | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.host)
        return values  # type: ignore[return-value]  # all of them were filled

    def on_rank_zero(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes; the other ranks wait for it.

        Raises:
            FailedElsewhere: on the other ranks, where rank 0 raises what went wrong.
        """
        if self.host is None:
            return make()
        outcome: list[Any] = [None]
        if self.is_rank_zero:
            try:
                outcome = [make()]
            except BaseException as error:
                ignore_sigterm()  # the others end at once, which must not end this process
                self._broadcast([FailedElsewhere(getattr(error, "status", 1))])
                raise
        self._broadcast(outcome)
        if isinstance(outcome[0], FailedElsewhere):
            raise outcome[0]
        return outcome[0]  # type: ignore[no-any-return]

    def _broadcast(self, values: list[Any]) -> None:
        dist.broadcast_object_list(values, src=0, group=self.host)


ALONE = Ranks()


def is_started_by_torchrun() -> bool:
    """Whether the environment names a rank and a world size."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(*, use_cuda: bool, if_lost: str = "") -> Iterator[Ranks]:
    """Initializes the process group, and destroys it at the end.

    Args:
        use_cuda: gradients travel over nccl, and this process takes the device of its local rank.
        if_lost: what the user can do when another process has ended.

    Raises:
        RunFailed: another process of the run has ended.
    """
    if not is_started_by_torchrun():
        yield ALONE
        return
    local_rank, is_lost = int(os.environ.get("LOCAL_RANK", "0")), False
    if use_cuda:
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("nccl" if use_cuda else "gloo")
        host, ahead = (dist.new_group(backend="gloo", timeout=_PATIENCE) for _ in range(2))
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, host, ahead)
    except BaseException as error:
        ignore_sigterm()  # before the others notice that this one is gone
        if isinstance(error, RuntimeError) and _is_lost(error):
            is_lost = True
            raise RunFailed(f"{_LOST}\n{if_lost}".rstrip()) from error
        raise
    finally:
        if not is_lost:  # else gloo may wait for the lost process, and the message with it
            with suppress(RuntimeError, AssertionError):  # there was never a group
                dist.destroy_process_group()


_LOST = (
    "another process of the run has ended, and a run needs all of them. If that process has not\n"
    "printed why, it was killed (kill -9, or the system out of memory)."
)


def _is_lost(error: RuntimeError) -> bool:
    """Whether PyTorch reports that another process cannot be reached."""
    return isinstance(error, dist.DistError) or any(
        sign in str(error)
        for sign in ("Connection closed by peer", "gloo/transport", "Connection reset")
    )


def ignore_sigterm() -> None:
    """Lets this process, which is about to fail, print why: as soon as one process has ended,
    torchrun sends SIGTERM to the others, and SIGKILL half a minute later."""
    if is_started_by_torchrun() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
