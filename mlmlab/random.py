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

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mlmlab.compiled import compiled

EPOCHS = 1 << 24
"""Epochs (or evaluation draws) that the counter can tell apart."""


class Domain(IntEnum):
    """What a word decides. The value is part of the counter: never renumber."""

    SELECT = 1
    """Whether a token is predicted, and whether it is then masked, replaced or kept."""
    REPLACE = 2
    """Which id a replaced token gets."""
    ORDER = 3
    """The order of the examples of an epoch."""
    SPLIT = 4
    """Whether a document belongs to the test set."""
    DROPOUT = 5
    """The dropout seed of a micro-batch."""
    INITIALIZE = 6
    """The seed of fresh weights."""
    WORLD = 7
    """The documents of the built-in world."""
    EVALUATE = 8
    """The seed of the evaluation's masks."""
    CORRUPT = 9
    """Whether a token of a unit or of a budget is masked, replaced or kept."""
    BUDGET = 10
    """Whether the unit that crosses an example's budget comes in."""


_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint32(0x9E3779B9)
_WEYL_1 = np.uint32(0xBB67AE85)
_SHIFT = np.uint64(32)


@compiled(inline="always")
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """One block of Philox4x32-10; all arguments and the four results are uint32.

    Compiled into its caller, so that LLVM runs several blocks side by side in vector registers.
    """
    for _ in range(10):
        product_0 = np.uint64(c0) * _MULTIPLIER_0
        product_1 = np.uint64(c2) * _MULTIPLIER_1
        c0 = np.uint32(product_1 >> _SHIFT) ^ c1 ^ k0
        c2 = np.uint32(product_0 >> _SHIFT) ^ c3 ^ k1
        c1 = np.uint32(product_1)
        c3 = np.uint32(product_0)
        k0 = np.uint32(k0 + _WEYL_0)
        k1 = np.uint32(k1 + _WEYL_1)
    return c0, c1, c2, c3


@compiled(inline="always")
def fill_words(out, epoch_and_domain, identity, k0, k1):  # type: ignore[no-untyped-def]
    """Fills `out` (uint32, its length a multiple of 4) with the words of one id."""
    low = np.uint32(identity)
    high = np.uint32(identity >> _SHIFT)
    for block in range(out.size // 4):
        w0, w1, w2, w3 = philox(np.uint32(block), epoch_and_domain, low, high, k0, k1)
        out[4 * block] = w0
        out[4 * block + 1] = w1
        out[4 * block + 2] = w2
        out[4 * block + 3] = w3


@compiled(nogil=True)
def _words(out, epoch_and_domain, identities, k0, k1):  # type: ignore[no-untyped-def]
    for row in range(identities.size):
        fill_words(out[row], epoch_and_domain, identities[row], k0, k1)


def key_words(seed: int) -> tuple[np.uint32, np.uint32]:
    """The two key words of a seed (any Python integer, taken modulo 2**64)."""
    seed %= 1 << 64
    return np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)


def epoch_and_domain(epoch: int, domain: Domain) -> np.uint32:
    """Counter word 1."""
    assert 0 <= epoch < EPOCHS, epoch
    return np.uint32(epoch | (int(domain) << 24))


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
    blocks = -(-count // 4)
    out = np.empty((len(identities), 4 * blocks), np.uint32)
    _words(out, epoch_and_domain(epoch, domain), identities.astype(np.uint64), *key_words(seed))
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


_FEISTEL_ROUNDS = 8


@compiled(nogil=True)
def _permute(places, count, half_bits, epoch_domain, k0, k1):  # type: ignore[no-untyped-def]
    half_mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    out = np.empty(places.size, np.int64)
    # A Feistel network with halves of two bits or more is always an even permutation: half of
    # the keys also swap 0 and 1, so that odd orders come as often.
    zero = np.uint32(0)
    word, _, _, _ = philox(np.uint32(_FEISTEL_ROUNDS), epoch_domain, zero, zero, k0, k1)
    swap = np.uint64(word & np.uint32(1))
    for i in range(places.size):
        value = np.uint64(places[i])
        while True:  # walk the cycle until it comes back below `count`
            left = value >> shift
            right = value & half_mask
            for feistel_round in range(_FEISTEL_ROUNDS):
                word, _, _, _ = philox(
                    np.uint32(feistel_round),
                    epoch_domain,
                    np.uint32(right),
                    np.uint32(right >> _SHIFT),
                    k0,
                    k1,
                )
                left, right = right, left ^ (np.uint64(word) & half_mask)
            value = (left << shift) | right
            if value < np.uint64(2):
                value ^= swap
            if value < count:
                break
        out[i] = value
    return out


def permuted(places: NDArray[np.integer], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The examples that stand at `places` of a random order of `range(count)`.

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
    half_bits = max(1, -(-(count - 1).bit_length() // 2))
    domain = epoch_and_domain(epoch, Domain.ORDER)
    k0, k1 = key_words(seed)
    order: NDArray[np.int64] = _permute(
        places.astype(np.int64), np.uint64(count), half_bits, domain, k0, k1
    )
    return order
