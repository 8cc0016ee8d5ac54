"""Where figures go: metrics.jsonl and TensorBoard, the same numbers in both."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mlmlab import schema
from mlmlab.errors import RunFailed


class Tracker:
    """The two files of a run."""

    def __init__(self, run_dir: Path, events: int = 0) -> None:
        """Opens both.

        Args:
            events: lines of metrics.jsonl to go on after; what a run wrote behind its checkpoint is
                cut off, and TensorBoard's file is made anew from the lines that stay.
        """
        path = run_dir / "metrics.jsonl"
        lines = _first_lines(path, events)
        shortened = path.with_suffix(".shortened")
        shortened.write_text("".join(lines), encoding="utf-8")
        shortened.replace(path)  # at no moment is there less than the checkpoint knows of
        self.metrics = path.open("a", encoding="utf-8")
        shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
        self.writer = SummaryWriter(str(run_dir / "tensorboard"))
        for line in lines:
            event = json.loads(line)
            for tag in event.keys() - {"step", "epoch"}:
                value = event[tag]
                self.writer.add_scalar(tag, math.nan if value is None else value, event["step"])

    def log(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        """One event.

        Args:
            step: updates applied.
            epoch: passes over the training examples, with its fraction.
            figures: by TensorBoard tag, `train/loss` for instance.

        Raises:
            RunFailed: the disk is full.
        """
        try:
            self._log(step, epoch, figures)
        except OSError as error:
            raise RunFailed(
                f"update {step}: a figure could not be written to {self.metrics.name}: "
                f"{error.strerror}.\nWith room on the disk, resume=RUN_DIR goes on from the newest "
                "checkpoint."
            ) from error

    def _log(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        event = {"step": step, "epoch": round(epoch, 6)}
        finite = {tag: value if math.isfinite(value) else None for tag, value in figures.items()}
        self.metrics.write(json.dumps({**event, **finite}) + "\n")
        self.metrics.flush()
        for tag, value in figures.items():
            self.writer.add_scalar(tag, value, step)

    def log_hyperparameters(self, config: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """The config beside the final figures, in the run's own event file: SummaryWriter's
        `add_hparams` would start a second run for them."""
        scalars = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in schema.flat(config).items()
        }
        for summary in hparams(scalars, dict(final)):  # type: ignore[no-untyped-call]
            self.writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        for tag, value in final.items():
            self.writer.add_scalar(tag, value)

    def flush(self) -> None:
        """Waits until all lines so far are on the disk."""
        self.metrics.flush()
        os.fsync(self.metrics.fileno())

    def close(self) -> None:
        """Flushes both files. A full disk was reported when a figure was logged."""
        for file in (self.metrics, self.writer):
            with suppress(OSError):
                file.close()


def _first_lines(path: Path, count: int) -> list[str]:
    if not count:
        return []
    with path.open(encoding="utf-8") as file:
        return list(islice(file, count))
