"""Where figures go: metrics.jsonl and TensorBoard, the same numbers in both."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Tracker:
    """The two files of a run."""

    def __init__(self, run_dir: Path) -> None:
        self.metrics = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self.writer = SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        """One event.

        Args:
            step: updates applied.
            epoch: passes over the training examples, with its fraction.
            figures: by TensorBoard tag, `train/loss` for instance.
        """
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
            for key, value in flat(config).items()
        }
        for summary in hparams(scalars, dict(final)):  # type: ignore[no-untyped-call]
            self.writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        for tag, value in final.items():
            self.writer.add_scalar(tag, value)

    def close(self) -> None:
        """Flushes both files."""
        self.metrics.close()
        self.writer.close()


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
