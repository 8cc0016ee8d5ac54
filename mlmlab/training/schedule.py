"""The learning rate as a function of the steps applied: nothing to save, nothing to lose."""

import math
from dataclasses import dataclass

from mlmlab.training.config import Schedule, TrainConfig
from mlmlab.training.state import ProgressRecord


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: Schedule
) -> float:
    """What the highest learning rate is multiplied by.

    Args:
        step: steps applied before this one.
        total_steps: of the whole run.
        warmup_steps: steps over which the rate rises linearly to its highest.

    Returns:
        A factor in [0, 1]. It would reach zero at `total_steps`, the first step that is not run.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule is Schedule.CONSTANT:
        return 1.0
    remaining = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    if schedule is Schedule.LINEAR:
        return remaining
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - remaining)))


@dataclass(frozen=True)
class Horizon:
    """How long the run is."""

    total_steps: int
    """Steps, if none is skipped."""
    batches: int | None
    """Batches of the epochs asked for; None if `train.max_steps` decides."""

    @classmethod
    def of(cls, config: TrainConfig, batches_per_epoch: int) -> "Horizon":
        """`max_steps` where it is set, else `epochs`."""
        if config.max_steps is not None:
            return cls(config.max_steps, None)
        batches = config.epochs * batches_per_epoch
        return cls(batches, batches)

    def is_reached(self, record: ProgressRecord) -> bool:
        """Whether the run is over."""
        return record.steps >= self.total_steps or (
            self.batches is not None and record.batches >= self.batches
        )
