"""The learning rate as a function of the updates applied: nothing to save, nothing to lose."""

import math

from mlmlab.training.config import Schedule


def learning_rate_factor(updates: int, total: int, warmup: int, schedule: Schedule) -> float:
    """What the highest learning rate is multiplied by.

    Args:
        updates: updates applied before this one.
        total: updates of the whole run.
        warmup: the rate rises linearly to its highest over so many updates.

    Returns:
        A factor in [0, 1]. It would reach zero at update `total`, the first that is not run.
    """
    if updates < warmup:
        return (updates + 1) / warmup
    if schedule is Schedule.CONSTANT:
        return 1.0
    remaining = max(0.0, (total - updates) / max(1, total - warmup))
    if schedule is Schedule.LINEAR:
        return remaining
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - remaining)))
