"""The masking kernel on the CPU: ids in, `MaskedBatch` out, one pass over each row.

    B sequences   T positions   M predicted tokens

For each row: (1) one Philox word a token, several blocks side by side in vector registers; (2) the
selected positions, appended without a branch to a short list: those whose word is below a
threshold, or those of the selected units (`units.py`); (3) the row copied to int64, and on the few
selected places the labels noted and the mask written, protected ids left out. At the end of the
batch, the random replacements. The slow readable twin is `tests/reference/masking.py`.
"""

from typing import Generic, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.compiled import compiled
from mlmlab.masking.config import Budget, Corrupt, MaskingConfig, Unit, VocabularyInfo
from mlmlab.masking.units import select_budget, select_spans, select_words, split_into_words
from mlmlab.random import EPOCHS, Domain, fill_words, philox

Array = TypeVar("Array", NDArray[np.int64], torch.Tensor)


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


_INT64 = np.dtype(np.int64)
_ID_OUTSIDE_VOCABULARY = -1
_NO_ROOM = -2
_SHIFT = np.uint64(32)
_SELECT, _REPLACE = int(Domain.SELECT) << 24, int(Domain.REPLACE) << 24
_CORRUPT, _BUDGET = int(Domain.CORRUPT) << 24, int(Domain.BUDGET) << 24


@compiled(inline="always")
def _copy_row(tokens, out, vocabulary_size):  # type: ignore[no-untyped-def]
    """Copies to int64; says whether all ids are of the vocabulary."""
    largest = np.uint64(0)
    for position in range(tokens.size):
        token = tokens[position]
        out[position] = token
        largest = max(largest, np.uint64(token))  # a negative id becomes a huge one
    return largest < np.uint64(vocabulary_size)


@compiled(inline="always")
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
            replaced[replacements, 0] = base + position
            replaced[replacements, 1] = position
            replaced_identity[replacements] = identity
            replacements += 1
    return count, replacements


@compiled(inline="always")
def _replace(  # type: ignore[no-untyped-def]
    ids, replaced, replaced_identity, replacements, replacement_ids, domain_word, k0, k1
):
    """Draws the random ids, several side by side."""
    high = np.empty(replacements, np.uint32)
    low = np.empty(replacements, np.uint32)
    for n in range(replacements):
        identity = replaced_identity[n]
        high[n], low[n], _, _ = philox(
            np.uint32(replaced[n, 1]), domain_word, np.uint32(identity),
            np.uint32(identity >> _SHIFT), k0, k1,
        )  # fmt: skip
    choices = np.uint64(replacement_ids.size)
    for n in range(replacements):
        # floor(choices * 64-bit fraction): no vocabulary is large enough to see its bias
        carry = (np.uint64(low[n]) * choices) >> _SHIFT
        drawn = (np.uint64(high[n]) * choices + carry) >> _SHIFT
        ids[replaced[n, 0]] = replacement_ids[drawn]


@compiled(nogil=True)
def _mask_tokens(  # type: ignore[no-untyped-def]
    input_ids, example_ids, out, capacity, thresholds, mask_id, protected, replacement_ids,
    epoch, seed_low, seed_high,
):  # fmt: skip
    """Independent tokens. `out` holds ids, positions, labels and row offsets one after another."""
    rows, length = input_ids.shape
    size = rows * length
    ids, positions = out[:size], out[size : size + capacity]
    labels = out[size + capacity : size + 2 * capacity]
    row_offsets = out[size + 2 * capacity :]
    k0, k1 = np.uint32(seed_low), np.uint32(seed_high)
    select_below = np.uint64(thresholds[2])
    words = np.empty((length + 3) // 4 * 4, np.uint32)
    candidates = np.empty(length + 1, np.int32)
    replaced = np.empty((capacity, 2), np.int64)
    replaced_identity = np.empty(capacity, np.uint64)
    count = replacements = 0
    row_offsets[0] = 0
    for row in range(rows):
        identity = np.uint64(example_ids[row])
        fill_words(words, np.uint32(epoch | _SELECT), identity, k0, k1)
        found = 0
        for position in range(length):
            candidates[found] = position
            found += int(np.uint64(words[position]) < select_below)
        if not _copy_row(input_ids[row], ids[row * length : (row + 1) * length], protected.size):
            return _ID_OUTSIDE_VOCABULARY
        if count + found >= capacity:
            return _NO_ROOM
        count, replacements = _hide(
            ids, row * length, identity, candidates, candidates, words, found, thresholds, mask_id,
            protected, positions, labels, count, replaced, replaced_identity, replacements,
        )  # fmt: skip
        row_offsets[row + 1] = count
    _replace(
        ids, replaced, replaced_identity, replacements, replacement_ids,
        np.uint32(epoch | _REPLACE), k0, k1,
    )  # fmt: skip
    return count


@compiled(nogil=True)
def _mask_units(  # type: ignore[no-untyped-def]
    input_ids, example_ids, out, capacity, thresholds, mask_id, protected, replacement_ids,
    epoch, seed_low, seed_high, word_starts, is_span, is_exact, per_unit, tables,
):  # fmt: skip
    """Words, spans and exact budgets. `out` as for `_mask_tokens`."""
    rows, length = input_ids.shape
    size = rows * length
    ids, positions = out[:size], out[size : size + capacity]
    labels = out[size + capacity : size + 2 * capacity]
    row_offsets = out[size + 2 * capacity :]
    k0, k1 = np.uint32(seed_low), np.uint32(seed_high)
    select_below = np.uint64(thresholds[2])
    words = np.empty((length + 3) // 4 * 4, np.uint32)
    corrupt_words = np.empty((length + 3) // 4 * 4, np.uint32)
    budget_words = np.empty(4, np.uint32)
    first = np.empty(length + 2, np.int32)
    kind = np.empty(length + 1, np.int32)
    chosen = np.empty(length + 1, np.int32)
    origin = np.empty(length + 1, np.int32)
    unit_of = np.empty(length + 1, np.int32)
    order = np.empty(length + 1, np.uint64)
    candidates = np.empty(length + 1, np.int32)
    deciding = np.empty(length + 1, np.int32)
    replaced = np.empty((capacity, 2), np.int64)
    replaced_identity = np.empty(capacity, np.uint64)
    count = replacements = 0
    row_offsets[0] = 0
    for row in range(rows):
        identity = np.uint64(example_ids[row])
        fill_words(words, np.uint32(epoch | _SELECT), identity, k0, k1)
        fill_words(corrupt_words, np.uint32(epoch | _CORRUPT), identity, k0, k1)
        row_ids = ids[row * length : (row + 1) * length]
        if not _copy_row(input_ids[row], row_ids, protected.size):
            return _ID_OUTSIDE_VOCABULARY
        units, eligible = split_into_words(row_ids, word_starts[row], protected, first, kind)
        if is_exact:
            fill_words(budget_words, np.uint32(epoch | _BUDGET), identity, k0, k1)
            selected = select_budget(
                words, units, first, kind, eligible, select_below, tables, is_span,
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
            return _NO_ROOM
        count, replacements = _hide(
            ids, row * length, identity, candidates, deciding, corrupt_words, found, thresholds,
            mask_id, protected, positions, labels, count, replaced, replaced_identity, replacements,
        )  # fmt: skip
        row_offsets[row + 1] = count
    _replace(
        ids, replaced, replaced_identity, replacements, replacement_ids,
        np.uint32(epoch | _REPLACE), k0, k1,
    )  # fmt: skip
    return count


def _mask_array(
    input_ids: NDArray[np.integer],
    example_ids: NDArray[np.integer],
    epoch: int,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
    word_starts: NDArray[np.integer] | None,
) -> MaskedBatch[NDArray[np.int64]]:
    _check(input_ids, example_ids, epoch, config, word_starts)
    rows, length = input_ids.shape
    size = rows * length
    if example_ids.dtype != _INT64:
        example_ids = example_ids.astype(np.uint64).view(np.int64)
    capacity = _capacity(size, length, config)
    while True:
        out = np.empty(size + 2 * capacity + rows + 1, np.int64)
        arguments = (
            input_ids, example_ids, out, capacity, config.threshold_array, vocabulary.mask_id,
            vocabulary.protected, vocabulary.replacement_ids, epoch, seed & 0xFFFFFFFF,
            seed >> 32 & 0xFFFFFFFF,
        )  # fmt: skip
        if config.is_independent:
            count = _mask_tokens(*arguments)
        else:
            starts = np.ones((rows, length), np.uint8) if word_starts is None else word_starts
            count = _mask_units(
                *arguments,
                starts.astype(np.uint8, copy=False),
                config.unit is Unit.SPAN,
                config.budget is Budget.EXACT,
                config.corrupt is Corrupt.UNIT,
                config.span_tables,
            )
        if count >= 0:
            break
        if count == _ID_OUTSIDE_VOCABULARY:
            raise ValueError(
                f"input_ids: an id outside the vocabulary of {vocabulary.size} "
                f"(found {input_ids.min()} to {input_ids.max()})"
            )
        capacity = size + 1
    labels = size + capacity
    return MaskedBatch(
        out[:size].reshape(rows, length),
        out[size : size + count],
        out[labels : labels + count],
        out[labels + capacity :],
    )


def _capacity(size: int, length: int, config: MaskingConfig) -> int:
    """Room for the predicted tokens, far more than eight standard deviations above their mean: a
    batch that needs still more is masked again with room for all.

    Only what is touched costs memory, and a fresh page costs more than the tokens on it.
    """
    if not config.is_independent:
        return size + 1
    return min(size, int(1.25 * config.rate * size) + length + 256) + 1


def _check(
    input_ids: NDArray[np.integer],
    example_ids: NDArray[np.integer],
    epoch: int,
    config: MaskingConfig,
    word_starts: NDArray[np.integer] | None,
) -> None:
    if input_ids.ndim != 2 or input_ids.dtype.kind not in "iu":
        raise ValueError(f"input_ids: integers [B, T], not {input_ids.dtype} {input_ids.shape}")
    if example_ids.shape != input_ids.shape[:1] or example_ids.dtype.kind not in "iu":
        raise ValueError(
            f"example_ids: integers [{len(input_ids)}], not {example_ids.dtype} {example_ids.shape}"
        )
    if not 0 <= epoch < EPOCHS:
        raise ValueError(f"epoch: 0 to {EPOCHS - 1}, not {epoch}")
    if config.problem_text:
        raise ValueError(config.problem_text)
    if (word_starts is not None) != (config.unit is not Unit.TOKEN):
        needs = "needs them" if word_starts is None else "selects single tokens and uses none"
        raise ValueError(f"word_starts: unit `{config.unit.value}` {needs}")
    if word_starts is not None and (
        word_starts.shape != input_ids.shape or word_starts.dtype.kind not in "biu"
    ):
        raise ValueError(
            f"word_starts: bool or integers {list(input_ids.shape)}, not {word_starts.dtype} "
            f"{word_starts.shape}"
        )


@overload
def mask_batch(
    input_ids: NDArray[np.integer],
    *,
    example_ids: NDArray[np.integer],
    epoch: int,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
    word_starts: NDArray[np.integer] | NDArray[np.bool_] | None = None,
) -> MaskedBatch[NDArray[np.int64]]: ...


@overload
def mask_batch(
    input_ids: torch.Tensor,
    *,
    example_ids: torch.Tensor,
    epoch: int,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
    word_starts: torch.Tensor | None = None,
) -> MaskedBatch[torch.Tensor]: ...


def mask_batch(
    input_ids: NDArray[np.integer] | torch.Tensor,
    *,
    example_ids: NDArray[np.integer] | torch.Tensor,
    epoch: int,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
    word_starts: NDArray[np.integer] | NDArray[np.bool_] | torch.Tensor | None = None,
) -> MaskedBatch[NDArray[np.int64]] | MaskedBatch[torch.Tensor]:
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
            begins, 2 where a document does. A word also begins behind a special token, and where
            the row does. None for unit `token`.

    Returns:
        Of the kind that went in: NumPy arrays, or torch tensors on the CPU. The four share one
        block of memory.

    Raises:
        ValueError: a wrong shape or type, a policy out of range, or an id outside the vocabulary.
    """
    if isinstance(input_ids, torch.Tensor):
        if input_ids.device.type != "cpu":
            raise ValueError(
                f"input_ids: a tensor on {input_ids.device}; mlmlab.masking.kernel_cuda masks there"
            )
        batch = _mask_array(
            input_ids.numpy(), np.asarray(example_ids), epoch, seed, config, vocabulary,
            None if word_starts is None else np.asarray(word_starts),
        )  # fmt: skip
        return MaskedBatch(*map(torch.from_numpy, batch))
    return _mask_array(
        np.asarray(input_ids), np.asarray(example_ids), epoch, seed, config, vocabulary,
        None if word_starts is None else np.asarray(word_starts),
    )  # fmt: skip
