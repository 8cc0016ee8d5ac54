"""Rows and documents in groups of nearly one length, so that little padding is computed.

B rows   T positions   S sequences   N tokens of all groups   M predicted tokens
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmlab.masking import MaskedBatch

_SHORTEST_SHARE, _SLACK = 0.875, 8
"""A sequence that is shorter than this share of a group's longest, and shorter by more than these
tokens, begins another group."""
_LENGTH_MULTIPLE = 8
Groups = tuple[tuple[int, int], ...]
"""Sequences and length of each group."""


def padded_length(longest: int, most: int) -> int:
    """What sequences are padded to: their longest one's length, rounded up, at most `most`.

    Hardware likes multiples of 8, and a library that compiles products for each shape has fewer.
    """
    return min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, most)


def sequences_of(
    shape: tuple[int, int], mask: NDArray[np.bool_] | None, documents: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What attention sees as one: rows without their padding, or documents within rows.

    Args:
        shape: B, T.
        mask: bool `[B, T]`, True for a real token, on the left of a row.
        documents: int64 `[B, T]`, ascending in a row.

    Returns:
        int64 `[S]` twice: the first token of each among all B * T, and its number of tokens.
    """
    rows, width = shape
    if documents is None:
        starts = np.arange(rows) * width
        return starts, np.full(rows, width) if mask is None else mask.sum(1)
    begins = np.ones(shape, bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=rows * width)


def bounds_of_groups(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First sequence and last (exclusive) of each group, of lengths `[S]` in descending order."""
    bounds, first = [], 0
    while first < len(lengths):
        shortest = min(lengths[first] * _SHORTEST_SHARE, lengths[first] - _SLACK)
        end = int(np.searchsorted(-lengths, -shortest, side="right"))
        bounds.append((first, end))
        first = end
    return bounds


def in_groups(
    masked: MaskedBatch[NDArray[Any]],
    mask: NDArray[np.bool_] | None,
    documents: NDArray[np.int64] | None,
) -> tuple[MaskedBatch[NDArray[Any]], NDArray[np.bool_], Groups]:
    """The same tokens, sequences of nearly one length next to each other.

    Args:
        masked: ids `[B, T]`; positions of real tokens.
        mask, documents: as `sequences_of`.

    Returns:
        Ids `[N]`, positions in them, labels in the same order as before; what of them is real,
        bool `[N]`; and the groups.
    """
    ids, positions, labels, row_offsets = masked
    starts, lengths = sequences_of(ids.shape, mask, documents)
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    sources, real, groups = [], [], []
    for first, end in bounds_of_groups(lengths):
        length = padded_length(int(lengths[first]), ids.shape[1])
        place = np.arange(length)
        is_real = place < lengths[first:end, None]  # [sequences, length]
        # Padding is the sequence's first token once more, which nobody sees.
        sources.append((starts[first:end, None] + np.where(is_real, place, 0)).ravel())
        real.append(is_real.ravel())
        groups.append((end - first, length))
    source, is_real = np.concatenate(sources), np.concatenate(real)  # [N]
    moved = np.zeros(ids.size, np.int64)
    moved[source[is_real]] = np.flatnonzero(is_real)
    grouped = MaskedBatch(ids.ravel()[source], moved[positions], labels, row_offsets)
    return grouped, is_real, tuple(groups)
