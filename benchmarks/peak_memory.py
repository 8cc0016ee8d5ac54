"""Some work in a fresh process, and its peak memory above what was in memory before it."""

import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Work = Callable[[], T]
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def in_new_process(
    prepare: Callable[..., Callable[[], T]], *arguments: Any
) -> tuple[T, int | None]:
    """Calls `prepare(*arguments)()`.

    Args:
        prepare: loads what does not count; a function of a module, for another process calls it.

    Returns:
        The result; and the peak memory, in bytes, above what `prepare` leaves behind, without that
        of other processes. None where there is no /proc to read it from.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_here, prepare, arguments).result()


def _here(
    prepare: Callable[..., Callable[[], T]], arguments: tuple[Any, ...]
) -> tuple[T, int | None]:
    work = prepare(*arguments)
    gc.collect()
    if not RESET.exists():
        return work(), None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's, which keeps some of what is freed
        libc.malloc_trim(0)
    before = _status_bytes("VmRSS")
    RESET.write_text("5")  # sets VmHWM, the peak, back to VmRSS (man 5 proc)
    result = work()
    return result, _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def shown(size: int | None) -> str:
    """For a table."""
    return "unknown" if size is None else f"{size / 2**20:,.0f} MiB"
