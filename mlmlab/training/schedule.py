"""The learning rate as a function of the steps applied: nothing to save, nothing to lose."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlmlab import seams
from mlmlab.training.config import TrainConfig
from mlmlab.training.state import ProgressRecord

Schedule = Callable[[int, int], float]
"""(step, total_steps) to the factor of the learning rate, both counted from the end of the
warm-up."""


def linear(step: int, total_steps: int) -> float:
    """Falls to zero at `total_steps`, the first step that is not run."""
    return max(0.0, (total_steps - step) / max(1, total_steps))


def cosine(step: int, total_steps: int) -> float:
    """Falls to zero along half a cosine (Loshchilov and Hutter 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - linear(step, total_steps))))


def constant(step: int, total_steps: int) -> float:
    """Stays at 1."""
    return 1.0


SCHEDULES: Mapping[str, Schedule] = {"linear": linear, "cosine": cosine, "constant": constant}


def build_schedule(config: TrainConfig) -> Schedule:
    """The schedule that `train.schedule` names.

    Raises:
        UserError: a custom one that cannot be found, or cannot be called as a schedule is.
    """
    return seams.find(
        "train.schedule",
        config.schedule,
        SCHEDULES,
        arguments=("step", "total_steps"),
        options=config.schedule_options,
    )


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: Schedule
) -> float:
    """What the highest learning rate is multiplied by.

    Args:
        step: steps applied before this one.
        total_steps: of the run.
        warmup_steps: steps over which the rate rises linearly to its highest.

    Returns:
        (step + 1) / warmup_steps during the warm-up, then the schedule's factor.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return schedule(step - warmup_steps, total_steps - warmup_steps)


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
