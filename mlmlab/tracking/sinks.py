"""The places that a run's figures go to: a small class for each."""

import functools
import json
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mlmlab import schema, seams
from mlmlab.tracking.config import JSONL, TENSORBOARD, TrackingConfig

METRICS, EVENTS = "metrics.jsonl", "tensorboard"
"""The file and the folder of the built-in sinks, in the run's folder."""
FINAL = "final/"
"""How the tags of the figures of the exported weights begin."""


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


class TensorBoardSink:
    """TensorBoard's event files. A resumed run adds one, and TensorBoard reads them as one run."""

    def __init__(self, config: Any, run_dir: Path) -> None:
        self.config = config
        self.writer = SummaryWriter(str(run_dir / EVENTS))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A scalar for each figure; the final ones also beside the hyperparameters."""
        for tag, value in figures.items():
            self.writer.add_scalar(tag, value, step)
        if final := {tag: value for tag, value in figures.items() if tag.startswith(FINAL)}:
            self._add_hyperparameters(final)
        self.writer.flush()  # waits for the writer's thread: a full disk is noticed now

    def _add_hyperparameters(self, final: dict[str, float]) -> None:
        """In the run's own event file: SummaryWriter's `add_hparams` would start a second run."""
        scalars = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in schema.flat(schema.to_mapping(self.config)).items()
        }
        for summary in hparams(scalars, final):  # type: ignore[no-untyped-call]
            self.writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def text(self, step: int, name: str, value: str) -> None:
        """A block of code: as plain Markdown, TensorBoard would join its lines and take <mask> for
        HTML."""
        self.writer.add_text(name, textwrap.indent(value, "    "), step)
        self.writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self.writer.close()


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
