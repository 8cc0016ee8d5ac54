"""Requests to a running run: signals from a person or a cluster, and the clock."""

import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mlmlab.runtime.distributed import ignore_sigterm, is_started_by_torchrun
from mlmlab.system import SAVE_SIGNAL

_ECHO_SECONDS = 2.0
"""Ctrl-C reaches each process twice under torchrun: from the terminal, and passed on by torchrun.
A second one within this time does not count."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What was asked of the run between two steps, summed over its processes. The counts only grow,
    so that no request is lost with a discarded batch: the next batch has it as well."""

    stops: int = 0
    """Processes that were asked to stop."""
    saves: int = 0
    """How often a process was asked for a checkpoint, since it started."""


class Interruptions:
    """Notes signals inside its `with` block, in the main thread; leaves them alone elsewhere.

    SIGTERM, SIGINT: stop after a checkpoint; a second SIGINT: at once. SIGUSR1: a checkpoint. The
    clock asks for checkpoints as well, so that a long epoch has some.
    """

    def __init__(
        self,
        save_every_minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
            save_every_minutes: how often it asks; None: never. Only rank 0 has one: the processes'
                requests are summed up, so that all of them save after the same step.
            clock: seconds since some point in time.
        """
        self._save_seconds = math.inf if save_every_minutes is None else 60 * save_every_minutes
        self._clock = clock
        self._last_due = clock()
        self._due_saves = 0
        """Counted apart from `_saves`, which a signal may change at any time."""
        self.signal: int | None = None
        """The one that asked to stop."""
        self._saves = 0
        self._first_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruptions":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, SAVE_SIGNAL):
                if number is None:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None and is_started_by_torchrun():
            self._before.pop(signal.SIGTERM, None)
            ignore_sigterm()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == SAVE_SIGNAL:
            self._saves += 1
            return
        if number == signal.SIGINT and self.signal == signal.SIGINT and not self._is_echo():
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._first_at = number, time.monotonic()

    def _is_echo(self) -> bool:
        return is_started_by_torchrun() and time.monotonic() - self._first_at < _ECHO_SECONDS

    @property
    def is_stop_asked(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal is not None

    def requests(self) -> Requests:
        """What this process was asked for so far."""
        now = self._clock()
        if now - self._last_due >= self._save_seconds:
            self._last_due = now
            self._due_saves += 1
        return Requests(stops=int(self.is_stop_asked), saves=self._saves + self._due_saves)
