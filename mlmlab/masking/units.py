"""Selecting whole units (words, spans) and exact budgets: one row at a time.

    T positions   W words of the row

A row is a list of words, `first` (position of the first token, `[W + 1]`, the last entry T) and
`kind` (`[W]`): a protected token stands for itself, is never selected and ends the document, so
that units never cross special tokens. What is selected is written to `chosen` (words, ascending)
and `origin` (the position whose random word decides for the word's unit).
"""

import numpy as np

from mlmlab.compiled import inlined
from mlmlab.masking.config import SPAN_LONGEST
from mlmlab.random import philox

PROTECTED, INNER, OPENING = 0, 1, 2
"""Kinds: not to be selected; a word; a word that begins a document, or what is left of it here."""
_SHIFT = np.uint64(32)
_EVERY_WORD = np.uint64(1 << 32)
_NOT_TAKEN = -1


@inlined
def split_into_words(tokens, starts, base, length, protected, first, kind):  # type: ignore[no-untyped-def]
    """Lists the words of the row of `length` tokens from `base` on.

    Args:
        tokens: int64.
        starts: uint8: 0 within a word, 1 where a word begins, 2 where a document begins.

    Returns:
        W, and how many tokens are not protected.
    """
    count = shut_tokens = 0
    was_shut = 1
    for position in range(length):
        shut = int(protected[tokens[base + position]])
        start = int(starts[base + position])
        opens = was_shut | int(start == 2)
        first[count] = position
        kind[count] = (1 - shut) * (INNER + opens)
        count += shut | opens | int(start != 0)  # else the next word overwrites it
        shut_tokens += shut
        was_shut = shut
    first[count] = length
    return count, length - shut_tokens


@inlined
def select_words(words, count, first, kind, select_below, chosen, origin):  # type: ignore[no-untyped-def]
    """Every word by itself: its first token's random word decides."""
    found = 0
    for word in range(count):
        chosen[found] = word
        origin[found] = first[word]
        is_below = int(np.uint64(words[first[word]]) < select_below)
        found += is_below & int(kind[word] != PROTECTED)
    return found


@inlined
def select_spans(words, count, first, kind, tables, chosen, origin):  # type: ignore[no-untyped-def]
    """Spans and gaps in turn (`MaskingConfig.span_tables`)."""
    found = left = begin = 0
    for word in range(count):
        if kind[word] != INNER:
            left = 0
        if left == 0 and kind[word] != PROTECTED:
            table = kind[word] - INNER
            drawn = np.uint64(words[first[word]])
            if drawn < tables[table * SPAN_LONGEST + SPAN_LONGEST - 1]:
                left = span_length(drawn, tables, table)
                begin = first[word]
        if left:
            chosen[found] = word
            origin[found] = begin
            found += 1
            left -= 1
    return found


@inlined
def span_length(drawn, tables, table):  # type: ignore[no-untyped-def]
    """How many words: one, and one more for each of a table's entries but the last that `drawn`
    reaches."""
    length = 1
    for entry in range(SPAN_LONGEST - 1):
        length += int(drawn >= tables[table * SPAN_LONGEST + entry])
    return length


@inlined
def select_budget(  # type: ignore[no-untyped-def]
    words, count, first, kind, eligible, select_below, spread, tables, is_span,
    budget_word, replace_word, identity, k0, k1, order, unit_of, chosen, origin,
):  # fmt: skip
    """Units in the random order of their words while they fit into the share of `eligible` tokens.

    The unit that would cross the budget comes in with the chance that makes the mean exact.
    """
    root = 1  # of the number of words
    while (root + 1) * (root + 1) <= count:
        root += 1
    likely = select_below + spread // np.uint64(root)
    for below in (likely, _EVERY_WORD):  # the low words are enough, but once in a while
        for word in range(count):
            unit_of[word] = _NOT_TAKEN
        candidates = 0
        for word in range(count):
            drawn = np.uint64(words[first[word]])
            order[candidates] = drawn << _SHIFT | np.uint64(word)
            candidates += int(drawn < below) & int(kind[word] != PROTECTED)
        _sort(order, candidates)
        if _spend(
            order, candidates, count, first, kind, np.uint64(eligible) * select_below, tables,
            is_span, budget_word, replace_word, identity, k0, k1, unit_of,
        ):  # fmt: skip
            break
    found = 0
    for word in range(count):
        chosen[found] = word
        origin[found] = unit_of[word]
        found += int(unit_of[word] != _NOT_TAKEN)
    return found


@inlined
def _sort(numbers, count):  # type: ignore[no-untyped-def]
    """Shell's, with Knuth's gaps 1, 4, 13, 40 ...: short, in place, and quick for a row's words."""
    gap = 1
    while gap < count:
        gap = 3 * gap + 1
    while gap > 1:
        gap //= 3
        for place in range(gap, count):
            number = numbers[place]
            while place >= gap and numbers[place - gap] > number:
                numbers[place] = numbers[place - gap]
                place -= gap
            numbers[place] = number


@inlined
def _spend(  # type: ignore[no-untyped-def]
    order, candidates, count, first, kind, budget, tables, is_span,
    budget_word, replace_word, identity, k0, k1, unit_of,
):  # fmt: skip
    """Takes units until the budget is spent (tokens, with 32 fractional bits); whether it is."""
    taken = np.uint64(0)
    for place in range(candidates):
        start = np.int64(order[place] & np.uint64(0xFFFFFFFF))
        if unit_of[start] != _NOT_TAKEN:
            continue
        length = 1
        if is_span:
            _, _, drawn, _ = philox(
                np.uint32(first[start]), replace_word, np.uint32(identity),
                np.uint32(identity >> _SHIFT), k0, k1,
            )  # fmt: skip
            length = span_length(np.uint64(drawn), tables, 2)
        for word in range(start, min(start + length, count)):
            if unit_of[word] != _NOT_TAKEN or (word != start and kind[word] != INNER):
                break
            room = budget - (taken << _SHIFT)
            tokens = np.uint64(first[word + 1] - first[word])
            if tokens << _SHIFT > room:
                if np.uint64(budget_word) < room // tokens:
                    unit_of[word] = first[start]
                return True
            unit_of[word] = first[start]
            taken += tokens
    return False
