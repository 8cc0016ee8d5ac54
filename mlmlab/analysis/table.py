"""The table of a comparison, for the terminal."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mlmlab.analysis.runs import Found
from mlmlab.analysis.settings import Comparison, Setting, comparisons, shown

WIDTH = 80


def mean_loss(setting: Setting) -> float:
    """Over the seeds; nan where a run has none."""
    return statistics.fmean(run.loss for run in setting.runs.values())


def standard_error(setting: Setting) -> float:
    """Of `mean_loss`, from the spread between seeds; nan for a single one."""
    losses = [run.loss for run in setting.runs.values()]
    if len(losses) < 2 or not all(map(math.isfinite, losses)):
        return math.nan
    return statistics.stdev(losses) / math.sqrt(len(losses))


def best(comparison: Comparison) -> Setting | None:
    """The setting with the lowest mean loss; None where none has a loss."""
    with_loss = [s for s in comparison.settings if not math.isnan(mean_loss(s))]
    return min(with_loss, key=mean_loss, default=None)


def perplexity_text(setting: Setting) -> str:
    """The exponential of the mean loss ± its standard error over seeds, to the digits that it
    decides."""
    loss, error = mean_loss(setting), standard_error(setting)
    if math.isnan(loss):
        return "-"
    perplexity = math.exp(min(loss, 700.0))
    if math.isnan(error):
        return f"{perplexity:.4g}" if perplexity >= 1000 else f"{perplexity:.3f}"
    error *= perplexity
    digits = min(4, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{perplexity:.{digits}f} ± {error:.{digits}f}"


def full_table(found: Found) -> str:
    """A table for each test, and what was left out, at most 80 columns wide."""
    parts = []
    every = comparisons(found.runs)
    titles = titles_of(every)
    if len(every) > 1:
        parts.append(
            f"{len(every)} tables: figures of different test texts or masks do not compare"
        )
    for title, comparison in zip(titles, every, strict=True):
        parts.append("\n".join([*_wrapped(title), *_rows(comparison), *_notes(comparison)]))
    if found.unfinished:
        parts.append("\n".join(_wrapped(f"not finished, and left out: {_some(found.unfinished)}")))
    return "\n\n".join(parts)


def titles_of(every: Sequence[Comparison]) -> list[str]:
    """What tells the tests apart, where there are several: the keys that decide what was asked, if
    they differ between the tests and not within one."""
    if len(every) == 1:
        return [""]
    asked = [[run.asked for s in one.settings for run in s.runs.values()] for one in every]
    keys = dict.fromkeys(key for runs in asked for run in runs for key in run)
    columns = {key: [{run.get(key) for run in runs} for runs in asked] for key in keys}
    between = {
        key: [values.pop() for values in column]
        for key, column in columns.items()
        if all(len(values) == 1 for values in column) and len(set.union(*column)) > 1
    }
    titles = []
    for number in range(len(every)):
        values = (f"{key}={shown(key, column[number])}" for key, column in between.items())
        titles.append(f"test {number + 1}: {' '.join(values)}".removesuffix(": "))
    return titles


def _rows(comparison: Comparison) -> list[str]:
    winner = best(comparison) if len(comparison.settings) > 1 else None
    figures = [
        (perplexity_text(s), str(len(s.runs)), "best" if s is winner else "")
        for s in comparison.settings
    ]
    columns = list(zip(("perplexity", "seeds", ""), *figures, strict=True))
    labels = [
        [key, *(shown(key, setting.values[key]) for setting in comparison.settings)]
        for key in comparison.keys
    ] or [["", "every run"]]
    widths = [max(map(len, column)) for column in (*labels, *columns)]
    if sum(widths) + 2 * (len(widths) - 1) <= WIDTH:
        rows = zip(*labels, *columns, strict=True)
        left = len(labels)
        return [
            "  ".join(
                cell.ljust(width) if place < left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
    lines = []
    room = WIDTH - sum(widths[-3:]) - 6
    for row, setting in zip(zip(*columns, strict=True), ("", *comparison.settings), strict=True):
        label = setting.label if isinstance(setting, Setting) else ""
        *above, last = textwrap.wrap(label, room, break_on_hyphens=False) or [""]
        cells = (cell.rjust(width) for cell, width in zip(row, widths[-3:], strict=True))
        lines += [*above, "  ".join([last.ljust(room), *cells]).rstrip()]
    return lines


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    if any(len(setting.runs) > 1 for setting in comparison.settings):
        notes.append("perplexity: of the mean loss over seeds, ± its standard error")
    for leader in dict.fromkeys(comparison.following.values()):
        followers = [key for key, to in comparison.following.items() if to == leader]
        notes.append(f"with {leader} vary: {', '.join(followers)}")
    if comparison.repeated:
        names = _some([run.folder for run in comparison.repeated])
        notes.append(f"left out, because a later run has the same setting and seed: {names}")
    return [line for note in notes for line in _wrapped(note)]


def _some(folders: Sequence[Path]) -> str:
    """The first of them, and how many more there are."""
    more = [f"{len(folders) - 3} more"] if len(folders) > 3 else []
    return ", ".join([*map(str, folders[:3]), *more])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
