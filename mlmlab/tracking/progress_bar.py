"""What a person watches: a progress bar on a terminal or in a notebook, a line now and then
elsewhere."""

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # A notebook without ipywidgets: the bar is made of characters then, as on a terminal.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

Chunk = TypeVar("Chunk", bound=Sized)

_WIDTH = 79
_LINES_ELSEWHERE, _SECONDS_ELSEWHERE = 10, 30.0
"""Where the output is not a terminal (a log file), the training reports so often in all, and at
least as often as this."""
_MINUTE = 60.0
"""Of a sweep's job there is one line a minute at most."""


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """How a run shows itself where it is a job of a sweep, which says what it varies, and prints
    the result."""

    name: str
    """Shown next to the bar: job 3 of 6."""
    shows_plan: bool
    """The plan and the like are the same for most jobs: one of them prints it."""
    is_side_by_side: bool
    """Whether it shares the terminal with other jobs: then it has no bar, and its lines begin with
    its name."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, VS Code, Colab), as tqdm finds
    out."""
    return "ipykernel.zmqshell" in sys.modules


def _width() -> int | None:
    """Of a bar in characters; None in a notebook, where it has the width of its cell."""
    return None if in_notebook() else _WIDTH


def duration(seconds: float) -> str:
    """A time in the unit that a person would choose: 12 s, 12 min, 12.5 h."""
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def shown(number: float) -> str:
    """A loss or perplexity in five characters or so: 3.871, 41.53, 25310."""
    if number != number or number >= 1e6:
        return f"{number:.3g}"
    return f"{number:.{max(0, 4 - len(str(int(number))))}f}"


@contextmanager
def tokenization_bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar for a reading of unknown length: call it with the documents and tokens so far."""
    with tqdm(
        desc="tokenize", unit=" documents", unit_scale=True, ncols=_width(), leave=False,
        disable=quiet or not _is_watched(),
    ) as bar:  # fmt: skip

        def show(documents: int, tokens: int) -> None:
            bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
            bar.update(documents - bar.n)

        yield show


def _is_watched() -> bool:
    """Whether a bar can move: on a terminal and in a notebook, but not in a log file."""
    return sys.stderr.isatty() or in_notebook()


class ProgressBar:
    """The bar of one training (none where there is no step), and its lines."""

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        *,
        quiet: bool = False,
        job: SweepJob | None = None,
    ) -> None:
        """Shows the bar.

        Args:
            quiet: neither bar nor lines.
            job: what it is in a sweep.
        """
        self.quiet = quiet
        self.job = job
        self.shows_bars = _is_watched() and not quiet and not (job and job.is_side_by_side)
        self.total = total_steps
        self.first_step = first_step
        self.steps = first_step
        self.started = self._last_detail = self._last_line_at = time.perf_counter()
        self._next_line = 0
        self.bar: tqdm[Any] | None = None
        if self.shows_bars and total_steps:
            self.bar = tqdm(
                total=total_steps,
                initial=first_step,
                desc=job.name if job else "train",
                ncols=_width(),
                leave=False,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
                " {elapsed}<{remaining}{postfix}",
            )

    def advance(self) -> None:
        """One step more."""
        self.steps += 1
        if self.bar is not None:
            self.bar.update()

    def show(self, loss: float, perplexity: float, tokens_per_second: float) -> None:
        """The figures of the last few steps."""
        speed = f"{tokens_per_second / 1000:.1f}k tok/s"
        if self.bar is not None:
            postfix = f"loss {shown(loss)} ppl {shown(perplexity)} {speed}"
            self.bar.set_postfix_str(postfix, refresh=False)
        elif not self.quiet and self._is_due():
            seconds = time.perf_counter() - self.started
            since_start = max(1, self.steps - self.first_step)  # a resume has fewer than all
            remaining = seconds / since_start * (self.total - self.steps)
            self.detail(
                f"step {self.steps:,}/{self.total:,}  loss {shown(loss)}  "
                f"perplexity {shown(perplexity)}  {speed}  {remaining:.0f} s left"
            )

    def _is_due(self) -> bool:
        step, now = max(1, self.total // _LINES_ELSEWHERE), time.perf_counter()
        is_late = now - self._last_line_at >= _SECONDS_ELSEWHERE
        if self.steps < max(step, self._next_line) and not is_late:
            return False
        self._next_line, self._last_line_at = (self.steps // step + 1) * step, now
        return True

    def line(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self.job is not None and self.job.is_side_by_side:
            text = "\n".join(f"{self.job.name}: {line}" for line in text.strip().splitlines())
        self._write(text)

    def _write(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def detail(self, text: str) -> None:
        """A line on how the training is going: in a sweep, one a minute at most."""
        now = time.perf_counter()
        if self.job is None or now - self._last_detail >= _MINUTE:
            self._last_detail = now
            self.line(text)

    def plan(self, text: str) -> None:
        """Lines that say the same in most jobs of a sweep: one of the jobs has them."""
        if self.job is None or self.job.shows_plan:
            self._write(text)

    def during_evaluation(
        self, chunks: Iterable[Chunk], examples: int, processes: int = 1
    ) -> Iterator[Chunk]:
        """The chunks, with a separate bar where there are bars.

        Args:
            chunks: each with its number of examples as its length.
            examples: of all chunks in all processes.
            processes: each of which scores about as many chunks.
        """
        with tqdm(
            total=examples, desc="eval ", ncols=_width(), leave=False, disable=not self.shows_bars
        ) as bar:
            for chunk in chunks:
                yield chunk
                bar.update(len(chunk) * processes)

    def close(self) -> None:
        """Removes the bar."""
        if self.bar is not None:
            self.bar.close()
