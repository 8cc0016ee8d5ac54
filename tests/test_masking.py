"""Claims about `mlmlab/masking`. All seeds are fixed; a p-value must exceed 1e-4."""

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference import chi_square
from reference import masking as twin
from refusals import check

from mlmlab import schema
from mlmlab.errors import Code, Problem
from mlmlab.masking import UNITS, MaskedBatch, MaskingConfig, VocabularyInfo, mask_batch

Arrays = MaskedBatch[NDArray[Any]]
Row = tuple[list[int], list[int], list[int]]

SMALL = VocabularyInfo(size=50, mask_id=4, protected_ids=(0, 1, 2, 3, 4, 49))
LARGE = VocabularyInfo(size=50_265, mask_id=50_264, protected_ids=(0, 1, 2, 3, 50_264))
REPLACE_ALL = MaskingConfig(rate=1.0, mask_fraction=0.0, random_fraction=1.0)
LOWEST_P = 1e-4


def random_ids(rows: int, length: int, vocabulary: VocabularyInfo = SMALL) -> NDArray[np.int64]:
    """Any ids of the vocabulary, the protected ones among them."""
    return np.random.default_rng(rows * length).integers(0, vocabulary.size, (rows, length))


def plain_ids(rows: int, length: int, vocabulary: VocabularyInfo = SMALL) -> NDArray[np.int64]:
    """Only ids that may be selected."""
    choices = vocabulary.replacement_ids
    return choices[np.random.default_rng(rows * length).integers(0, len(choices), (rows, length))]


def mask(
    input_ids: NDArray[Any],
    example_ids: NDArray[Any] | None = None,
    *,
    epoch: int = 0,
    seed: int = 0,
    config: MaskingConfig = MaskingConfig(),  # noqa: B008 (frozen)
    vocabulary: VocabularyInfo = SMALL,
    word_starts: NDArray[Any] | None = None,
) -> Arrays:
    names = np.arange(len(input_ids)) if example_ids is None else example_ids
    return mask_batch(
        input_ids, example_ids=names, epoch=epoch, seed=seed, config=config, vocabulary=vocabulary,
        word_starts=word_starts,
    )  # fmt: skip


def rows_of(batch: Arrays) -> Iterator[Row]:
    """Each row on its own: corrupted ids, positions within the row, labels."""
    length = batch.input_ids.shape[1]
    for row, (start, end) in enumerate(itertools.pairwise(batch.row_offsets)):
        positions = batch.positions[start:end] - row * length
        yield batch.input_ids[row].tolist(), positions.tolist(), batch.labels[start:end].tolist()


def selected(batch: Arrays) -> NDArray[np.bool_]:
    """bool `[B, T]`, True where a token is predicted."""
    table = np.zeros(batch.input_ids.size, np.bool_)
    table[batch.positions] = True
    return table.reshape(batch.input_ids.shape)


def assert_equals_twin(
    input_ids: NDArray[Any],
    example_ids: NDArray[Any],
    epoch: int,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
    word_starts: NDArray[Any] | None = None,
) -> None:
    batch = mask(
        input_ids, example_ids, epoch=epoch, seed=seed, config=config, vocabulary=vocabulary,
        word_starts=word_starts,
    )  # fmt: skip
    slow = twin.mask_batch(
        input_ids.tolist(),
        example_ids=example_ids.tolist(),
        epoch=epoch,
        seed=seed,
        policy=twin.Policy(
            rate=config.rate,
            mask_fraction=config.mask_fraction,
            random_fraction=config.random_fraction,
            unit=config.unit,
            corrupt=config.corrupt.value,
            budget=config.budget.value,
        ),
        vocabulary=twin.Vocabulary(vocabulary.size, vocabulary.mask_id, vocabulary.protected_ids),
        word_starts=None if word_starts is None else word_starts.astype(int).tolist(),
    )
    assert batch.input_ids.tolist() == slow.input_ids
    assert batch.positions.tolist() == slow.positions
    assert batch.labels.tolist() == slow.labels
    assert batch.row_offsets.tolist() == slow.row_offsets
    for array in (batch.input_ids, batch.positions, batch.labels, batch.row_offsets):
        assert array.dtype == np.int64


# The same bits as the twin


@pytest.mark.parametrize(
    ("rows", "length"), [(1, 1), (1, 3), (1, 4), (7, 1), (2, 5), (3, 8), (1, 130), (9, 33), (0, 5)]
)
def test_masks_equal_the_twin_for_any_shape(rows: int, length: int) -> None:
    config = MaskingConfig(rate=0.5, mask_fraction=0.4, random_fraction=0.4)
    for epoch in range(3):
        ids = random_ids(rows, length)
        assert_equals_twin(ids, np.arange(rows) + 100, epoch, 7, config, SMALL)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.15, 0.5, 1.0])
@pytest.mark.parametrize(
    ("mask_fraction", "random_fraction"),
    [(0.8, 0.1), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.3, 0.0), (0.0, 0.3)],
)
def test_masks_equal_the_twin_for_any_policy(
    rate: float, mask_fraction: float, random_fraction: float
) -> None:
    config = MaskingConfig(rate=rate, mask_fraction=mask_fraction, random_fraction=random_fraction)
    assert_equals_twin(random_ids(5, 37), np.arange(5), 3, 11, config, SMALL)


@pytest.mark.parametrize("seed", [0, -1, 2**32, 2**63 + 1, 2**64 - 1, -(2**63)])
def test_masks_equal_the_twin_for_64_bit_seeds_and_ids(seed: int) -> None:
    example_ids = np.array([0, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63, 2**64 - 1], np.uint64)
    config = MaskingConfig(rate=0.6, mask_fraction=0.2, random_fraction=0.7)
    for epoch in (0, 1, 65_536, 2**24 - 1):
        assert_equals_twin(random_ids(7, 21, LARGE), example_ids, epoch, seed, config, LARGE)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32, np.int64])
def test_masks_equal_the_twin_for_any_integer_type(dtype: type[np.integer]) -> None:
    ids = random_ids(4, 70, LARGE).astype(dtype)
    assert_equals_twin(ids, np.arange(4), 0, 5, MaskingConfig(rate=0.4), LARGE)


def test_masks_equal_the_twin_when_a_single_id_can_be_drawn() -> None:
    lone = VocabularyInfo(size=3, mask_id=0, protected_ids=(2,))
    config = MaskingConfig(rate=0.9, mask_fraction=0.1, random_fraction=0.8)
    assert_equals_twin(random_ids(4, 30, lone), np.arange(4), 0, 5, config, lone)


def test_masks_equal_the_twin_for_a_huge_vocabulary() -> None:
    """Where the second half of the 64-bit fraction decides about a few of the draws."""
    huge = VocabularyInfo(size=2**20, mask_id=0, protected_ids=())
    assert_equals_twin(plain_ids(20, 1000), np.arange(20), 0, 5, REPLACE_ALL, huge)


# A function of (seed, epoch, example id, position) and of nothing else


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 7], [4, 4, 4], [11, 1]])
def test_masks_do_not_depend_on_the_batch_split(sizes: list[int]) -> None:
    ids, names = random_ids(12, 30), np.arange(12) * 10**9
    whole = list(rows_of(mask(ids, names, config=MaskingConfig(rate=0.4))))
    ends = np.cumsum(sizes)
    parts = [
        row
        for start, end in zip(ends - sizes, ends, strict=True)
        for row in rows_of(mask(ids[start:end], names[start:end], config=MaskingConfig(rate=0.4)))
    ]
    assert parts == whole


@pytest.mark.parametrize("chosen", [[5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2], [4], [0, 5], [2, 2]])
def test_masks_do_not_depend_on_the_order_or_the_other_rows(chosen: list[int]) -> None:
    ids, names = random_ids(6, 31), np.array([8, 6, 7, 5, 3, 0])
    whole = list(rows_of(mask(ids, names, epoch=2)))
    assert list(rows_of(mask(ids[chosen], names[chosen], epoch=2))) == [
        whole[row] for row in chosen
    ]


def test_what_stands_before_a_token_does_not_change_its_mask() -> None:
    ids = plain_ids(3, 64)
    changed = ids.copy()
    changed[:, :32] = 0  # protected: nothing selected there any more
    before, after = mask(ids), mask(changed)
    assert np.array_equal(before.input_ids[:, 32:], after.input_ids[:, 32:])
    assert np.array_equal(selected(before)[:, 32:], selected(after)[:, 32:])
    assert not selected(after)[:, :32].any()


@pytest.mark.parametrize("length", [1, 6, 40, 63])
def test_masks_do_not_depend_on_what_comes_after(length: int) -> None:
    ids = random_ids(4, 64)
    config = MaskingConfig(rate=0.5)
    whole, cut = mask(ids, config=config), mask(ids[:, :length].copy(), config=config)
    assert np.array_equal(cut.input_ids, whole.input_ids[:, :length])
    assert np.array_equal(selected(cut), selected(whole)[:, :length])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_the_integer_type_of_example_ids_changes_nothing(dtype: type[np.integer]) -> None:
    ids, names = random_ids(4, 70), np.array([0, 5, 100, 127])
    for one, other in zip(mask(ids, names), mask(ids, names.astype(dtype)), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.int32, torch.int64])
def test_torch_tensors_get_the_masks_of_numpy_arrays(dtype: torch.dtype) -> None:
    ids, names = random_ids(5, 40), np.arange(5) + 2**40
    arrays = mask(ids, names, config=MaskingConfig(rate=0.3))
    tensors = mask_batch(
        torch.from_numpy(ids).to(dtype),
        example_ids=torch.from_numpy(names),
        epoch=0,
        seed=0,
        config=MaskingConfig(rate=0.3),
        vocabulary=SMALL,
    )
    for name in ("input_ids", "positions", "labels", "row_offsets"):
        tensor = getattr(tensors, name)
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == torch.int64
        assert np.array_equal(tensor.numpy(), getattr(arrays, name))


def test_masks_do_not_depend_on_the_memory_layout() -> None:
    ids = random_ids(6, 40)
    expected = list(rows_of(mask(ids)))
    wide = np.zeros((6, 80), np.int64)
    wide[:, ::2] = ids
    read_only = ids.copy()
    read_only.flags.writeable = False
    for same in (wide[:, ::2], read_only):
        assert list(rows_of(mask(same))) == expected


def test_the_input_is_neither_modified_nor_shared() -> None:
    ids = random_ids(4, 50)
    original = ids.copy()
    batch = mask(ids, config=MaskingConfig(rate=1.0))
    tensor = torch.from_numpy(ids)
    tensors = mask_batch(
        tensor, example_ids=torch.arange(4), epoch=0, seed=0, config=MaskingConfig(rate=1.0),
        vocabulary=SMALL,
    )  # fmt: skip
    assert not np.array_equal(batch.input_ids, ids)
    batch.input_ids[:] = 7
    tensors.input_ids[:] = 7
    assert np.array_equal(ids, original)


@pytest.mark.parametrize(
    "other",
    [{"epoch": 1}, {"epoch": 65_536}, {"seed": 1}, {"seed": 2**32}, {"seed": -1}],
    ids=str,
)
def test_other_epochs_and_seeds_give_unrelated_masks(other: dict[str, int]) -> None:
    ids = plain_ids(1000, 200)
    assert_unrelated(selected(mask(ids)), selected(mask(ids, **other)))  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [1, 1000, 2**32])
def test_other_example_ids_give_unrelated_masks(step: int) -> None:
    ids, names = plain_ids(1000, 200), np.arange(1000)
    assert_unrelated(selected(mask(ids, names)), selected(mask(ids, names + step)))


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 200])
def test_a_token_is_selected_independently_of_its_neighbours(lag: int) -> None:
    """Within a Philox block, between blocks, and (lag 200) between rows."""
    flags = selected(mask(plain_ids(2000, 200))).ravel()
    assert_unrelated(flags[:-lag], flags[lag:])


def assert_unrelated(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> None:
    """The overlap is that of independent draws, within four standard errors."""
    chance = 0.15**2
    error = math.sqrt(chance * (1 - chance) / one.size)
    assert abs((one & other).mean() - chance) < 4 * error


# Rates and shares


def test_fifteen_percent_of_ten_million_tokens_are_selected() -> None:
    count, tokens = 0, 10**7
    ids = np.full((2000, 500), 10, np.uint16)
    for part in range(10):
        batch = mask(ids, np.arange(2000) + 2000 * part, seed=1)
        count += len(batch.positions)
    assert abs(count - 0.15 * tokens) < 3 * math.sqrt(0.15 * 0.85 * tokens)


@pytest.mark.parametrize("rate", [0.0001, 0.01, 0.3, 0.5, 0.999])
def test_any_rate_is_kept(rate: float) -> None:
    """Within three standard errors over a million tokens, for each place in a Philox block."""
    batch = mask(np.full((2000, 500), 10, np.uint16), config=MaskingConfig(rate=rate))
    assert abs(len(batch.positions) - rate * 10**6) < 3 * math.sqrt(rate * (1 - rate) * 10**6)
    lanes = np.bincount(batch.positions % 4, minlength=4)
    assert np.all(abs(lanes - rate * 250_000) < 4 * math.sqrt(rate * (1 - rate) * 250_000))


def outcome_counts(batch: Arrays, vocabulary: VocabularyInfo) -> list[int]:
    """How many predicted tokens were masked, replaced by another id, and left as they were."""
    found = batch.input_ids.ravel()[batch.positions]
    masked = int((found == vocabulary.mask_id).sum())
    kept = int((found == batch.labels).sum())
    return [masked, len(found) - masked - kept, kept]


def outcome_shares(config: MaskingConfig, vocabulary: VocabularyInfo) -> list[float]:
    """A replacement is the token itself once in `choices` draws."""
    changed = config.random_fraction * (1 - 1 / len(vocabulary.replacement_ids))
    return [config.mask_fraction, changed, 1 - config.mask_fraction - changed]


@pytest.mark.parametrize("rate", [0.01, 0.15, 1.0])
@pytest.mark.parametrize("vocabulary", [SMALL, LARGE], ids=["small", "large"])
def test_selected_tokens_are_80_percent_masked_10_random_10_kept(
    rate: float, vocabulary: VocabularyInfo
) -> None:
    config = MaskingConfig(rate=rate)
    batch = mask(plain_ids(2000, 500, vocabulary), config=config, vocabulary=vocabulary)
    counts = outcome_counts(batch, vocabulary)
    assert chi_square.p_value(counts, outcome_shares(config, vocabulary)) > LOWEST_P


def test_conditional_redraws_would_fail_the_80_10_10_test() -> None:
    """The usual mistake: 10% replaced and then 90% of the others masked gives 81/10/9."""
    batch = mask(plain_ids(2000, 500, LARGE), vocabulary=LARGE)
    found, generator = batch.labels.copy(), np.random.default_rng(0)
    replaced = generator.random(len(found)) < 0.1
    masked = ~replaced & (generator.random(len(found)) < 0.9)  # a second, conditional draw
    found[replaced] = LARGE.replacement_ids[0]
    found[masked] = LARGE.mask_id
    flat = batch.input_ids.ravel()
    flat[batch.positions] = found
    counts = outcome_counts(batch, LARGE)
    assert chi_square.p_value(counts, outcome_shares(MaskingConfig(), LARGE)) < 1e-12


@pytest.mark.parametrize(
    ("mask_fraction", "random_fraction"), [(0.5, 0.5), (0.1, 0.2), (0.25, 0.7)]
)
def test_other_shares_are_kept_too(mask_fraction: float, random_fraction: float) -> None:
    config = MaskingConfig(mask_fraction=mask_fraction, random_fraction=random_fraction)
    counts = outcome_counts(mask(plain_ids(2000, 500), config=config), SMALL)
    assert chi_square.p_value(counts, outcome_shares(config, SMALL)) > LOWEST_P


@pytest.mark.parametrize(("vocabulary", "rows"), [(SMALL, 200), (LARGE, 1600)])
def test_random_ids_are_uniform_over_the_unprotected_ids(
    vocabulary: VocabularyInfo, rows: int
) -> None:
    ids = np.full((rows, 500), 10, np.uint16)
    drawn = mask(ids, config=REPLACE_ALL, vocabulary=vocabulary).input_ids.ravel()
    counts = np.bincount(drawn, minlength=vocabulary.size)
    assert len(counts) == vocabulary.size
    assert counts[vocabulary.protected].sum() == 0
    assert chi_square.p_value(counts[vocabulary.replacement_ids]) > LOWEST_P


def test_random_ids_are_uniform_at_low_rates_and_whatever_was_there() -> None:
    """The draw does not reuse the bits that selected the token, nor look at the token."""
    config = MaskingConfig(rate=0.01, mask_fraction=0.0, random_fraction=1.0)
    batch = mask(plain_ids(4000, 500), config=config)
    drawn = batch.input_ids.ravel()[batch.positions]
    assert chi_square.p_value(np.bincount(drawn)[SMALL.replacement_ids]) > LOWEST_P
    same = int((drawn == batch.labels).sum())
    share = 1 / len(SMALL.replacement_ids)
    assert chi_square.p_value([same, len(drawn) - same], [share, 1 - share]) > LOWEST_P


def test_a_16_bit_draw_would_fail_the_uniformity_test() -> None:
    """65,536 values fall on 50,260 ids: some are twice as likely as others."""
    choices = len(LARGE.replacement_ids)
    draws = np.random.default_rng(0).integers(0, 1 << 16, 800_000) * choices >> 16
    assert chi_square.p_value(np.bincount(draws, minlength=choices)) < 1e-12


def test_neighbouring_random_ids_are_unrelated() -> None:
    ids = np.full((2000, 200), 10, np.uint16)
    drawn = mask(ids, config=REPLACE_ALL).input_ids.ravel()
    pairs = np.bincount(drawn[:-1] * SMALL.size + drawn[1:], minlength=SMALL.size**2)
    free = SMALL.replacement_ids
    assert chi_square.p_value(pairs.reshape(SMALL.size, SMALL.size)[np.ix_(free, free)]) > LOWEST_P


# Protected ids


@pytest.mark.parametrize("rate", [0.15, 1.0])
def test_protected_ids_are_never_selected_and_never_changed(rate: float) -> None:
    ids = random_ids(500, 200)
    batch = mask(ids, config=MaskingConfig(rate=rate))
    protected = np.isin(ids, SMALL.protected_ids)
    assert protected.any()
    assert not (protected & selected(batch)).any()
    assert np.array_equal(batch.input_ids[protected], ids[protected])


def test_the_mask_id_is_protected_even_where_it_is_not_listed() -> None:
    vocabulary = VocabularyInfo(size=6, mask_id=2, protected_ids=(0,))
    ids = random_ids(100, 50, vocabulary)
    drawn = mask(ids, config=REPLACE_ALL, vocabulary=vocabulary).input_ids
    assert np.array_equal(drawn == 2, ids == 2)
    assert np.array_equal(drawn == 0, ids == 0)


def test_rows_of_protected_ids_have_nothing_to_predict() -> None:
    batch = mask(np.full((3, 9), 49), config=MaskingConfig(rate=1.0))
    assert len(batch.positions) == len(batch.labels) == 0
    assert batch.row_offsets.tolist() == [0, 0, 0, 0]
    assert (batch.input_ids == 49).all()


@pytest.mark.parametrize("unit", UNITS)
def test_the_memory_layout_of_what_goes_in_changes_nothing(unit: str) -> None:
    ids = random_ids(6, 40).astype(np.uint16)
    rows = np.arange(6) * 7
    starts = None if unit == "token" else (ids % 3 > 0).astype(np.uint8)
    config = MaskingConfig(unit=unit)
    expected = mask(ids, rows, config=config, word_starts=starts)

    def strided(array: np.ndarray) -> np.ndarray:
        return np.repeat(array, 2, axis=-1)[..., ::2]

    def transposed(array: np.ndarray) -> np.ndarray:
        return np.asfortranarray(array)

    def swapped(array: np.ndarray) -> np.ndarray:
        return array.astype(array.dtype.newbyteorder())

    def unaligned(array: np.ndarray) -> np.ndarray:
        raw = b"." + np.ascontiguousarray(array).tobytes()
        return np.frombuffer(raw, array.dtype, offset=1).reshape(array.shape)

    for changed in (strided, transposed, swapped, unaligned):
        other = mask(
            changed(ids), changed(rows), config=config,
            word_starts=None if starts is None else changed(starts),
        )  # fmt: skip
        for one, two in zip(expected, other, strict=True):
            assert np.array_equal(one, two), changed.__name__


@pytest.mark.parametrize("unit", UNITS)
def test_four_workers_at_once_mask_as_one_does(unit: str) -> None:
    ids, config = random_ids(64, 512, LARGE), MaskingConfig(unit=unit)
    starts = None if unit == "token" else (ids % 3 > 0).astype(np.uint8)

    def part(rows: NDArray[Any]) -> Arrays:
        words = None if starts is None else starts[rows]
        return mask(ids[rows], rows, config=config, vocabulary=LARGE, word_starts=words)

    expected = part(np.arange(64))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            parts = list(pool.map(part, np.array_split(np.arange(64), 16)))
            for name in ("input_ids", "labels"):
                joined = np.concatenate([getattr(one, name) for one in parts])
                assert np.array_equal(joined, getattr(expected, name))


def test_a_tensor_on_a_device_is_refused_by_name() -> None:
    tensor = torch.empty((2, 3), dtype=torch.long, device="meta")
    with pytest.raises(ValueError, match="not on meta"):
        mask_batch(
            tensor, example_ids=torch.arange(2), epoch=0, seed=0, config=MaskingConfig(),
            vocabulary=SMALL,
        )  # fmt: skip


def test_an_empty_row_between_others_has_empty_offsets() -> None:
    ids = np.array([[10, 11], [0, 1], [0, 12]])
    batch = mask(ids, config=MaskingConfig(rate=1.0))
    assert batch.row_offsets.tolist() == [0, 2, 2, 3]
    assert batch.positions.tolist() == [0, 1, 5]
    assert batch.labels.tolist() == [10, 11, 12]


# What a batch holds


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.9])
def test_labels_are_the_originals_and_the_rest_is_unchanged(rate: float) -> None:
    ids = random_ids(50, 101)
    batch = mask(ids, config=MaskingConfig(rate=rate))
    assert np.array_equal(batch.labels, ids.ravel()[batch.positions])
    elsewhere = ~selected(batch)
    assert np.array_equal(batch.input_ids[elsewhere], ids[elsewhere])


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.9])
def test_positions_ascend_and_row_offsets_count_them(rate: float) -> None:
    batch = mask(random_ids(50, 101), config=MaskingConfig(rate=rate))
    assert (np.diff(batch.positions) > 0).all()
    assert batch.row_offsets[0] == 0
    assert np.array_equal(np.diff(batch.row_offsets), selected(batch).sum(1))
    assert batch.row_offsets[-1] == len(batch.positions) == len(batch.labels)


def test_kept_tokens_count_as_labels() -> None:
    ids = plain_ids(100, 100)
    keep = MaskingConfig(mask_fraction=0.0, random_fraction=0.0)
    kept, usual = mask(ids, config=keep), mask(ids)
    assert np.array_equal(kept.input_ids, ids)
    assert len(kept.positions) > 1000
    assert np.array_equal(kept.positions, usual.positions)
    assert np.array_equal(kept.labels, usual.labels)


def test_rate_one_selects_every_unprotected_token_and_rate_zero_none() -> None:
    ids = random_ids(200, 100)
    every = mask(ids, config=MaskingConfig(rate=1.0))
    assert np.array_equal(selected(every), ~np.isin(ids, SMALL.protected_ids))
    none = mask(ids, config=MaskingConfig(rate=0.0))
    assert len(none.positions) == 0
    assert np.array_equal(none.input_ids, ids)


def test_shares_of_zero_and_one_have_no_exceptions() -> None:
    ids = plain_ids(300, 100)
    masks = mask(ids, config=MaskingConfig(mask_fraction=1.0, random_fraction=0.0))
    assert (masks.input_ids.ravel()[masks.positions] == SMALL.mask_id).all()
    draws = mask(ids, config=MaskingConfig(mask_fraction=0.0, random_fraction=1.0))
    assert not (draws.input_ids == SMALL.mask_id).any()


# Mistakes


@pytest.mark.parametrize("bad", [-1, -(2**31), 50, 51, 2**31 - 1])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize(("row", "position"), [(0, 0), (2, 6), (1, 3)])
def test_an_id_outside_the_vocabulary_is_refused(
    bad: int, dtype: type[np.integer], rate: float, row: int, position: int
) -> None:
    ids = random_ids(3, 7).astype(dtype)
    ids[row, position] = bad
    with pytest.raises(ValueError, match=rf"vocabulary of 50.*{bad}"):
        mask(ids, config=MaskingConfig(rate=rate))


@pytest.mark.parametrize(
    ("bad", "dtype"), [(50, np.uint16), (2**16 - 1, np.uint16), (2**32 - 1, np.uint32),
                       (2**32 + 5, np.int64), (-(2**63), np.int64)],
)  # fmt: skip
def test_ids_at_the_ends_of_their_type_are_refused(bad: int, dtype: type[np.integer]) -> None:
    ids = np.full((2, 5), 10, dtype)
    ids[1, 2] = bad
    with pytest.raises(ValueError, match="outside the vocabulary of 50"):
        mask(ids)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4), ()])
def test_input_ids_that_are_not_rows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="input_ids"):
        mask(np.full(shape, 10), np.arange(2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
def test_input_ids_that_are_not_integers_are_refused(dtype: type[np.generic]) -> None:
    with pytest.raises(ValueError, match="input_ids"):
        mask(np.ones((2, 3), dtype))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), (1, 2), (), (0,)])
def test_example_ids_that_do_not_name_each_row_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="example_ids"):
        mask(np.full((2, 3), 10), np.zeros(shape, np.int64))


@pytest.mark.parametrize("dtype", [np.float64, np.bool_])
def test_example_ids_that_are_not_integers_are_refused(dtype: type[np.generic]) -> None:
    """A float names two rows alike from 2**53 on."""
    with pytest.raises(ValueError, match="example_ids"):
        mask(np.full((2, 3), 10), np.zeros(2, dtype))


@pytest.mark.parametrize(
    ("size", "mask_id", "protected_ids"),
    [(5, 5, ()), (5, -1, ()), (5, 4, (0, 5)), (5, 4, (-1, 0)), (0, 0, ())],
)
def test_a_vocabulary_without_its_own_ids_is_refused(
    size: int, mask_id: int, protected_ids: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=f"outside the vocabulary of {size} ids"):
        VocabularyInfo(size=size, mask_id=mask_id, protected_ids=protected_ids)


def test_a_vocabulary_with_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="every id is protected"):
        VocabularyInfo(size=3, mask_id=2, protected_ids=(0, 1))
    VocabularyInfo(size=3, mask_id=2, protected_ids=(0, 0, 2))  # id 1 is left


def test_the_vocabulary_tables_say_the_same_thing() -> None:
    assert np.flatnonzero(SMALL.protected).tolist() == [0, 1, 2, 3, 4, 49]
    assert SMALL.replacement_ids.tolist() == list(range(5, 49))


def problems_of(config: MaskingConfig) -> list[Problem]:
    return list(schema.all_problems(config, "masking"))


@pytest.mark.parametrize("name", ["rate", "mask_fraction", "random_fraction"])
@pytest.mark.parametrize("value", [-0.01, 1.01, 15.0, math.nan, math.inf])
def test_a_share_outside_zero_to_one_is_a_problem_that_says_so(name: str, value: float) -> None:
    valid = {"mask_fraction": 0.0, "random_fraction": 0.0}
    problems = problems_of(MaskingConfig(**(valid | {name: value})))  # type: ignore[arg-type]
    remedy = f"masking.{name}={getattr(MaskingConfig(), name)}"
    check(problems[0], f"masking.{name}", Code.INVALID, value, remedy)
    assert len(problems) == 1 + (name != "rate" and value > 1)  # the sum is then wrong as well


def test_shares_that_sum_to_more_than_one_are_a_problem() -> None:
    (problem,) = problems_of(MaskingConfig(mask_fraction=0.8, random_fraction=0.3))
    keys = "masking.mask_fraction + masking.random_fraction"
    check(problem, keys, Code.CONFLICT, "0.8 + 0.3")


def test_all_problems_are_reported_together() -> None:
    config = MaskingConfig(rate=2.0, mask_fraction=-1.0, random_fraction=3.0)
    assert len(problems_of(config)) == 4


@pytest.mark.parametrize(
    ("rate", "mask_fraction", "random_fraction"),
    [(0.15, 0.8, 0.1), (0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.4, 0.7, 0.3)],
)
def test_valid_policies_have_no_problems(
    rate: float, mask_fraction: float, random_fraction: float
) -> None:
    config = MaskingConfig(rate=rate, mask_fraction=mask_fraction, random_fraction=random_fraction)
    assert problems_of(config) == []


def test_word_starts_and_a_policy_out_of_range_are_refused() -> None:
    ids = np.full((1, 8), 9)
    vocabulary = VocabularyInfo(20, 4, (0, 1, 2, 3, 4))
    with pytest.raises(ValueError, match="word_starts"):
        mask_batch(
            ids, example_ids=np.arange(1), epoch=0, seed=0, config=MaskingConfig(),
            vocabulary=vocabulary, word_starts=ids,  # type: ignore[call-overload]
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"masking\.rate"):
        mask_batch(
            ids, example_ids=np.arange(1), epoch=0, seed=0, config=MaskingConfig(rate=15),
            vocabulary=vocabulary,
        )  # fmt: skip
