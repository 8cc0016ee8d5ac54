"""Plots of a comparison, as PNG. matplotlib is an extra: without it there are none."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlmlab.analysis.settings import Comparison, Setting, shown
from mlmlab.tracking.curve import Curve, canvas, evaluations, png

_AXES = {"step": "step", "tokens": "train/tokens", "seconds": "train/seconds"}
"""What learning is plotted against, by its key in metrics.jsonl."""
_MOST_LINES = 10
"""That colours and a legend tell apart."""
_BEGINNING = 0.15
"""This share of a run does not decide the scale of its plot: it falls steeply there."""


def plots(comparison: Comparison) -> dict[str, bytes]:
    """PNG by name: perplexity against step, tokens and seconds, and the final one against each key
    that varies. An axis that no run has logged is left out."""
    found = {}
    for name, key in _AXES.items():
        curves = {
            s: [evaluations(run.folder, key) for run in s.runs.values()]
            for s in comparison.settings
        }
        if any(len(curve) > 1 for of_setting in curves.values() for curve in of_setting):
            found[f"perplexity_by_{name}"] = _learning(comparison, curves, name)
    for key in comparison.keys:
        found[f"final_perplexity_by_{key}"] = _final(comparison, key)
    return found


def _learning(comparison: Comparison, curves: Mapping[Setting, list[Curve]], name: str) -> bytes:
    """A thin line for each run; for several seeds, a thick one for their mean."""
    figure, axes = canvas()
    colours = _colours(len(comparison.settings))
    for (setting, of_setting), colour in zip(curves.items(), colours, strict=True):
        thick = of_setting[0]
        if len(of_setting) > 1:
            for curve in of_setting:
                axes.plot(*_columns(curve), color=colour, linewidth=0.8, alpha=0.4)
            shortest = min(map(len, of_setting))
            thick = [
                (
                    sum(curve[place][0] for curve in of_setting) / len(of_setting),
                    math.exp(
                        sum(math.log(curve[place][1]) for curve in of_setting) / len(of_setting)
                    ),
                )
                for place in range(shortest)
            ]
        label = ", ".join(shown(key, value) for key, value in setting.values.items())
        axes.plot(*_columns(thick), color=colour, linewidth=1.8, label=label)
    if name == "tokens":
        from matplotlib.ticker import EngFormatter

        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(name)
    axes.set_ylabel("test perplexity")
    points = [point for one in curves.values() for curve in one for point in curve]
    beginning = max(x for x, _ in points) * _BEGINNING
    if later := [y for x, y in points if x >= beginning]:
        _scale(axes, "y", later)
        axes.set_ylim(0.97 * min(later), 1.03 * max(later))
    _legend(axes, comparison.keys)
    return png(figure)


def _final(comparison: Comparison, key: str) -> bytes:
    """A point for each setting, with its standard error over seeds, and a dot for each run; lines
    join settings that differ in this key alone."""
    figure, axes = canvas()
    lines: dict[str, list[Setting]] = {}
    for setting in comparison.settings:
        others = (shown(k, value) for k, value in setting.values.items() if k != key)
        lines.setdefault(", ".join(others), []).append(setting)
    values = list(dict.fromkeys(setting.values[key] for setting in comparison.settings))
    is_numeric = all(type(value) in (int, float) for value in values)
    colours = _colours(len(lines))
    for number, ((label, of_line), colour) in enumerate(zip(lines.items(), colours, strict=True)):
        line = [setting for setting in of_line if math.isfinite(setting.sample.mean)]
        aside = 0.4 * (number - (len(lines) - 1) / 2) / len(lines)  # side by side
        x = [s.values[key] if is_numeric else values.index(s.values[key]) + aside for s in line]
        means = [math.exp(setting.sample.mean) for setting in line]
        errors = [
            mean * setting.sample.standard_error for mean, setting in zip(means, line, strict=True)
        ]
        style = "-o" if is_numeric else "o"
        axes.errorbar(
            x, means, errors, fmt=style, color=colour, capsize=4, markersize=5, label=label
        )
        for place, setting in zip(x, line, strict=True):
            losses = list(setting.sample.losses.values())
            perplexities = [math.exp(loss) for loss in losses if math.isfinite(loss)]
            axes.plot([place] * len(perplexities), perplexities, ".", color=colour, alpha=0.4)
    if is_numeric:
        _scale(axes, "x", values)
        axes.set_xticks(values if len(values) <= 8 else values[:: len(values) // 6])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xticks(range(len(values)), [shown(key, value) for value in values])
        axes.margins(x=0.25)
    axes.set_xlabel(key)
    axes.set_ylabel("final test perplexity")
    if len(lines) > 1:
        _legend(axes, [other for other in comparison.keys if other != key])
    return png(figure)


def _colours(count: int) -> list[Any]:
    import matplotlib

    if count <= _MOST_LINES:
        return [f"C{number}" for number in range(count)]
    colours = matplotlib.colormaps["viridis"]
    return [colours(number / (count - 1)) for number in range(count)]


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]


def _scale(axes: Any, which: str, values: Sequence[float]) -> None:
    """Logarithmic over more than a factor of five, with the numbers written out."""
    if values and min(values) > 0 and max(values) > 5 * min(values):
        from matplotlib.ticker import LogFormatter

        axes.set(**{f"{which}scale": "log"})
        axis = getattr(axes, f"{which}axis")
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _legend(axes: Any, keys: Sequence[str]) -> None:
    if keys and len(axes.get_legend_handles_labels()[0]) <= _MOST_LINES:
        axes.legend(title=", ".join(keys), frameon=False)
