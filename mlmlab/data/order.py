"""Which examples make up batch n: index arithmetic, so that any batch costs the same to find."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlmlab.random import permuted


@dataclass(frozen=True)
class Order:
    """The examples of every batch, each epoch in a new random order."""

    examples: int
    batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        """The last batch of an epoch may be short: no example waits for the next epoch."""
        return -(-self.examples // self.batch_size)

    def batch(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of batch `number`, counted from 0, and its examples, int64 `[B]`."""
        epoch, within = divmod(number, self.batches_per_epoch)
        first = within * self.batch_size
        places = np.arange(first, min(first + self.batch_size, self.examples))
        return epoch, permuted(places, self.examples, self.seed, epoch)
