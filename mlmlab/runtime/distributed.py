"""The processes of a run: torchrun starts them, one for each device, and they meet here.

What the model's gradients need travels through DDP on the default group (nccl on CUDA, gloo on the
CPU). What the host needs to know has gloo groups of its own: one for the main thread, and one for
the loader's thread, which works a batch ahead of it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from mlmlab.errors import FailedElsewhere, RunFailed, UserError

Value = TypeVar("Value")

_PATIENCE = timedelta(days=1)
"""How long a process waits for rank 0 to download and tokenize. A process that has died is
noticed at once, by its closed connection."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among those of its run. Without torchrun: the only one."""

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

    def sum_ahead(self, numbers: Sequence[int]) -> list[int]:
        """Sums of integers over all processes, for the loader's thread."""
        if self.ahead is None:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.int64)
        with _peers():
            dist.all_reduce(total, group=self.ahead)
        return [int(number) for number in total]

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in the order of their ranks."""
        if self.host is None:
            return [value]
        values: list[Value | None] = [None] * self.size
        with _peers():
            dist.all_gather_object(values, value, group=self.host)
        return values  # type: ignore[return-value]  # all of them were filled

    def on_rank_zero(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes; the other ranks wait for it.

        Raises:
            FailedElsewhere: it failed to, and says why itself.
        """
        if self.host is None:
            return make()
        outcome: list[object] = [None, None]
        failure: BaseException | None = None
        if self.is_rank_zero:
            try:
                outcome = [True, make()]
            except BaseException as error:
                outcome, failure = [False, 2 if isinstance(error, UserError) else 1], error
        with _peers():
            dist.broadcast_object_list(outcome, src=0, group=self.host)
        if failure is not None:
            raise failure
        if not outcome[0]:
            raise FailedElsewhere(int(str(outcome[1])))
        return outcome[1]  # type: ignore[return-value]


ALONE = Ranks()


def is_started_by_torchrun() -> bool:
    """Whether the environment names a rank and a world size."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(*, use_cuda: bool) -> Iterator[Ranks]:
    """Meets the other processes of the run, and parts from them at the end.

    Args:
        use_cuda: gradients travel over nccl, and this process takes the device of its local rank.

    Raises:
        RunFailed: another process of the run has ended.
    """
    if not is_started_by_torchrun():
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if use_cuda:
        torch.cuda.set_device(local_rank)
    with _peers():
        dist.init_process_group("nccl" if use_cuda else "gloo")
        host, ahead = (dist.new_group(backend="gloo", timeout=_PATIENCE) for _ in range(2))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, host, ahead)
    finally:
        with suppress(RuntimeError):  # what is lost already cannot be parted from
            dist.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_lost(error):
            outlast_sigterm()
            raise RunFailed(LOST) from error
        raise


LOST = (
    "another process of the run has ended, and a run goes on with all of them or not at all.\n"
    "The newest checkpoint is complete: python -m mlmlab.train resume=RUN_DIR goes on from there,\n"
    "under the same torchrun command. Why it ended, it may have said itself, further up; if it\n"
    "has not, it was killed (kill -9, or the system out of memory)."
)


def is_lost(error: RuntimeError) -> bool:
    """Whether PyTorch reports that a peer cannot be reached any more."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("Connection closed by peer", "gloo/transport", "Connection reset")
    )


def outlast_sigterm() -> None:
    """Lets this process, which is about to end, say why: torchrun sends SIGTERM to all of them as
    soon as one has gone, and SIGKILL half a minute later."""
    if is_started_by_torchrun() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


_TELL_SECONDS = 20


def is_first_to_tell() -> bool:
    """Whether this process is the one that prints why a distributed run ends. The others wait until
    that has happened: torchrun kills all of them as soon as one has ended."""
    with suppress(RuntimeError, ValueError):
        if _store().add(_key("telling"), 1) == 1:
            return True
        wait_until_told()
        return False
    return os.environ["RANK"] == "0"  # the store is lost, too


def wait_until_told() -> None:
    """Waits until another process has printed why the run ends."""
    with suppress(RuntimeError, ValueError):
        _store().wait([_key("told")], timedelta(seconds=_TELL_SECONDS))


def has_told() -> None:
    """Lets the other processes end, too."""
    with suppress(RuntimeError, ValueError):
        _store().set(_key("told"), "1")


def _key(name: str) -> str:
    return f"mlmlab/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _store() -> TCPStore:
    """The table of names and values that torchrun keeps for the processes."""
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_TELL_SECONDS),
    )
