"""Where figures go: metrics.jsonl and TensorBoard, the same numbers in both."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mlmlab import schema
from mlmlab.errors import RunFailed
from mlmlab.fetch.cache import flush


class Tracker:
    """The log files of a run: metrics.jsonl and TensorBoard's event files."""

    def __init__(self, run_dir: Path, sizes: Mapping[str, int] | None = None) -> None:
        """Opens both for appending.

        Args:
            sizes: what `flush` returned for the checkpoint that the run resumes from. Every log
                file is cut to its size then, and removed if it had none.
        """
        self.run_dir = run_dir
        for name, file in self._files().items():
            size = (sizes or {}).get(name)
            if size is None:
                file.unlink()
            elif file.stat().st_size > size:
                os.truncate(file, size)
        self.metrics = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        # A new event file next to those of earlier processes: TensorBoard reads them as one run.
        self.writer = SummaryWriter(str(run_dir / "tensorboard"))

    def _files(self) -> dict[str, Path]:
        """The log files that exist, by their names in the run's folder."""
        patterns = ("metrics.jsonl", "tensorboard/events.out.tfevents.*")
        files = (file for pattern in patterns for file in self.run_dir.glob(pattern))
        return {file.relative_to(self.run_dir).as_posix(): file for file in files}

    def log(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        """One event.

        Args:
            step: steps applied.
            epoch: passes over the training examples, with its fraction.
            figures: by TensorBoard tag, `train/loss` for instance.

        Raises:
            RunFailed: the disk is full.
        """
        try:
            self._log(step, epoch, figures)
        except OSError as error:
            raise RunFailed(
                f"step {step}: a figure could not be written to {self.metrics.name}: "
                f"{error.strerror}.\nWith room on the disk, resume=RUN_DIR resumes from the newest "
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

    def flush(self) -> dict[str, int]:
        """Waits until everything logged so far is on the disk.

        Returns:
            The size of each log file in bytes, by its name in the run's folder.
        """
        self.metrics.flush()
        self.writer.flush()  # waits for the writer's thread, which has written its whole queue then
        files = self._files()
        for file in files.values():
            flush(file)
        return {name: file.stat().st_size for name, file in files.items()}

    def close(self) -> None:
        """Flushes both files. A full disk was reported when a figure was logged."""
        for file in (self.metrics, self.writer):
            with suppress(OSError):
                file.close()
