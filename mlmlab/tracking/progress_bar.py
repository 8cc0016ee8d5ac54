"""What a person watches: a progress bar on a terminal or in a notebook, a line now and then
elsewhere."""

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
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


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, VS Code, Colab), as tqdm finds
    out."""
    return "ipykernel.zmqshell" in sys.modules


def _width() -> int | None:
    """Of a bar in characters; None in a notebook, where it has the width of its cell."""
    return None if in_notebook() else _WIDTH


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
    """The bar of one training (none where there is no step); `quiet` for nothing at all."""

    def __init__(self, total_steps: int, first_step: int = 0, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.shows_bars = _is_watched() and not quiet
        self.total = total_steps
        self.first_step = first_step
        self.steps = first_step
        self.started = time.perf_counter()
        self._next_line, self._last_line_at = 0, self.started
        self.bar: tqdm[Any] | None = None
        if self.shows_bars and total_steps:
            self.bar = tqdm(
                total=total_steps,
                initial=first_step,
                desc="train",
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
            self.line(
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
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def during_evaluation(
        self, chunks: Iterable[Chunk], examples: int, processes: int = 1
    ) -> Iterator[Chunk]:
        """The chunks, with a bar of their own where there are bars.

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
