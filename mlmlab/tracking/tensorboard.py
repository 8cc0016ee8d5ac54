"""TensorBoard: the curves, the table of hyperparameters, the texts, and where each is found."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mlmlab import schema

EVENTS = "tensorboard"
"""The folder of the event files, in the run's folder."""
TRAINED = "trained/"
"""How the tags of the figures of the exported weights begin. TensorBoard sorts the groups of its
curves by name and opens the first two, which are eval and train: this one, of figures without a
curve, comes after them, and so does usage."""
_COMPARED = ("masking.rate", "seed", "train.batch_size", "train.learning_rate")
"""The hyperparameters of a run outside a sweep. They are the same for every run, because
TensorBoard takes the columns of its table from one of them."""
_LAYOUT: Mapping[str, Mapping[str, Sequence[str]]] = {
    "loss and perplexity": {
        "loss": ("eval/loss", "train/loss"),
        "perplexity": ("eval/perplexity", "train/perplexity"),
    },
    "rates": {
        "learning rate": ("train/learning_rate",),
        "masking rate": ("train/masking_rate",),
        "gradient norm": ("train/grad_norm",),
    },
    "speed": {
        "tokens per second": ("train/tokens_per_second",),
        "seconds": ("usage/seconds", "usage/data_seconds", "eval/seconds"),
    },
}
"""Categories, charts, and the tags of their curves: the tab CUSTOM SCALARS, in this order."""


class TensorBoardSink:
    """TensorBoard's event files. A resumed run adds one, and TensorBoard reads them as one run."""

    def __init__(self, config: Any, run_dir: Path) -> None:
        self.config = config
        self.writer = SummaryWriter(str(run_dir / EVENTS))
        layout = {
            category: {
                chart: ("Multiline", [f"^{tag}$" for tag in tags]) for chart, tags in charts.items()
            }
            for category, charts in _LAYOUT.items()
        }
        self.writer.add_custom_scalars(layout)
        self.writer.flush()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A scalar for each figure but the epoch, which would be a straight line; those of the
        exported weights also next to the hyperparameters."""
        for tag, value in figures.items():
            if tag != "epoch":
                self.writer.add_scalar(tag, value, step)
        if any(tag.startswith(TRAINED) for tag in figures):
            self._add_hyperparameters([tag for tag in figures if tag.startswith(TRAINED)])
        self.writer.flush()  # waits for the writer's thread: a full disk is noticed now

    def _add_hyperparameters(self, metrics: list[str]) -> None:
        """In the run's own event file: SummaryWriter's `add_hparams` would start a second run.

        Args:
            metrics: the tags of the figures that the table shows.
        """
        for summary in hparams(hyperparameters(self.config), dict.fromkeys(metrics)):  # type: ignore[no-untyped-call]
            self.writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def text(self, step: int, name: str, value: str) -> None:
        """A block of code: as plain Markdown, TensorBoard would join its lines and take <mask> for
        HTML."""
        self.writer.add_text(name, textwrap.indent(value, "    "), step)
        self.writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self.writer.close()


def hyperparameters(config: Any) -> dict[str, float | str]:
    """What TensorBoard's table says of a run, by config key: what its sweep varies; outside a
    sweep, and in one over what is no key (its experiments), a few that are often compared.

    Args:
        config: a `RunConfig`.

    Returns:
        Numbers as they are, but for a seed, which is a text because it is no quantity. Of a group,
        its keys that differ from their defaults, in a text.
    """
    cells = {key: _cell(config, key) for key in config.varies}
    if not cells or None in cells.values():
        cells = {key: _cell(config, key) for key in _COMPARED} | cells
    return {key: cell for key, cell in cells.items() if cell is not None}


def _cell(config: Any, key: str) -> float | str | None:
    """None: the config has no such key."""
    value = config
    for part in key.split("."):
        options = value if isinstance(value, Mapping) else vars(value)
        if part not in options:
            return None
        value = options[part]
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        defaults, given = (schema.flat(schema.to_mapping(group)) for group in (kind(), value))
        differing = [name for name in given if given[name] != defaults[name]]
        return ", ".join(f"{n}={schema.shown(given[n])}" for n in differing) or "default"
    if isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith("seed"):
        return value
    return schema.shown(schema.to_mapping(value))
