"""Masking on the CPU: ids in, `MaskedBatch` out.

    B sequences   T positions   M predicted tokens

This module checks, allocates and hands over; the loops are compiled (`mlmlab/kernels.py`).
"""

from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab import kernels
from mlmlab.masking.config import UNITS, Budget, Corrupt, MaskingPolicy
from mlmlab.masking.vocabulary import VocabularyInfo
from mlmlab.random import EPOCHS, seed_word

SPAN_SUCCESS = 0.2
SPAN_LONGEST = 10
"""Span lengths in words: geometric with this chance of ending, cut at this length (Joshi et al.
2020, "SpanBERT", section 3.1)."""
Array = TypeVar("Array", NDArray[Any], torch.Tensor)


class MaskedBatch(NamedTuple, Generic[Array]):
    """A batch with some of its tokens hidden; all arrays int64."""

    input_ids: Array
    """`[B, T]`, corrupted."""
    positions: Array
    """`[M]`, flat indices into B*T of the predicted tokens, ascending."""
    labels: Array
    """`[M]`, the original ids at those positions."""
    row_offsets: Array
    """`[B + 1]`, where each row's positions begin; the last is M."""


def mask_batch(
    input_ids: Array,
    *,
    example_ids: Array,
    epoch: int,
    seed: int,
    config: MaskingPolicy,
    vocabulary: VocabularyInfo,
    word_starts: Array | None = None,
    selected: Array | None = None,
    units: Array | None = None,
) -> MaskedBatch[Array]:
    """Selects tokens to predict and hides most of them.

    The mask of a token is a function of (seed, epoch, its row's example id, its position), of the
    words of its row for the units `word` and `span` and of the row's length of text for an exact
    budget; and of nothing else: not of the other rows, their number or order, or the integer type.

    Args:
        input_ids: `[B, T]`, any integer type, every id in `range(vocabulary.size)`.
        example_ids: `[B]`, 64-bit names of the rows.
        epoch: 0 ... 2**24 - 1; for evaluation masks, the draw.
        seed: any integer, modulo 2**64.
        word_starts: bool or integers `[B, T]`, for the units `word` and `span` only: 1 where a word
            begins, 2 where a document does. A word also begins after a special token, and where
            the row does. None for unit `token`.
        selected: bool `[B, T]`, the tokens to predict, in place of those that the policy selects:
            its rate, unit and budget do not count then. Protected ids are left out.
        units: integers `[B, T]`, with `selected` and `corrupt=unit` only: the selected tokens of a
            row that have equal numbers are corrupted at once.

    Returns:
        Of the kind that went in: NumPy arrays, or torch tensors on the CPU.

    Raises:
        ValueError: a wrong shape or type, a policy out of range, or an id outside the vocabulary.
    """
    if isinstance(input_ids, torch.Tensor) and input_ids.device.type != "cpu":
        raise ValueError(f"input_ids: a tensor on the CPU, not on {input_ids.device}")
    original, examples = np.asarray(input_ids), np.asarray(example_ids)
    starts = None if word_starts is None else np.asarray(word_starts)
    chosen = None if selected is None else np.asarray(selected)
    unit_numbers = None if units is None else np.asarray(units)
    _check(original, examples, epoch, config, starts, chosen, unit_numbers)
    rows, length = original.shape
    ids = np.empty((rows, length), np.int64)
    # Space for every token: only the pages that are written take up memory.
    positions, labels = np.empty((2, rows * length), np.int64)
    row_offsets = np.empty(rows + 1, np.int64)
    thresholds = config.thresholds if chosen is None else config.corruption_thresholds
    arguments = (
        _plain(original), _plain(examples.astype(np.uint64, copy=False)), epoch,
        seed_word(seed), np.array(thresholds, np.uint64), vocabulary.mask_id,
        vocabulary.protected, vocabulary.replacement_ids, ids, positions, labels, row_offsets,
    )  # fmt: skip
    if chosen is not None:
        deciding = np.tile(np.arange(length), (rows, 1))  # each token by itself
        if unit_numbers is not None:
            for row, numbers in enumerate(unit_numbers):  # the first position of its unit
                _, first, unit = np.unique(numbers, return_index=True, return_inverse=True)
                deciding[row] = first[unit]
        count = kernels.mask_selected(*arguments, np.ascontiguousarray(chosen), deciding)
    elif config.is_independent:
        count = kernels.mask_tokens(*arguments)
    else:
        if starts is None:
            starts = np.ones((rows, length), np.uint8)
        count = kernels.mask_units(
            *arguments, _plain(starts.astype(np.uint8, copy=False)), span_tables(config.rate),
            config.unit == "span", config.budget is Budget.EXACT, config.corrupt is Corrupt.UNIT,
        )  # fmt: skip
    if count < 0:
        raise ValueError(
            f"input_ids: an id outside the vocabulary of {vocabulary.size} "
            f"(found {original.min()} to {original.max()})"
        )
    masked = (ids, positions[:count], labels[:count], row_offsets)
    if isinstance(input_ids, torch.Tensor):
        return MaskedBatch(*map(torch.from_numpy, masked))
    return MaskedBatch(*masked)


@lru_cache(maxsize=16)
def span_tables(rate: float) -> NDArray[np.uint64]:
    """uint64 `[3, 10]`: a word that decides a span, compared with a row, says its length (1 and
    one more for each entry it reaches; none from the last entry on).

    Row 0: a span may begin. Spans and the gaps between them alternate, each span as long as
    `SPAN_SUCCESS` says, each gap geometric, with the one chance that makes the selected share
    `rate`. Row 1: a document begins, and may do so within a span: what is left of it. Row 2:
    a span does begin (exact budgets).
    """
    lengths = SPAN_SUCCESS * (1.0 - SPAN_SUCCESS) ** np.arange(SPAN_LONGEST)
    lengths /= lengths.sum()
    survival = lengths[::-1].cumsum()[::-1]  # the chance to be at least so long
    mean = survival.sum()
    begins = rate / (rate + mean * (1.0 - rate))
    tables = (
        begins * lengths.cumsum(),
        rate * (survival / mean).cumsum(),
        lengths.cumsum(),
    )
    return np.round(np.array(tables) * 2.0**32).astype(np.uint64)


def _plain(array: NDArray[np.integer]) -> NDArray[np.integer]:
    """As compiled code reads it: contiguous, aligned, in the machine's byte order."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _check(
    input_ids: NDArray[np.integer],
    example_ids: NDArray[np.integer],
    epoch: int,
    config: MaskingPolicy,
    word_starts: NDArray[np.integer] | None,
    selected: NDArray[np.bool_] | None,
    units: NDArray[np.integer] | None,
) -> None:
    if input_ids.ndim != 2 or input_ids.dtype.kind not in "iu":
        raise ValueError(f"input_ids: integers [B, T], not {input_ids.dtype} {input_ids.shape}")
    if example_ids.shape != (len(input_ids),) or example_ids.dtype.kind not in "iu":
        raise ValueError(
            f"example_ids: integers [{len(input_ids)}], not {example_ids.dtype} {example_ids.shape}"
        )
    if not 0 <= epoch < EPOCHS:
        raise ValueError(f"epoch: 0 to {EPOCHS - 1}, not {epoch}")
    if config.problem_text:
        raise ValueError(config.problem_text)
    if selected is not None:
        if selected.shape != input_ids.shape or selected.dtype != np.bool_:
            raise ValueError(
                f"selected: bool {list(input_ids.shape)}, not {selected.dtype} {selected.shape}"
            )
        if (units is not None) != (config.corrupt is Corrupt.UNIT):
            raise ValueError("units: for corrupt=unit, and for nothing else")
        if units is not None and (units.shape != input_ids.shape or units.dtype.kind not in "iu"):
            raise ValueError(
                f"units: integers {list(input_ids.shape)}, not {units.dtype} {units.shape}"
            )
        return
    if units is not None:
        raise ValueError("units: of tokens that are selected elsewhere, with `selected`")
    if config.unit not in UNITS:
        raise ValueError(f"selected: unit `{config.unit}` needs the tokens that it has selected")
    if (word_starts is not None) != (config.unit != "token"):
        needs = "needs them" if word_starts is None else "selects single tokens and uses none"
        raise ValueError(f"word_starts: unit `{config.unit}` {needs}")
    if word_starts is not None and (
        word_starts.shape != input_ids.shape or word_starts.dtype.kind not in "biu"
    ):
        raise ValueError(
            f"word_starts: bool or integers {list(input_ids.shape)}, not {word_starts.dtype} "
            f"{word_starts.shape}"
        )
