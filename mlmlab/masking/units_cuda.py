# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
"""What a row's program of `kernel_cuda.py` works with: random words, words, spans, exact budgets.

    T positions, side by side in registers

The twin on the CPU (`units.py`) walks along each row. What it carries from token to token is a scan
here: the first token of a word by a running maximum, spans by composing the steps of a small state
machine (`composed`), an exact budget by bisection for its last unit. Only the spans of an exact
budget come one after another, as there, because each may end where an earlier one begins.
"""

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from mlmlab.masking.config import SPAN_LONGEST

_MULTIPLIER_0, _MULTIPLIER_1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_WEYL_0, _WEYL_1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
_LONGEST = tl.constexpr(SPAN_LONGEST)
_SPAN_BEGINS = tl.constexpr(3)
_DOCUMENT_BEGINS = tl.constexpr(3 + SPAN_LONGEST)
_SPAN_BEGUN = tl.constexpr(3 + 2 * SPAN_LONGEST)
"""Where the span tables lie in the policy table, behind the three thresholds."""
_NO_KEY = tl.constexpr(2**63 - 1)
_NOT_TAKEN = tl.constexpr(-1)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """One block of Philox4x32-10 (`mlmlab/random.py`); all uint32, scalars or of one shape."""
    for _ in tl.static_range(10):
        product_0 = c0.to(tl.uint64) * _MULTIPLIER_0
        product_1 = c2.to(tl.uint64) * _MULTIPLIER_1
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product_1.to(tl.uint32)
        c3 = product_0.to(tl.uint32)
        k0 = tl.add(k0, _WEYL_0, sanitize_overflow=False)  # meant to wrap
        k1 = tl.add(k1, _WEYL_1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def random_words(epoch_and_domain, low, high, k0, k1, LENGTH: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The words of one id, uint32 `[LENGTH]`: four a block, in the order of the positions."""
    blocks = tl.arange(0, LENGTH // 4).to(tl.uint32)
    w0, w1, w2, w3 = philox(blocks, epoch_and_domain, low, high, k0, k1)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def _larger(left, right):  # type: ignore[no-untyped-def]
    return tl.maximum(left, right)


@triton.jit
def latest(marks, positions):  # type: ignore[no-untyped-def]
    """The position of the last mark at or before each position, int32 `[T]`; 0 if there is none."""
    return tl.associative_scan(tl.where(marks, positions, 0), 0, _larger)


@triton.jit
def one_before(values, positions):  # type: ignore[no-untyped-def]
    """What stands one position earlier, `[T]`; 0 at the first position."""
    earlier = tl.gather(values, tl.maximum(positions - 1, 0), 0)
    return tl.where(positions > 0, earlier, 0)


@triton.jit
def composed(earlier, later):  # type: ignore[no-untyped-def]
    """One step that does two. A step is an int64: its hexadecimal digit n is where state n leads.

    A state says how many words of a span are left, this one included: 0 (not selected) to 10.
    """
    both = earlier & 0
    for state in tl.static_range(_LONGEST + 1):
        reached = (earlier >> (4 * state)) & 15
        both |= ((later >> (4 * reached)) & 15) << (4 * state)
    return both


@triton.jit
def span_states(words, begins_word, opens, free, policy):  # type: ignore[no-untyped-def]
    """Spans and gaps in turn (`MaskingConfig.span_tables`).

    Returns:
        int32 `[T]`, the state of `composed` that each position's word is in.
    """
    drawn = words.to(tl.int64)
    length = tl.full(drawn.shape, 1, tl.int64)
    for entry in tl.static_range(_LONGEST - 1):
        span_begins = tl.load(policy + _SPAN_BEGINS + entry)
        document_begins = tl.load(policy + _DOCUMENT_BEGINS + entry)
        length += (drawn >= tl.where(opens, document_begins, span_begins)).to(tl.int64)
    span_ends = tl.load(policy + _SPAN_BEGINS + _LONGEST - 1)
    document_ends = tl.load(policy + _DOCUMENT_BEGINS + _LONGEST - 1)
    length = tl.where(drawn < tl.where(opens, document_ends, span_ends), length, 0)
    # Out of every state into a new span; or only from 0 and 1, and from n to n - 1 otherwise.
    step = tl.where(opens, length * 0x11111111111, length * 0x11 + 0x98765432100)
    step = tl.where(begins_word, step, 0xA9876543210)  # within a word, every state stays
    step = tl.where(free, step, 0)
    return (tl.associative_scan(step, 0, composed) & 15).to(tl.int32)


@triton.jit
def within_budget(keys, free, budget, budget_word, KEY_BITS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Units in the order of their keys while they fit; the one that would cross it by chance.

    Args:
        keys: int64 `[T]`, the same for all tokens of a unit and for no others.
        budget: int64, tokens with 32 fractional bits.

    Returns:
        bool `[T]`.
    """
    last = budget & 0  # the largest key before which the tokens of all units fit
    for bit in range(KEY_BITS):
        higher = last | (tl.full((), 1, tl.int64) << (KEY_BITS - 1 - bit))
        tokens = tl.sum((free & (keys < higher)).to(tl.int64))
        last = tl.where((tokens << 32) <= budget, higher, last)
    room = budget - (tl.sum((free & (keys < last)).to(tl.int64)) << 32)
    tokens = tl.sum((free & (keys == last)).to(tl.int64))
    comes_in = budget_word.to(tl.int64) < room // tl.maximum(tokens, 1)
    return free & ((keys < last) | ((keys == last) & comes_in))


@triton.jit
def span_lengths(drawn, policy):  # type: ignore[no-untyped-def]
    """How many words a span has that begins here, int32, from its uint32 word."""
    length = tl.full(drawn.shape, 1, tl.int32)
    for entry in tl.static_range(_LONGEST - 1):
        longer = drawn.to(tl.int64) >= tl.load(policy + _SPAN_BEGUN + entry)
        length += longer.to(tl.int32)
    return length


@triton.jit
def spans_within_budget(  # type: ignore[no-untyped-def]
    words, lengths, word_firsts, opens, free, positions, budget, budget_word,
    LENGTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Spans in the order of their first words while they fit; the word that would cross the budget
    by chance.

    Args:
        words: uint32 `[T]`; those of the first tokens of words make the order.
        lengths: int32 `[T]`, of a span that begins here, in words.
        word_firsts: int32 `[T]`, the position of the first token of the word.
        budget: int64, tokens with 32 fractional bits; no more than there are free tokens.

    Returns:
        bool `[T]`, and int32 `[T]`, the position where the token's span begins; 0 without one.
    """
    begins_word = word_firsts == positions
    # Of equal words, the first comes first; the low bits of a key say where it stands.
    keys = tl.where(begins_word & free, words.to(tl.int64) * LENGTH + positions, _NO_KEY)
    ranks = tl.cumsum(begins_word.to(tl.int32), 0)
    ranks_behind = ranks + lengths  # of the first word that is not of the span
    origin = tl.full(positions.shape, _NOT_TAKEN, tl.int32)
    start = tl.full((), 0, tl.int32)
    end = start
    room = budget
    while room > 0:  # then some word is left, and each turn takes a word or more
        smallest = tl.min(tl.where(origin == _NOT_TAKEN, keys, _NO_KEY), 0)
        start = (smallest & (LENGTH - 1)).to(tl.int32)
        rank_behind = tl.sum(tl.where(positions == start, ranks_behind, 0), 0)
        stops = opens | (free == 0) | (origin != _NOT_TAKEN) | (ranks >= rank_behind)
        end = tl.min(tl.where(stops & (positions > start), positions, LENGTH), 0)
        origin = tl.where((positions >= start) & (positions < end), start, origin)
        room -= (end - start).to(tl.int64) << 32
    # The last span may have too many tokens: `over` is the first word of it that does not fit.
    has_no_room = end + (room >> 32)  # the first token, where the budget is overdrawn
    over = tl.sum(tl.where(positions == has_no_room, word_firsts, 0), 0)
    is_last = (origin == start) & (room < 0)
    is_over = is_last & (word_firsts == over)
    tokens = tl.sum(is_over.to(tl.int64), 0)
    room += (end - over).to(tl.int64) << 32
    comes_in = budget_word.to(tl.int64) < room // tl.maximum(tokens, 1)
    kept = (is_last == 0) | (word_firsts < over) | (is_over & comes_in)
    return kept & (origin != _NOT_TAKEN), tl.maximum(origin, 0)
