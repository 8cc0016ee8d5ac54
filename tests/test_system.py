"""Without the modules that Windows lacks: locks, memory and signals all the same."""

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mlmlab import system
from mlmlab.runtime.signals import Interruptions
from mlmlab.tracking.summary import peak_memory_bytes


class LockedBytes(ModuleType):
    """As Windows has it: a byte of a file is locked by one descriptor, or by none."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: dict[tuple[int, int], int] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert count == 1
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        if mode == self.LK_UNLCK:
            assert self.held.pop(place) == descriptor
        elif place in self.held:
            raise PermissionError(13, "Permission denied")
        else:
            self.held[place] = descriptor


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[LockedBytes]:
    """Neither fcntl nor resource can be imported, there is no SIGUSR1, and there is msvcrt."""
    locked = LockedBytes()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fcntl", None)
        patch.setitem(sys.modules, "resource", None)
        patch.setitem(sys.modules, "msvcrt", locked)
        patch.delattr(signal, "SIGUSR1")
        importlib.reload(system)
        yield locked
    importlib.reload(system)


def test_a_file_is_locked_by_one_and_can_be_read_and_written(
    windows: LockedBytes, tmp_path: Path
) -> None:
    (path := tmp_path / "config.yaml").write_text("seed: 0\n")
    with path.open("r+") as first, path.open() as second:
        assert second.readline() == "seed: 0\n"
        system.lock(first)
        ((_, byte),) = windows.held
        assert byte > path.stat().st_size  # others may read all that the file has
        for shared in (True, False):
            with pytest.raises(BlockingIOError):
                system.lock(second, shared=shared)
        assert first.read() == "seed: 0\n"
        windows.held.clear()  # as when the first process ends
        system.lock(second, shared=True)
        assert windows.held == {}  # it asked only


def test_memory_that_is_not_known_is_none(windows: LockedBytes) -> None:
    assert system.peak_process_bytes() is None


def test_without_its_signal_a_run_is_stopped_all_the_same(
    windows: LockedBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlmlab.runtime.signals.SAVE_SIGNAL", system.SAVE_SIGNAL)
    assert system.SAVE_SIGNAL is None
    with Interruptions() as interruptions:
        signal.raise_signal(signal.SIGTERM)
        assert interruptions.is_stop_asked


def test_a_folder_that_cannot_be_opened_is_not_flushed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a folder was opened"))
    system.flush(tmp_path)


def test_here_the_memory_of_the_process_is_known() -> None:
    known = peak_memory_bytes(torch.device("cpu"))
    assert known is not None
    assert known > 50 * 2**20
