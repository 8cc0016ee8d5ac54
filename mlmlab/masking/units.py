"""Selecting whole units (words, spans) and exact budgets: one row at a time.

    T positions   W words of the row

A row is a list of words, `first` (position of the first token, `[W + 1]`, the last entry T) and
`kind` (`[W]`): a protected token stands for itself, is never selected and ends the document, so
that units never cross special tokens. What is selected is written to `chosen` (words, ascending)
and `origin` (the position whose random word decides for the word's unit).
"""

import numpy as np

from mlmlab.compiled import compiled
from mlmlab.masking.config import SPAN_LONGEST
from mlmlab.random import philox

PROTECTED, INNER, OPENING = 0, 1, 2
"""Kinds: not to be selected; a word; a word that begins a document, or what is left of it here."""
_SHIFT = np.uint64(32)
_EVERY_WORD = np.uint64(1 << 32)
_NOT_TAKEN = -1


@compiled(inline="always")
def split_into_words(tokens, starts, protected, first, kind):  # type: ignore[no-untyped-def]
    """Lists the words of a row.

    Args:
        tokens: int64 `[T]`.
        starts: uint8 `[T]`: 0 within a word, 1 where a word begins, 2 where a document begins.

    Returns:
        W, and how many tokens are not protected.
    """
    count = shut_tokens = 0
    was_shut = 1
    for position in range(tokens.size):
        shut = int(protected[tokens[position]])
        start = int(starts[position])
        opens = was_shut | int(start == 2)
        first[count] = position
        kind[count] = (1 - shut) * (INNER + opens)
        count += shut | opens | int(start != 0)  # else the next word overwrites it
        shut_tokens += shut
        was_shut = shut
    first[count] = tokens.size
    return count, tokens.size - shut_tokens


@compiled(inline="always")
def select_words(words, count, first, kind, select_below, chosen, origin):  # type: ignore[no-untyped-def]
    """Every word by itself: its first token's random word decides."""
    found = 0
    for word in range(count):
        chosen[found] = word
        origin[found] = first[word]
        is_below = int(np.uint64(words[first[word]]) < select_below)
        found += is_below & int(kind[word] != PROTECTED)
    return found


@compiled(inline="always")
def select_spans(words, count, first, kind, tables, chosen, origin):  # type: ignore[no-untyped-def]
    """Spans and gaps in turn (`MaskingConfig.span_tables`)."""
    found = left = begin = 0
    for word in range(count):
        if kind[word] != INNER:
            left = 0
        if left == 0 and kind[word] != PROTECTED:
            table = tables[kind[word] - INNER]
            drawn = np.uint64(words[first[word]])
            if drawn < table[SPAN_LONGEST - 1]:
                left = span_length(drawn, table)
                begin = first[word]
        if left:
            chosen[found] = word
            origin[found] = begin
            found += 1
            left -= 1
    return found


@compiled(inline="always")
def span_length(drawn, table):  # type: ignore[no-untyped-def]
    """How many words: one, and one more for each entry but the last that `drawn` reaches."""
    length = 1
    for entry in range(SPAN_LONGEST - 1):
        length += int(drawn >= table[entry])
    return length


@compiled(inline="always")
def select_budget(  # type: ignore[no-untyped-def]
    words, count, first, kind, eligible, select_below, tables, is_span,
    budget_word, replace_word, identity, k0, k1, order, unit_of, chosen, origin,
):  # fmt: skip
    """Units in the random order of their words while they fit into the share of `eligible` tokens.

    The unit that would cross the budget comes in with the chance that makes the mean exact.
    """
    share = np.float64(select_below) / np.float64(_EVERY_WORD)
    margin = 6.0 * np.sqrt(share * (1.0 - share) / max(1, count))
    likely = np.uint64(min(1.0, share + margin) * np.float64(_EVERY_WORD))
    for below in (likely, _EVERY_WORD):  # the low words are enough, but once in a while
        for word in range(count):
            unit_of[word] = _NOT_TAKEN
        candidates = 0
        for word in range(count):
            drawn = np.uint64(words[first[word]])
            order[candidates] = drawn << _SHIFT | np.uint64(word)
            candidates += int(drawn < below) & int(kind[word] != PROTECTED)
        order[:candidates].sort()
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


@compiled()
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
            length = span_length(np.uint64(drawn), tables[2])
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
