"""The places that a run's figures go to: a small class for each."""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mlmlab import seams
from mlmlab.tracking.config import JSONL, TENSORBOARD, TrackingConfig
from mlmlab.tracking.tensorboard import TensorBoardSink

METRICS = "metrics.jsonl"
"""The file of figures and texts, in the run's folder."""


class Sink(Protocol):
    """A place that figures go to, built with the run's config and folder (`RunConfig`, `Path`) on
    rank 0, when the run begins and each time that it is resumed."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """One event.

        Args:
            step: steps applied.
            figures: by tag, `train/loss` for instance; `epoch` is the passes over the training
                examples, with their fraction. A figure may be nan or inf.
        """

    def text(self, step: int, name: str, value: str) -> None:
        """A text: the model's completions, for instance."""

    def close(self) -> None:
        """Nothing more will come: the run has ended, however it has."""


class JsonlSink:
    """metrics.jsonl: an object for each event. A figure that is not finite is null; a text is a
    string under its name."""

    def __init__(self, config: Any, run_dir: Path) -> None:
        self.file = (run_dir / METRICS).open("a", encoding="utf-8")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A line."""
        finite = {tag: value if math.isfinite(value) else None for tag, value in figures.items()}
        self._write({"step": step, **finite})

    def text(self, step: int, name: str, value: str) -> None:
        """A line."""
        self._write({"step": step, name: value})

    def _write(self, event: dict[str, Any]) -> None:
        self.file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


BUILT_IN = {TENSORBOARD: TensorBoardSink, JSONL: JsonlSink}


def find_sinks(config: TrackingConfig) -> dict[str, functools.partial[Sink]]:
    """The classes that `tracking.sinks` names, by name and with their options, to be called with
    the run's config and folder.

    Raises:
        UserError: one is not there, takes other arguments, or is no sink.
    """
    found: dict[str, functools.partial[Sink]] = {}
    for name in config.sinks:
        found[name] = seams.find(
            "tracking.sinks",
            name,
            BUILT_IN,
            arguments=("config", "run_dir"),
            options=config.options.get(name.partition(":")[2], {}),
            options_key="tracking.options",
        )
        methods = ("log(step, figures)", "text(step, name, value)", "close()")
        seams.require("tracking.sinks", name, found[name].func, *methods)
    return found
