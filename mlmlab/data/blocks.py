"""Packed blocks: the documents of a shard joined and cut into rows of `block_size` tokens."""

import numpy as np
from numpy.typing import NDArray

from mlmlab.data.corpus import Shard


class PackedBlocks:
    """Example `i` is the tokens from `i * block_size` on: a row of a view on the memory map.

    Nothing is dropped at document boundaries; only the last partial block of a shard is.
    """

    def __init__(self, shard: Shard, block_size: int) -> None:
        count = len(shard.tokens) // block_size
        self.block_size = block_size
        self.rows = shard.tokens[: count * block_size].reshape(count, block_size)
        """`[examples, block_size]`, uint16 or uint32, not copied."""
        self.dropped_tokens = len(shard.tokens) - self.rows.size
        """Tokens of the last partial block."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, examples: NDArray[np.int64]) -> NDArray[np.integer]:
        """The examples' tokens, `[B, block_size]`."""
        return self.rows[examples]
