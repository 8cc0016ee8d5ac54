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

from mlmlab.compiled import compiled, data, inlined

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


@inlined
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


@inlined
def fill_words(out, first, blocks, epoch_and_domain, identity, k0, k1):  # type: ignore[no-untyped-def]
    """Writes the words of one id, four a block, to `out` (uint32) from `first` on."""
    low = np.uint32(identity)
    high = np.uint32(identity >> _SHIFT)
    for block in range(blocks):
        w0, w1, w2, w3 = philox(np.uint32(block), epoch_and_domain, low, high, k0, k1)
        out[first + 4 * block] = w0
        out[first + 4 * block + 1] = w1
        out[first + 4 * block + 2] = w2
        out[first + 4 * block + 3] = w3


@inlined
def key_words(seed):  # type: ignore[no-untyped-def]
    """The two key words of a seed (uint64), uint32 each."""
    return np.uint32(seed & np.uint64(0xFFFFFFFF)), np.uint32(seed >> _SHIFT)


@compiled("uint32[] uint64[] int64 int64 int64 uint64")
def _words(out, identities, rows, blocks, epoch_domain, seed):  # type: ignore[no-untyped-def]
    out, identities = data(out), data(identities)
    k0, k1 = key_words(seed)
    for row in range(rows):
        fill_words(out, row * blocks * 4, blocks, np.uint32(epoch_domain), identities[row], k0, k1)
    return 0


def epoch_and_domain(epoch: int, domain: Domain) -> int:
    """Counter word 1."""
    assert 0 <= epoch < EPOCHS, epoch
    return epoch | int(domain) << 24


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
    identities = identities.astype(np.uint64, order="C")
    _words.of()(
        id(out), id(identities), len(identities), blocks, epoch_and_domain(epoch, domain), seed
    )
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


@inlined
def _feistel(value, half_bits, epoch_domain, k0, k1):  # type: ignore[no-untyped-def]
    """The place of `value`, a number of twice `half_bits` bits, in a random order of them all."""
    half_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & half_mask
    for feistel_round in range(_FEISTEL_ROUNDS):
        word, _, _, _ = philox(
            np.uint32(feistel_round), epoch_domain, np.uint32(right), np.uint32(right >> _SHIFT),
            k0, k1,
        )  # fmt: skip
        left, right = right, left ^ (np.uint64(word) & half_mask)
    return (left << half_bits) | right


@compiled("int64[] int64[] int64 uint64 uint64 int64 uint64")
def _permute(out, places, size, count, half_bits, epoch_domain, seed):  # type: ignore[no-untyped-def]
    out, places = data(out), data(places)
    domain = np.uint32(epoch_domain)
    k0, k1 = key_words(seed)
    # A Feistel network with halves of two bits or more is always an even permutation: half of
    # the keys also swap 0 and 1, so that odd orders come as often.
    zero = np.uint32(0)
    word, _, _, _ = philox(np.uint32(_FEISTEL_ROUNDS), domain, zero, zero, k0, k1)
    swap = np.uint64(word & np.uint32(1))
    for i in range(size):
        value = np.uint64(places[i])
        outside = True
        while outside:  # walk the cycle until it comes back below `count`
            value = _feistel(value, half_bits, domain, k0, k1)
            if value < np.uint64(2):
                value ^= swap
            outside = value >= count
        out[i] = value
    return 0


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
    places = places.astype(np.int64, order="C")
    order = np.empty(len(places), np.int64)
    _permute.of()(
        id(order), id(places), len(places), count, half_bits,
        epoch_and_domain(epoch, Domain.ORDER), seed,
    )  # fmt: skip
    return order
