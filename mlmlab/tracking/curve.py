"""Pictures of what a run has logged, as PNG. matplotlib is an extra: without it there are none."""

import io
import json
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

Curve = Sequence[tuple[float, float]]
"""x and perplexity."""


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return util.find_spec("matplotlib") is not None


def evaluations(run_dir: Path, key: str) -> Curve:
    """The test perplexities of a run, against another figure of metrics.jsonl. None where the file
    has been removed.

    Args:
        key: that figure: step, train/tokens, ...
    """
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        events = [json.loads(line) for line in lines]
    points = ((event.get(key), event.get("eval/perplexity")) for event in events)
    return [(x, y) for x, y in points if x is not None and y is not None]


def perplexity_by_step(run_dir: Path) -> bytes | None:
    """One run's test perplexity, on a logarithmic axis; None for fewer than two evaluations, and
    without matplotlib."""
    curve = evaluations(run_dir, "step")
    if len(curve) < 2 or not can_plot():
        return None
    from matplotlib.ticker import LogFormatter

    figure, axes = canvas()
    axes.plot([x for x, _ in curve], [y for _, y in curve], linewidth=1.8)
    axes.set(xlabel="step", ylabel="test perplexity", yscale="log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    return png(figure)


def canvas() -> tuple[Any, Any]:
    """An empty figure and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def png(figure: Any) -> bytes:
    """The figure as a file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()
