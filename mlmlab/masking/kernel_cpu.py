"""The masking kernel on the CPU, one pass over each row; `kernel.py` calls it.

    B sequences   T positions   M predicted tokens

For each row: (1) one Philox word a token, several blocks side by side in vector registers; (2) the
selected positions, appended without a branch to a short list: those whose word is below a
threshold, or those of the selected units (`units.py`); (3) the row copied to int64, and on the few
selected places the labels noted and the mask written, protected ids left out. At the end of the
batch, the random replacements. The slow readable twin is `tests/reference/masking.py`.
"""

import struct

import numpy as np

from mlmlab.compiled import compiled, data, inlined, pointer
from mlmlab.masking.units import select_budget, select_spans, select_words, split_into_words
from mlmlab.random import Domain, fill_words, key_words, philox

ID_OUTSIDE_VOCABULARY = -1
NO_ROOM = -2
"""What the kernels give in place of the number of predicted tokens."""
TOKEN_LISTS, UNIT_LISTS = 2, 11
"""Scratch: how many lists of about T numbers, of eight bytes at most, the kernels need."""
MARGIN = 4
"""How many more than T a list may hold."""
PLACE_LISTS = 5
"""Scratch: how many lists of as many numbers as there is room for predicted tokens."""
NUMBERS = struct.Struct("=4qQ3q")
"""Rows B, length T, room for predicted tokens, epoch, seed, mask id, vocabulary's size, and how
many replacement ids."""
_SHIFT = np.uint64(32)
_SELECT, _REPLACE = int(Domain.SELECT) << 24, int(Domain.REPLACE) << 24
_CORRUPT, _BUDGET = int(Domain.CORRUPT) << 24, int(Domain.BUDGET) << 24


@inlined
def _copy_row(tokens, out, base, length, vocabulary_size):  # type: ignore[no-untyped-def]
    """Copies to int64; says whether all ids are of the vocabulary."""
    largest = np.uint64(0)
    for position in range(base, base + length):
        token = tokens[position]
        out[position] = token
        largest = max(largest, np.uint64(token))  # a negative id becomes a huge one
    return largest < np.uint64(vocabulary_size)


@inlined
def _hide(  # type: ignore[no-untyped-def]
    ids, base, identity, candidates, deciding, words, found, thresholds, mask_id, protected,
    positions, labels, count, replaced, replaced_identity, replacements,
):  # fmt: skip
    """Notes the labels of a row's candidates, masks most of them, and lists those to be replaced.

    Hardly a branch: what a protected candidate writes is overwritten by the next one.
    """
    mask_below, replace_below = thresholds[0], thresholds[1]
    for candidate in range(found):
        position = candidates[candidate]
        token = ids[base + position]
        free = 1 - int(protected[token])
        word = np.uint64(words[deciding[candidate]])
        masked = free & int(word < mask_below)
        ids[base + position] = mask_id if masked else token
        positions[count] = base + position
        labels[count] = token
        count += free
        if free & int(word < replace_below) & (1 - masked):
            replaced[2 * replacements] = base + position
            replaced[2 * replacements + 1] = position
            replaced_identity[replacements] = identity
            replacements += 1
    return count, replacements


@inlined
def _replace(  # type: ignore[no-untyped-def]
    ids, replaced, replaced_identity, replacements, replacement_ids, choices, high, low,
    domain_word, k0, k1,
):  # fmt: skip
    """Draws the random ids, several side by side."""
    for n in range(replacements):
        identity = replaced_identity[n]
        high[n], low[n], _, _ = philox(
            np.uint32(replaced[2 * n + 1]), domain_word, np.uint32(identity),
            np.uint32(identity >> _SHIFT), k0, k1,
        )  # fmt: skip
    for n in range(replacements):
        # floor(choices * 64-bit fraction): no vocabulary is large enough to see its bias
        carry = (np.uint64(low[n]) * choices) >> _SHIFT
        drawn = (np.uint64(high[n]) * choices + carry) >> _SHIFT
        ids[replaced[2 * n]] = replacement_ids[drawn]


@inlined
def _parts(out, rows, size, capacity):  # type: ignore[no-untyped-def]
    """Where the parts of the output begin that follow the ids, and those of the scratch."""
    positions, labels = pointer(out, size, np.int64), pointer(out, size + capacity, np.int64)
    row_offsets = pointer(labels, capacity, np.int64)
    replaced = pointer(row_offsets, rows + 1, np.int64)
    replaced_identity = pointer(replaced, 2 * capacity, np.uint64)
    high = pointer(replaced, 3 * capacity, np.uint32)
    low = pointer(replaced, 4 * capacity, np.uint32)
    lists = pointer(replaced, PLACE_LISTS * capacity, np.int64)
    return positions, labels, row_offsets, replaced, replaced_identity, high, low, lists


@compiled("item[] uint64[] int64[] uint64[] uint8[] int64[] numbers")
def mask_tokens(  # type: ignore[no-untyped-def]
    input_ids, example_ids, out, thresholds, protected, replacement_ids, numbers
):
    """Independent tokens. `out` holds ids, positions, labels and row offsets one after another;
    what is behind them is scratch."""
    rows, length, capacity, epoch, seed = (
        numbers[0], numbers[1], numbers[2], numbers[3], np.uint64(numbers[4])
    )  # fmt: skip
    mask_id, vocabulary_size, choices = numbers[5], numbers[6], np.uint64(numbers[7])
    input_ids, example_ids, thresholds = data(input_ids), data(example_ids), data(thresholds)
    protected, replacement_ids = data(protected), data(replacement_ids)
    ids = data(out)
    positions, labels, row_offsets, replaced, replaced_identity, high, low, lists = _parts(
        ids, rows, rows * length, capacity
    )
    list_size = length + MARGIN
    words = pointer(lists, 0, np.uint32)
    candidates = pointer(lists, list_size, np.int32)
    k0, k1 = key_words(seed)
    select_below = thresholds[2]
    count = replacements = 0
    row_offsets[0] = 0
    for row in range(rows):
        base, identity = row * length, example_ids[row]
        fill_words(words, 0, (length + 3) // 4, np.uint32(epoch | _SELECT), identity, k0, k1)
        found = 0
        for position in range(length):
            candidates[found] = position
            found += int(np.uint64(words[position]) < select_below)
        if not _copy_row(input_ids, ids, base, length, vocabulary_size):
            return ID_OUTSIDE_VOCABULARY
        if count + found >= capacity:
            return NO_ROOM
        count, replacements = _hide(
            ids, base, identity, candidates, candidates, words, found, thresholds, mask_id,
            protected, positions, labels, count, replaced, replaced_identity, replacements,
        )  # fmt: skip
        row_offsets[row + 1] = count
    _replace(
        ids, replaced, replaced_identity, replacements, replacement_ids, choices, high, low,
        np.uint32(epoch | _REPLACE), k0, k1,
    )  # fmt: skip
    return count


@compiled(
    "item[] uint64[] int64[] uint64[] uint8[] int64[] numbers uint8[] uint64[] int64 int64 int64"
)
def mask_units(  # type: ignore[no-untyped-def]
    input_ids, example_ids, out, thresholds, protected, replacement_ids, numbers, word_starts,
    tables, is_span, is_exact, per_unit,
):  # fmt: skip
    """Words, spans and exact budgets. The others as for `mask_tokens`."""
    rows, length, capacity, epoch, seed = (
        numbers[0], numbers[1], numbers[2], numbers[3], np.uint64(numbers[4])
    )  # fmt: skip
    mask_id, vocabulary_size, choices = numbers[5], numbers[6], np.uint64(numbers[7])
    input_ids, example_ids, thresholds = data(input_ids), data(example_ids), data(thresholds)
    protected, replacement_ids = data(protected), data(replacement_ids)
    ids = data(out)
    word_starts, tables = data(word_starts), data(tables)
    positions, labels, row_offsets, replaced, replaced_identity, high, low, lists = _parts(
        ids, rows, rows * length, capacity
    )
    list_size = length + MARGIN
    words = pointer(lists, 0, np.uint32)
    candidates = pointer(lists, list_size, np.int32)
    deciding = pointer(lists, 2 * list_size, np.int32)
    corrupt_words = pointer(lists, 3 * list_size, np.uint32)
    budget_words = pointer(lists, 4 * list_size, np.uint32)
    first = pointer(lists, 5 * list_size, np.int32)
    kind = pointer(lists, 6 * list_size, np.int32)
    chosen = pointer(lists, 7 * list_size, np.int32)
    origin = pointer(lists, 8 * list_size, np.int32)
    unit_of = pointer(lists, 9 * list_size, np.int32)
    order = pointer(lists, 10 * list_size, np.uint64)
    k0, k1 = key_words(seed)
    select_below, spread = thresholds[2], thresholds[3]
    blocks = (length + 3) // 4
    count = replacements = 0
    row_offsets[0] = 0
    for row in range(rows):
        base, identity = row * length, example_ids[row]
        fill_words(words, 0, blocks, np.uint32(epoch | _SELECT), identity, k0, k1)
        fill_words(corrupt_words, 0, blocks, np.uint32(epoch | _CORRUPT), identity, k0, k1)
        if not _copy_row(input_ids, ids, base, length, vocabulary_size):
            return ID_OUTSIDE_VOCABULARY
        units, eligible = split_into_words(ids, word_starts, base, length, protected, first, kind)
        if is_exact:
            fill_words(budget_words, 0, 1, np.uint32(epoch | _BUDGET), identity, k0, k1)
            selected = select_budget(
                words, units, first, kind, eligible, select_below, spread, tables, is_span,
                budget_words[0], np.uint32(epoch | _REPLACE), identity, k0, k1, order, unit_of,
                chosen, origin,
            )  # fmt: skip
        elif is_span:
            selected = select_spans(words, units, first, kind, tables, chosen, origin)
        else:
            selected = select_words(words, units, first, kind, select_below, chosen, origin)
        found = 0
        for unit in range(selected):
            word = chosen[unit]
            for position in range(first[word], first[word + 1]):
                candidates[found] = position
                deciding[found] = origin[unit] if per_unit else position
                found += 1
        if count + found >= capacity:
            return NO_ROOM
        count, replacements = _hide(
            ids, base, identity, candidates, deciding, corrupt_words, found, thresholds, mask_id,
            protected, positions, labels, count, replaced, replaced_identity, replacements,
        )  # fmt: skip
        row_offsets[row + 1] = count
    _replace(
        ids, replaced, replaced_identity, replacements, replacement_ids, choices, high, low,
        np.uint32(epoch | _REPLACE), k0, k1,
    )  # fmt: skip
    return count
