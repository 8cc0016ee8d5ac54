"""Every random decision of a run, as a pure function: Philox4x32-10 and the layout of its counter.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 128-bit
counter and a 64-bit key to four 32-bit words. There is no state: a decision is named by where it
stands, never by how many decisions came before it.

    key      word 0   seed, low 32 bits
             word 1   seed, high 32 bits
    counter  word 0   position / 4: four positions share a block, word position % 4 is theirs
                      (REPLACE: the position itself; its words 0 and 1 make a 64-bit fraction)
             word 1   epoch (24 bits) | domain << 24
             word 2   id, low 32 bits
             word 3   id, high 32 bits

`id` is whatever the decision is about: an example, a document, a batch. `Domain` keeps the
decisions about one id apart. The order of the examples and its keyed permutation are here too,
because they are the one decision that is not a word but a place.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mlmlab import kernels

EPOCHS = 1 << 24
"""Epochs (or evaluation draws) that the counter can tell apart."""


class Domain(IntEnum):
    """What a word decides. The value is part of the counter: never renumber."""

    SELECT = kernels.SELECT
    """Whether a token is predicted, and whether it is then masked, replaced or kept."""
    REPLACE = kernels.REPLACE
    """Which id a replaced token gets."""
    ORDER = 3
    """The order of the examples of an epoch."""
    SPLIT = 4
    """Whether a document belongs to the test set."""
    DROPOUT = 5
    """The dropout seed of a micro-batch."""
    INITIALIZE = 6
    """The seed of fresh weights."""
    SMALL_WORLD = 7
    """The documents of the small world."""
    EVALUATE = 8
    """The seed of the evaluation's masks."""
    CORRUPT = kernels.CORRUPT
    """Whether a token of a unit or of a budget is masked, replaced or kept."""
    BUDGET = kernels.BUDGET
    """Whether the unit that crosses an example's budget comes in."""
    POLICY = 11
    """Whatever a user's own masking policy draws (`masking.policy.PolicyBatch.uniform`)."""
    OBJECTIVE = 12
    """Whatever a user's own objective draws (`data.batch.Masker.uniform`)."""
    SAMPLE = 13
    """The seed of the permutation whose first examples are sampled (`data.train_examples`)."""


def seed_word(seed: int) -> np.uint64:
    """A seed as the kernels take it, modulo 2**64."""
    return np.uint64(int(seed) % 2**64)


def words(
    seed: int, domain: Domain, identities: NDArray[np.integer], count: int, epoch: int = 0
) -> NDArray[np.uint32]:
    """Random words about each id.

    Args:
        identities: integers `[N]`, non-negative.
        count: words an id, numbered from 0 as positions are.

    Returns:
        uint32 `[N, count]`.
    """
    assert 0 <= epoch < EPOCHS, epoch
    out = np.empty((len(identities), -(-count // 4) * 4), np.uint32)
    identities = identities.astype(np.uint64, order="C")
    kernels.words(out, seed_word(seed), int(domain), identities, epoch)
    return out[:, :count]


def uniforms(
    seed: int, domain: Domain, identities: NDArray[np.integer], count: int, epoch: int = 0
) -> NDArray[np.float64]:
    """Random numbers in (0, 1), float64 `[N, count]`, from one word each."""
    return (words(seed, domain, identities, count, epoch).astype(np.float64) + 0.5) * 2.0**-32


def derive_seed(seed: int, domain: Domain, identity: int = 0, epoch: int = 0) -> int:
    """A 64-bit seed that belongs to one decision, for generators that are not Philox (torch's)."""
    low, high = words(seed, domain, np.array([identity], np.uint64), 2, epoch)[0]
    return int(low) | int(high) << 32


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The seed of everything that is random in a run.

    Equal seeds do no harm: each use has a `Domain`, so that no two of them see the same words.
    """

    order: int
    """The examples of every batch, by epoch and place (`permuted`)."""
    masks: int
    """The masks of training, by epoch, example and position."""
    dropout: int
    """The dropout noise, by batch, micro-batch and rank (`dropout_noise`)."""
    weights: int
    """Fresh weights, drawn once."""
    eval_masks: int
    """The masks of evaluations, by draw, example and position."""
    split: int
    """Which documents are held out as the test set, and which examples are sampled."""

    @classmethod
    def of(cls, seed: int, eval_seed: int, data_seed: int) -> "Seeds":
        """Those of a run's keys: `seed`, `eval.seed` and `data.seed`."""
        return cls(
            order=seed,
            masks=seed,
            dropout=seed,
            weights=derive_seed(seed, Domain.INITIALIZE),
            eval_masks=derive_seed(eval_seed, Domain.EVALUATE),
            split=data_seed,
        )

    def dropout_noise(self, batch: int, micro_batch: int, rank: int) -> int:
        """The seed of PyTorch's generator before a micro-batch."""
        return derive_seed(self.dropout, Domain.DROPOUT, batch | rank << 40, micro_batch)


def permuted(places: NDArray[np.integer], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The examples at `places` of a random order of `range(count)`.

    A Feistel network with Philox as its round function permutes the smallest power of four that
    holds `count`; walking its cycles restricts it to `range(count)` (Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002). Any place costs the same: nothing is shuffled or stored.

    Args:
        places: integers `[N]` in `range(count)`.

    Returns:
        int64 `[N]`; over all places, every example once.
    """
    assert count > 0
    assert len(places) == 0 or 0 <= places.min() <= places.max() < count
    assert 0 <= epoch < EPOCHS, epoch
    half_bits = max(1, -(-(count - 1).bit_length() // 2))
    order = places.astype(np.uint64, order="C")  # a copy
    kernels.permute(
        order, np.uint64(count), np.uint64(half_bits), seed_word(seed), int(Domain.ORDER), epoch
    )
    return order.view(np.int64)
