"""When a run is over."""

from dataclasses import dataclass

from mlmlab.training.config import TrainConfig
from mlmlab.training.state import ProgressRecord


@dataclass(frozen=True)
class Horizon:
    """How long the run is."""

    updates: int
    """Updates, if none is skipped."""
    batches: int | None
    """Batches of the epochs asked for; None if `train.max_steps` decides."""

    @classmethod
    def of(cls, config: TrainConfig, batches_per_epoch: int) -> "Horizon":
        """`max_steps` where it is set, else `epochs`."""
        if config.max_steps is not None:
            return cls(config.max_steps, None)
        batches = config.epochs * batches_per_epoch
        return cls(batches, batches)

    def is_reached(self, progress: ProgressRecord) -> bool:
        """Whether the run is over."""
        return progress.updates >= self.updates or (
            self.batches is not None and progress.batches >= self.batches
        )
