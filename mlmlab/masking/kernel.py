"""The masking kernel on the CPU: ids in, `MaskedBatch` out, in one pass over each row.

    B sequences   T positions   M predicted tokens

For each row: (1) one Philox word a token, several blocks side by side in vector registers; (2) the
positions whose word is below the selection threshold, appended without a branch; (3) protected
ids dropped from that short list; (4) the row copied to int64, and the few selected places
overwritten. The slow readable twin is `tests/reference/masking.py`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar, overload

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from mlmlab.masking.config import MaskingConfig, VocabularyInfo
from mlmlab.random import Domain, epoch_and_domain, fill_words, key_words, philox

Array = TypeVar("Array", NDArray[np.int64], torch.Tensor)


@dataclass(frozen=True)
class MaskedBatch(Generic[Array]):
    """A batch with some of its tokens hidden; all arrays int64."""

    input_ids: Array
    """`[B, T]`, corrupted."""
    positions: Array
    """`[M]`, flat indices into B*T of the predicted tokens, ascending."""
    labels: Array
    """`[M]`, the original ids at those positions."""
    row_offsets: Array
    """`[B + 1]`, where each row's positions begin; the last is M."""


_ID_OUTSIDE_VOCABULARY = -1


@njit(cache=True, nogil=True)
def _mask_rows(  # type: ignore[no-untyped-def]
    input_ids, example_ids, select_word, replace_word, k0, k1, thresholds, mask_id,
    protected, replacement_ids, output_ids, positions, labels, row_offsets,
):  # fmt: skip
    rows, length = input_ids.shape
    mask_below, replace_below, select_below = thresholds
    choices = np.uint64(replacement_ids.size)
    vocabulary_size = np.uint64(protected.size)
    words = np.empty((length + 3) // 4 * 4, np.uint32)
    candidates = np.empty(length + 1, np.int32)
    count = 0
    row_offsets[0] = 0
    for row in range(rows):
        identity = example_ids[row]
        fill_words(words, select_word, identity, k0, k1)

        found = 0
        for position in range(length):
            candidates[found] = position
            found += int(np.uint64(words[position]) < select_below)

        largest = np.uint64(0)
        for position in range(length):
            token = input_ids[row, position]
            output_ids[row, position] = token
            largest = max(largest, np.uint64(token))  # a negative id becomes a huge one
        if largest >= vocabulary_size:
            return _ID_OUTSIDE_VOCABULARY

        for candidate in range(found):
            position = candidates[candidate]
            token = output_ids[row, position]
            if protected[token]:
                continue
            positions[count] = row * length + position
            labels[count] = token
            count += 1
            word = np.uint64(words[position])
            if word < mask_below:
                output_ids[row, position] = mask_id
            elif word < replace_below:
                high, low, _, _ = philox(
                    np.uint32(position),
                    replace_word,
                    np.uint32(identity),
                    np.uint32(identity >> np.uint64(32)),
                    k0,
                    k1,
                )
                # floor(choices * 64-bit fraction): no vocabulary is large enough to see its bias
                carry = (np.uint64(low) * choices) >> np.uint64(32)
                drawn = (np.uint64(high) * choices + carry) >> np.uint64(32)
                output_ids[row, position] = replacement_ids[drawn]
        row_offsets[row + 1] = count
    return count


@lru_cache(maxsize=16)
def _thresholds(config: MaskingConfig) -> tuple[np.uint64, np.uint64, np.uint64]:
    problems = [str(problem) for problem in config.problems()]
    if problems:
        raise ValueError("\n".join(problems))
    return config.thresholds()


@lru_cache(maxsize=16)
def _tables(vocabulary: VocabularyInfo) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    return vocabulary.protected(), vocabulary.replacement_ids()


def _mask_array(
    input_ids: NDArray[np.integer],
    example_ids: NDArray[np.integer],
    epoch: int,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
) -> MaskedBatch[NDArray[np.int64]]:
    if input_ids.ndim != 2 or input_ids.dtype.kind not in "iu":
        raise ValueError(f"input_ids: integers [B, T], not {input_ids.dtype} {input_ids.shape}")
    rows, length = input_ids.shape
    if example_ids.shape != (rows,) or example_ids.dtype.kind not in "iu":
        raise ValueError(
            f"example_ids: integers [{rows}], not {example_ids.dtype} {example_ids.shape}"
        )
    protected, replacement_ids = _tables(vocabulary)
    k0, k1 = key_words(seed)
    output_ids = np.empty((rows, length), np.int64)
    positions = np.empty(rows * length, np.int64)
    labels = np.empty(rows * length, np.int64)
    row_offsets = np.empty(rows + 1, np.int64)
    count = _mask_rows(
        input_ids, example_ids.astype(np.uint64),
        epoch_and_domain(epoch, Domain.SELECT), epoch_and_domain(epoch, Domain.REPLACE), k0, k1,
        _thresholds(config), vocabulary.mask_id, protected, replacement_ids,
        output_ids, positions, labels, row_offsets,
    )  # fmt: skip
    if count == _ID_OUTSIDE_VOCABULARY:
        raise ValueError(
            f"input_ids: an id outside the vocabulary of {vocabulary.size} "
            f"(found {input_ids.min()} to {input_ids.max()})"
        )
    return MaskedBatch(output_ids, positions[:count], labels[:count], row_offsets)


@overload
def mask_batch(
    input_ids: NDArray[np.integer],
    *,
    example_ids: NDArray[np.integer],
    epoch: int,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
    word_starts: None = None,
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
    word_starts: None = None,
) -> MaskedBatch[torch.Tensor]: ...


def mask_batch(
    input_ids: NDArray[np.integer] | torch.Tensor,
    *,
    example_ids: NDArray[np.integer] | torch.Tensor,
    epoch: int,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
    word_starts: None = None,
) -> MaskedBatch[NDArray[np.int64]] | MaskedBatch[torch.Tensor]:
    """Selects tokens to predict and hides most of them.

    The mask of a token is a function of (seed, epoch, its row's example id, its position) and of
    nothing else: not of the other rows, their number or order, or the integer type.

    Args:
        input_ids: `[B, T]`, any integer type, every id in `range(vocabulary.size)`.
        example_ids: `[B]`, 64-bit names of the rows.
        epoch: 0 ... 2**24 - 1; for evaluation masks, the draw.
        seed: any integer, modulo 2**64.
        word_starts: not used by unit `token`.

    Returns:
        Of the kind that went in: NumPy arrays, or torch tensors on the CPU.

    Raises:
        ValueError: a wrong shape or type, a policy out of range, or an id outside the vocabulary.
    """
    if word_starts is not None:
        raise ValueError("word_starts: unit `token` selects single tokens and uses none")
    if not isinstance(input_ids, torch.Tensor):
        return _mask_array(
            np.asarray(input_ids), np.asarray(example_ids), epoch, seed, config, vocabulary
        )
    batch = _mask_array(input_ids.numpy(), np.asarray(example_ids), epoch, seed, config, vocabulary)
    return MaskedBatch(
        torch.from_numpy(batch.input_ids),
        torch.from_numpy(batch.positions),
        torch.from_numpy(batch.labels),
        torch.from_numpy(batch.row_offsets),
    )
