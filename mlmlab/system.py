"""What Linux and macOS have, and Windows does not: locks, signals, memory, folders on disk.

Windows has not been tried. What replaces the missing modules is tested on Linux, by hiding them.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any


def _module(name: str) -> Any:
    """A module of the standard library, or None where the system lacks it."""
    try:
        return import_module(name)
    except ImportError:
        return None


fcntl, resource = _module("fcntl"), _module("resource")
SAVE_SIGNAL: int | None = getattr(signal, "SIGUSR1", None)
"""Asks a run for a checkpoint; None: Windows has no such signal."""
_LOCKED_BYTE = 1 << 40
"""Windows locks bytes, and nobody else can read those: one that no file has."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (malloc.h)."""


def lock(file: IO[Any], *, shared: bool = False) -> None:
    """Locks an open file until it is closed, however its process ends.

    Args:
        shared: with others that lock it likewise. On Windows a shared lock only asks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    windows = import_module("msvcrt")
    before = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    try:
        os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
        if shared:
            windows.locking(file.fileno(), windows.LK_UNLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(error.errno, error.strerror) from error
    finally:
        os.lseek(file.fileno(), before, os.SEEK_SET)


def peak_process_bytes() -> int | None:
    """The largest memory of this process so far; None where it is not known (Windows)."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keeps the memory that tensors free for the next ones, and returns it at the end.

    By default glibc returns large blocks to the system, which clears each page of the next one:
    about 100 ms of a 1,300 ms step of DistilRoBERTa on two cores (benchmarks/NOTES.md). Other
    allocators stay as they are.
    """
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 65536)  # the defaults, as in man 3 mallopt
        libc.mallopt(_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk. Windows cannot open a
    folder: there it waits for files only."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
