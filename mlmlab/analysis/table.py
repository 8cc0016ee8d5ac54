"""The table of a comparison, for the terminal."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mlmlab.analysis.runs import Found
from mlmlab.analysis.settings import Comparison, Setting, shown
from mlmlab.analysis.significance import Sample, compare
from mlmlab.analysis.verdict import verdict

WIDTH = 80


def perplexity_text(sample: Sample) -> str:
    """The exponential of the mean loss ± its standard error over seeds, to the digits that it
    decides."""
    loss, error = sample.mean, sample.standard_error
    if not math.isfinite(loss):
        return "-"
    perplexity = math.exp(min(loss, 700.0))
    if math.isnan(error):
        return f"{perplexity:.4g}" if perplexity >= 1000 else f"{perplexity:.3f}"
    error *= perplexity
    digits = min(4, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{perplexity:.{digits}f} ± {error:.{digits}f}"


def full_table(found: Found, every: Sequence[Comparison]) -> str:
    """A table and a verdict for each test, and what was left out, at most 80 columns wide.

    Args:
        every: the comparisons of the runs that were found.
    """
    parts = []
    titles = titles_of(every)
    if len(every) > 1:
        parts.append(
            f"{len(every)} tables: figures of different test texts or masks do not compare"
        )
    for title, comparison in zip(titles, every, strict=True):
        outcome = compare(comparison.samples, comparison.baseline)
        rows = _rows(comparison, outcome.best if outcome and outcome.others else "")
        remarks = [line for note in notes(comparison) for line in _wrapped(note)]
        if any(len(setting.runs) > 1 for setting in comparison.settings):
            remarks.insert(0, "perplexity: of the mean loss over seeds, ± its standard error")
        parts.append("\n".join([*_wrapped(title), *rows, *remarks]))
        text = verdict(outcome, list(comparison.samples))
        parts.append("\n".join(_wrapped(text)))
    if found.unfinished:
        parts.append("\n".join(_wrapped(f"not finished, and left out: {_some(found.unfinished)}")))
    return "\n\n".join(parts)


def titles_of(every: Sequence[Comparison]) -> list[str]:
    """The keys that distinguish the tests, where there are several: those that decide what was
    asked, if they differ between the tests and not within one."""
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


def _rows(comparison: Comparison, winner: str) -> list[str]:
    figures = [
        (perplexity_text(s.sample), str(len(s.runs)), "best" if s.label == winner else "")
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


def notes(comparison: Comparison) -> list[str]:
    """What the table does not show."""
    found = []
    for leader in dict.fromkeys(comparison.following.values()):
        followers = [key for key, to in comparison.following.items() if to == leader]
        found.append(f"with {leader} vary: {', '.join(followers)}")
    if comparison.repeated:
        names = _some([run.folder for run in comparison.repeated])
        found.append(f"left out, because a later run has the same setting and seed: {names}")
    return found


def _some(folders: Sequence[Path]) -> str:
    """The first of them, and how many more there are."""
    more = [f"{len(folders) - 3} more"] if len(folders) > 3 else []
    return ", ".join([*map(str, folders[:3]), *more])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
