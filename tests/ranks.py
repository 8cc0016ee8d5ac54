"""Runs of several processes: under torchrun, or forked from one that has imported PyTorch."""

import importlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from stopping import forkserver
from torch.distributed import TCPStore

import mlmlab
from mlmlab.cli.commands import as_command

PATIENCE_SECONDS = 60.0
"""So long after one of its processes has gone, a run may still be there."""
START_SECONDS = 120.0
"""So long a start may take where other work fills the machine."""
_ROOT = str(Path(mlmlab.__file__).parents[1])


@dataclass(frozen=True)
class Ended:
    """What a run leaves behind."""

    statuses: list[int]
    """Of each process; or of torchrun, which has one."""
    stdout: str
    stderr: str
    folder: Path
    """Where it ran."""
    seconds: float
    """Between the last signal, or else the start, and the end of all processes."""

    def messages(self) -> dict[int, str]:
        """What the processes wrote to stderr, by rank, each on one line; without torchrun's own
        report."""
        first, *others = re.split(r"^mlmlab: \[rank (\d+)\] ", self.stderr, flags=re.MULTILINE)
        assert "mlmlab: " not in first, self.stderr
        ranks, texts = others[::2], others[1::2]
        assert len(set(ranks)) == len(ranks), self.stderr
        found = {}
        for rank, text in zip(ranks, texts, strict=True):
            lines = re.split(r"^[WE]\d{4} |^Traceback", text, maxsplit=1, flags=re.MULTILINE)[0]
            found[int(rank)] = " ".join(lines.split())
        return found

    def message(self) -> str:
        """The message, the same from every process that wrote one."""
        (text,) = set(self.messages().values())
        return text


class Running(ABC):
    """`python -m mlmlab.train ...` at work in several processes, in a separate folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.out, self.err = folder / "stdout.txt", folder / "stderr.txt"
        for file in (self.out, self.err):
            file.unlink(missing_ok=True)
        self._since = time.monotonic()

    @abstractmethod
    def pids(self) -> list[int]:
        """Process ids by rank."""

    @abstractmethod
    def is_over(self) -> bool:
        """Whether something of it has ended."""

    @abstractmethod
    def wait(self, timeout: float) -> list[int]:
        """Waits for the end, and returns the statuses."""

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Looks every millisecond; a run that ends before it is so fails the test."""
        end = time.monotonic() + START_SECONDS
        while not is_so():
            assert not self.is_over(), self.err.read_text()
            assert time.monotonic() < end
            time.sleep(0.001)

    def wait_for_metrics(self, lines: int, run: str = "run") -> None:
        """Until metrics.jsonl has this number of lines of figures."""
        file = self.folder / run / "metrics.jsonl"
        self.wait_until(lambda: file.exists() and file.read_bytes().count(b'"epoch"') >= lines)

    def send(self, number: int, rank: int) -> None:
        """A signal to one of the processes."""
        self._since = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(self.pids()[rank], number)

    def end(self, timeout: float = START_SECONDS) -> Ended:
        """Waits until all processes have gone."""
        statuses = self.wait(timeout)
        seconds = time.monotonic() - self._since
        return Ended(statuses, self.out.read_text(), self.err.read_text(), self.folder, seconds)


def child_environment() -> dict[str, str]:
    """Ours, for a Python that imports the mlmlab under test and takes one core."""
    path = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class Torchrun(Running):
    """Under torchrun itself."""

    def __init__(
        self, folder: Path, overrides: tuple[str, ...], processes: int, meet: str | None
    ) -> None:
        super().__init__(folder)
        alone = ["--standalone"]
        pair = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={meet}", "--rdzv-id=pair"]
        command = [sys.executable, "-m", "torch.distributed.run", *(pair if meet else alone)]
        command += [f"--nproc-per-node={processes}", "-m", "mlmlab.train", *overrides]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=child_environment(),
                stdout=out,
                stderr=err,
            )
        self._size = processes
        self._ranks: dict[int, int] = {}

    def pids(self) -> list[int]:
        self.wait_until(self._knows_all)
        return [self._ranks[rank] for rank in range(self._size)]

    def _knows_all(self) -> bool:
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with suppress(OSError):
                    text = Path(f"/proc/{child}/environ").read_text()
                    if found := re.search(r"(?:^|\0)RANK=(\d+)", text):
                        self._ranks[int(found[1])] = int(child)
        return len(self._ranks) == self._size

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def send_to_torchrun(self, number: int) -> None:
        """A signal, as a cluster sends it."""
        self.pids()
        self._since = time.monotonic()
        self.process.send_signal(number)

    def wait(self, timeout: float) -> list[int]:
        status = self.process.wait(timeout)
        for pid in self._ranks.values():
            while Path(f"/proc/{pid}").exists():
                assert time.monotonic() < self._since + timeout
                time.sleep(0.01)
        return [status]

    def kill(self) -> None:
        """Leaves nothing behind."""
        if not self.is_over():
            with suppress(OSError):
                self._knows_all()
            for pid in (*self._ranks.values(), self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()


class Forked(Running):
    """In processes that start in no time, and of which nobody ends the others."""

    def __init__(
        self,
        folder: Path,
        overrides: tuple[str, ...],
        processes: int,
        environment: Mapping[str, str] | None = None,
        module: str = "mlmlab.train",
    ) -> None:
        super().__init__(folder)
        for file in (self.out, self.err):
            file.touch()
        self._ranks = _Ranks(
            processes, _command, module, folder, overrides, dict(environment or {})
        )

    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._ranks.processes]

    def is_over(self) -> bool:
        return any(process.exitcode is not None for process in self._ranks.processes)

    def wait(self, timeout: float) -> list[int]:
        return self._ranks.join(timeout)

    def kill(self) -> None:
        """Leaves nothing behind."""
        self._ranks.kill()


class _Ranks:
    """A function in several processes that find in their environment what torchrun gives its own.

    As under torchrun, the store of names and values outlives each of them.
    """

    def __init__(self, size: int, function: Callable[..., object], *arguments: Any) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = forkserver()
        self.processes: list[BaseProcess] = [
            context.Process(
                target=_as_rank, args=(rank, size, self._store.port, function, *arguments)
            )
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def join(self, timeout: float) -> list[int]:
        """Waits for all of them, and returns their statuses."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        assert None not in statuses, f"still there after {timeout} s: {statuses}"
        return [status for status in statuses if status is not None]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _as_rank(
    rank: int, size: int, port: int, function: Callable[..., object], *arguments: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    function(*arguments)


def _command(
    module: str, folder: Path, overrides: tuple[str, ...], environment: dict[str, str]
) -> None:
    main = importlib.import_module(module).main
    os.environ |= environment
    os.chdir(folder)
    for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = [module, *overrides]
    as_command(main)


@contextmanager
def torchrun(
    folder: Path, *overrides: str, processes: int = 2, meet: str | None = None
) -> Iterator[Torchrun]:
    """A run under torchrun, in a folder that need not exist.

    Args:
        meet: HOST:PORT where two torchruns meet, as those of two machines do.
    """
    run = Torchrun(folder, overrides, processes, meet)
    try:
        yield run
    finally:
        run.kill()


@contextmanager
def forked(
    folder: Path,
    *overrides: str,
    processes: int = 2,
    environment: Mapping[str, str] | None = None,
    module: str = "mlmlab.train",
) -> Iterator[Forked]:
    """A run (or another command) in forked processes, in a folder that need not exist."""
    run = Forked(folder, overrides, processes, environment, module)
    try:
        yield run
    finally:
        run.kill()


def forked_to_the_end(folder: Path, *overrides: str, processes: int = 2) -> Ended:
    """A run that must succeed."""
    with forked(folder, *overrides, processes=processes) as run:
        ended = run.end()
    assert ended.statuses == [0] * processes, ended.stderr
    return ended


def in_ranks(size: int, function: Callable[..., object], *arguments: Any) -> None:
    """A function of ours in forked processes, which must all succeed."""
    ranks = _Ranks(size, function, *arguments)
    try:
        assert ranks.join(START_SECONDS) == [0] * size
    finally:
        ranks.kill()


def pause(rng: random.Random, longest_seconds: float) -> None:
    """A moment of any length."""
    time.sleep(rng.uniform(0.0, longest_seconds))


def assert_same_curve(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Two runs are the same to rounding, event by event, and their masked examples are equal."""
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key == "fill_mask":
                continue  # its probabilities are rounded: a last digit may differ
            if not isinstance(value, str):
                value = pytest.approx(value, rel=1e-7 if key == "eval/loss" else 1e-5)
            assert ours[key] == value, key
