"""The peak memory of some work above what was in memory before it, in a fresh process."""

import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int | None:
    """What `prepare(*arguments)()` needs at most above what `prepare(*arguments)` leaves behind.

    Args:
        prepare: loads what does not count; a function of a module, for another process calls it.

    Returns:
        None where there is no /proc to read it from.
    """
    if not RESET.exists():
        return None
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_peak_here, prepare, arguments).result()


def _peak_here(prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> int:
    work = prepare(*arguments)
    gc.collect()
    before = _status_bytes("VmRSS")
    RESET.write_text("5")  # sets VmHWM, the peak, back to VmRSS (man 5 proc)
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def shown(size: int | None) -> str:
    """For a table."""
    return "unknown" if size is None else f"{size / 2**20:,.0f} MiB"
