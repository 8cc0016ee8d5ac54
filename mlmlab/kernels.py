"""All compiled code: Philox, the permutation behind the order of the examples, and masking.

    B sequences   T positions   M predicted tokens   W words of a row

Numba compiles these loops when they are first called and keeps the machine code in `__pycache__`.
It compiles again when this file changes, and looks at no other: that is why the code is in one
file and uses no constant from another module. The slow, obvious twins are
`tests/reference/philox.py` and `tests/reference/masking.py`.

Numba computes uint64 with int64 in float64. Random words, thresholds, seeds and ids of examples are
therefore unsigned everywhere, positions and counts signed, and no expression mixes the two.
"""

import numpy as np
from numba import njit

SELECT, REPLACE, CORRUPT, BUDGET = 1, 2, 9, 10
"""The domains (`mlmlab.random.Domain`) that masking draws from."""
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint32(0x9E3779B9)
_WEYL_1 = np.uint32(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

compiled = njit(nogil=True, cache=True)
inlined = njit(inline="always")
"""Becomes part of its callers' loops: only then does LLVM compute several blocks side by side in
vector registers, more than twice as fast."""


@inlined
def philox(c0, c1, c2, c3, k0, k1):
    """One block of Philox4x32-10; arguments and results are uint32."""
    for _ in range(10):
        product_0 = np.uint64(c0) * _MULTIPLIER_0
        product_1 = np.uint64(c2) * _MULTIPLIER_1
        c0 = np.uint32(product_1 >> _32) ^ c1 ^ k0
        c2 = np.uint32(product_0 >> _32) ^ c3 ^ k1
        c1 = np.uint32(product_1)
        c3 = np.uint32(product_0)
        k0 = np.uint32(k0 + _WEYL_0)
        k1 = np.uint32(k1 + _WEYL_1)
    return c0, c1, c2, c3


@inlined
def block_of(seed, domain, identity, epoch, number):
    """A block by the counter layout of `mlmlab/random.py`.

    Args:
        seed: uint64, as is the identity; the rest are int64.
    """
    return philox(
        np.uint32(number), np.uint32(epoch | domain << 24),
        np.uint32(identity & _LOW), np.uint32(identity >> _32),
        np.uint32(seed & _LOW), np.uint32(seed >> _32),
    )  # fmt: skip


@compiled
def fill_words(out, seed, domain, identity, epoch):
    """Writes the first words about one identity to `out`, uint32 and a multiple of four long."""
    for number in range(len(out) // 4):
        w0, w1, w2, w3 = block_of(seed, domain, identity, epoch, number)
        out[4 * number] = w0
        out[4 * number + 1] = w1
        out[4 * number + 2] = w2
        out[4 * number + 3] = w3


@compiled
def words(out, seed, domain, identities, epoch):
    """The same for many identities (uint64 `[N]`), a row of `out` for each."""
    for row in range(len(identities)):
        fill_words(out[row], seed, domain, identities[row], epoch)


_FEISTEL_ROUNDS = 8


@compiled
def _feistel(value, half_bits, seed, domain, epoch):
    """The place of `value`, a number of twice `half_bits` bits, in a random order of them all."""
    half_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & half_mask
    for number in range(_FEISTEL_ROUNDS):
        word, _, _, _ = block_of(seed, domain, right, epoch, number)
        left, right = right, left ^ (np.uint64(word) & half_mask)
    return (left << half_bits) | right


@compiled
def permute(values, count, half_bits, seed, domain, epoch):
    """Permutes `range(count)`, in place: each of `values` (uint64) becomes the value at that place.

    Args:
        count: uint64, as is half_bits: `count` fits into twice as many bits.
    """
    # A Feistel network with halves of two bits or more is always an even permutation: half of
    # the keys also swap 0 and 1, so that odd orders come as often.
    word, _, _, _ = block_of(seed, domain, np.uint64(0), epoch, _FEISTEL_ROUNDS)
    swap = np.uint64(word & np.uint32(1))
    for place in range(len(values)):
        value = values[place]
        while True:  # walk the cycle until it comes back below `count`
            value = _feistel(value, half_bits, seed, domain, epoch)
            if value < np.uint64(2):
                value ^= swap
            if value < count:
                break
        values[place] = value


@compiled
def mask_tokens(
    input_ids, example_ids, epoch, seed, thresholds, mask_id, protected, replacement_ids,
    ids, positions, labels, row_offsets,
):  # fmt: skip
    """Masks independent tokens: one random word per token decides everything.

    Args:
        input_ids: integers `[B, T]`.
        example_ids: uint64 `[B]`.
        seed: uint64.
        thresholds: uint64 `[4]`, `MaskingPolicy.thresholds`.
        protected: bool `[V]`.
        replacement_ids: int64, ascending.
        ids: int64 `[B, T]`, written, as are the following three.
        positions: int64 `[B * T]`, of which M are used.
        labels: int64 `[B * T]`, of which M are used.
        row_offsets: int64 `[B + 1]`.

    Returns:
        M, or -1 if an id is outside the vocabulary.
    """
    rows, length = input_ids.shape
    select_words = np.empty((length + 3) // 4 * 4, np.uint32)
    selected = np.empty(length + 1, np.int64)
    deciding = np.arange(length)
    select_below = thresholds[2]
    count = 0
    row_offsets[0] = 0
    for row in range(rows):
        if not _copy_row(input_ids[row], ids[row], len(protected)):
            return -1
        fill_words(select_words, seed, SELECT, example_ids[row], epoch)
        found = 0
        for position in range(length):  # appends without a branch
            selected[found] = position
            found += int(np.uint64(select_words[position]) < select_below)
        count = _corrupt(
            ids[row], row * length, selected[:found], deciding, select_words, seed,
            example_ids[row], epoch, thresholds, mask_id, protected, replacement_ids,
            positions, labels, count,
        )  # fmt: skip
        row_offsets[row + 1] = count
    return count


@compiled
def mask_units(
    input_ids, example_ids, epoch, seed, thresholds, mask_id, protected, replacement_ids,
    ids, positions, labels, row_offsets, word_starts, span_tables, is_span, is_exact, per_unit,
):  # fmt: skip
    """Masks words, spans and exact budgets.

    Args, besides those of `mask_tokens`:
        word_starts: uint8 `[B, T]`, 0 within a word, 1 where a word begins, 2 where a document
            does.
        span_tables: uint64 `[3, L]`, `masking.kernel.span_tables`.
        per_unit: whether one draw corrupts all tokens of a unit.

    Returns:
        M, or -1 if an id is outside the vocabulary.
    """
    rows, length = input_ids.shape
    select_words = np.empty((length + 3) // 4 * 4, np.uint32)
    corrupt_words = np.empty_like(select_words)
    first = np.empty(length + 1, np.int64)
    kind = np.empty(length + 1, np.int64)
    origin = np.empty(length, np.int64)
    selected = np.empty(length + 1, np.int64)
    deciding = origin if per_unit else np.arange(length)
    count = 0
    row_offsets[0] = 0
    for row in range(rows):
        identity = example_ids[row]
        if not _copy_row(input_ids[row], ids[row], len(protected)):
            return -1
        fill_words(select_words, seed, SELECT, identity, epoch)
        fill_words(corrupt_words, seed, CORRUPT, identity, epoch)
        if is_span or is_exact:
            units = _split_into_words(ids[row], word_starts[row], protected, first, kind)
            if is_exact:
                _select_budget(
                    select_words, first[: units + 1], kind, thresholds, span_tables, is_span, seed,
                    identity, epoch, origin,
                )  # fmt: skip
            else:
                _select_spans(select_words, first[: units + 1], kind, span_tables, origin)
        else:
            _select_words(
                select_words, ids[row], word_starts[row], protected, thresholds[2], origin
            )
        found = 0
        for position in range(length):  # appends without a branch
            selected[found] = position
            found += int(origin[position] != _NOT_SELECTED)
        count = _corrupt(
            ids[row], row * length, selected[:found], deciding, corrupt_words, seed, identity,
            epoch, thresholds, mask_id, protected, replacement_ids, positions, labels, count,
        )  # fmt: skip
        row_offsets[row + 1] = count
    return count


@compiled
def mask_selected(
    input_ids, example_ids, epoch, seed, thresholds, mask_id, protected, replacement_ids,
    ids, positions, labels, row_offsets, chosen, deciding,
):  # fmt: skip
    """Masks the tokens that someone else has selected.

    Args, besides those of `mask_tokens`:
        thresholds: uint64 `[2]`, `MaskingPolicy.corruption_thresholds`.
        chosen: bool `[B, T]`; protected ids are left out here.
        deciding: int64 `[B, T]`, the position whose random word decides how a token is corrupted.

    Returns:
        M, or -1 if an id is outside the vocabulary.
    """
    rows, length = input_ids.shape
    corrupt_words = np.empty((length + 3) // 4 * 4, np.uint32)
    count = 0
    row_offsets[0] = 0
    for row in range(rows):
        if not _copy_row(input_ids[row], ids[row], len(protected)):
            return -1
        fill_words(corrupt_words, seed, CORRUPT, example_ids[row], epoch)
        count = _corrupt(
            ids[row], row * length, np.flatnonzero(chosen[row]), deciding[row], corrupt_words,
            seed, example_ids[row], epoch, thresholds, mask_id, protected, replacement_ids,
            positions, labels, count,
        )  # fmt: skip
        row_offsets[row + 1] = count
    return count


@compiled
def _copy_row(tokens, out, vocabulary_size):
    """Copies to int64; whether all ids are of the vocabulary."""
    largest = np.uint64(0)
    for position in range(len(tokens)):
        out[position] = tokens[position]
        largest = max(largest, np.uint64(tokens[position]))  # a negative id becomes a huge one
    return largest < np.uint64(vocabulary_size)


@compiled
def _corrupt(
    ids, base, selected, deciding, random_words, seed, identity, epoch, thresholds, mask_id,
    protected, replacement_ids, positions, labels, count,
):  # fmt: skip
    """Notes the labels of a row's selected tokens, and masks, replaces or keeps each.

    Args:
        ids: int64 `[T]`, one row.
        base: its first flat position.
        selected: ascending positions in the row; protected ones are left out here.
        deciding: int64 `[T]`, the position whose random word decides for a selected one.
        count: labels noted before this row.

    Returns:
        Labels noted.
    """
    mask_below, replace_below = thresholds[0], thresholds[1]
    for n in range(len(selected)):
        position = selected[n]
        token = ids[position]
        if protected[token]:
            continue
        positions[count] = base + position
        labels[count] = token
        count += 1
        word = np.uint64(random_words[deciding[position]])
        if word < mask_below:
            ids[position] = mask_id
        elif word < replace_below:
            high, low, _, _ = block_of(seed, REPLACE, identity, epoch, position)
            # floor(choices * 64-bit fraction): no vocabulary is large enough to see its bias
            choices = np.uint64(len(replacement_ids))
            carry = (np.uint64(low) * choices) >> _32
            drawn = (np.uint64(high) * choices + carry) >> _32
            ids[position] = replacement_ids[drawn]
    return count


_PROTECTED, _INNER, _OPENING = 0, 1, 2
"""Kinds: not to be selected; a word; a word that begins a document, or what is left of it here."""
_NOT_SELECTED = -1
"""`origin` has this, or the first position of the unit that a selected token belongs to."""


@compiled
def _split_into_words(ids, starts, protected, first, kind):
    """Lists the words of a row.

    A protected token is a word by itself, is never selected and ends the document, so that units
    never cross special tokens.

    Args:
        first: `[T + 1]`, written: the first position of each word, then T.
        kind: `[T + 1]`, written.

    Returns:
        W.
    """
    count = 0
    was_shut = 1
    for position in range(len(ids)):
        shut = int(protected[ids[position]])
        opens = was_shut | int(starts[position] == 2)
        first[count] = position
        kind[count] = (1 - shut) * (_INNER + opens)
        # Without a branch: unless a word begins here, the next one overwrites it.
        count += shut | opens | int(starts[position] != 0)
        was_shut = shut
    first[count] = len(ids)
    return count


@compiled
def _select(first, word, unit, origin):
    for position in range(first[word], first[word + 1]):
        origin[position] = unit


@compiled
def _select_words(random_words, ids, starts, protected, select_below, origin):
    """Each word by itself: the random word of its first token decides.

    The words are those of `_split_into_words`, without a list of them: twice as fast.
    """
    first = 0
    was_shut = True
    for position in range(len(ids)):
        shut = protected[ids[position]]
        first = position if was_shut | (starts[position] != 0) else first
        is_selected = (not shut) & (np.uint64(random_words[first]) < select_below)
        origin[position] = first if is_selected else _NOT_SELECTED
        was_shut = shut


@compiled
def _select_spans(random_words, first, kind, tables, origin):
    """Spans and gaps in turn (`masking.kernel.span_tables`)."""
    origin[:] = _NOT_SELECTED
    left = unit = 0
    for word in range(len(first) - 1):
        if kind[word] != _INNER:
            left = 0
        if left == 0 and kind[word] != _PROTECTED:
            table = kind[word] - _INNER
            drawn = np.uint64(random_words[first[word]])
            if drawn < tables[table, -1]:
                left = _span_length(drawn, tables, table)
                unit = first[word]
        if left > 0:
            _select(first, word, unit, origin)
            left -= 1


@compiled
def _span_length(drawn, tables, table):
    """In words: one, and one more for each entry of the table but the last that `drawn` reaches."""
    length = 1
    for entry in range(tables.shape[1] - 1):
        length += int(drawn >= tables[table, entry])
    return length


@compiled
def _select_budget(
    random_words, first, kind, thresholds, tables, is_span, seed, identity, epoch, origin
):
    """Units in random order while they fit into the row's budget."""
    count = len(first) - 1
    eligible = 0
    for word in range(count):
        if kind[word] != _PROTECTED:
            eligible += first[word + 1] - first[word]
    budget = np.uint64(eligible) * thresholds[2]
    order = np.empty(count, np.uint64)
    # The low words are enough, but once in a while: then all of them are sorted.
    likely = thresholds[2] + thresholds[3] // np.uint64(max(1, int(np.sqrt(count))))
    for below in (likely, np.uint64(1 << 32)):
        candidates = 0
        for word in range(count):
            drawn = np.uint64(random_words[first[word]])
            order[candidates] = drawn << _32 | np.uint64(word)
            candidates += int((drawn < below) & (kind[word] != _PROTECTED))
        order[:candidates].sort()
        origin[:] = _NOT_SELECTED
        if _spend(
            order[:candidates], first, kind, budget, tables, is_span, seed, identity, epoch,
            origin,
        ):  # fmt: skip
            return


@compiled
def _spend(order, first, kind, budget, tables, is_span, seed, identity, epoch, origin):
    """Takes units until the budget (tokens, with 32 fractional bits) is spent; whether it is.

    The word that would cross it comes in with the chance that makes the mean exact.
    """
    left = budget
    for place in range(len(order)):
        start = np.int64(order[place] & _LOW)
        if origin[first[start]] != _NOT_SELECTED:
            continue
        length = 1
        if is_span:
            _, _, drawn, _ = block_of(seed, REPLACE, identity, epoch, first[start])
            length = _span_length(np.uint64(drawn), tables, 2)
        for word in range(start, min(start + length, len(first) - 1)):
            if word != start and (kind[word] != _INNER or origin[first[word]] != _NOT_SELECTED):
                break
            tokens = np.uint64(first[word + 1] - first[word])
            if tokens << _32 > left:
                drawn, _, _, _ = block_of(seed, BUDGET, identity, epoch, 0)
                if np.uint64(drawn) < left // tokens:
                    _select(first, word, first[start], origin)
                return True
            _select(first, word, first[start], origin)
            left -= tokens << _32
    return False
