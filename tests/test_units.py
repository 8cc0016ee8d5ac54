"""Claims about words, spans and exact budgets. All seeds are fixed; a p-value exceeds 1e-4."""

import dataclasses
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import chi_square
from reference import masking as twin
from test_masking import LARGE, LOWEST_P, SMALL, assert_equals_twin, mask, selected

from mlmlab.masking import UNITS, Budget, Corrupt, MaskingConfig, VocabularyInfo

POLICIES = [
    MaskingConfig(unit=unit, budget=budget, corrupt=corrupt, rate=rate)
    for unit, budget, corrupt, rate in itertools.product(
        UNITS, Budget, Corrupt, (0.0, 0.15, 0.5, 1.0)
    )
]
NAMES = [f"{p.unit}-{p.budget.value}-{p.corrupt.value}-{p.rate}" for p in POLICIES]


def starts_for(config: MaskingConfig, rows: int, length: int, seed: int = 0) -> Any:
    """Words of one to four tokens and a few documents' starts; None for unit token."""
    if config.unit == "token":
        return None
    chances = np.random.default_rng(seed).random((rows, length))
    return np.where(chances < 0.03, 2, np.where(chances < 0.65, 1, 0)).astype(np.uint8)


def ids_for(rows: int, length: int, seed: int = 0, protected: float = 0.05) -> NDArray[np.int64]:
    """Ids of `SMALL` with some special ones among them."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 49, (rows, length))
    return np.where(rng.random((rows, length)) < protected, 2, ids)


def words_of(ids: NDArray[Any], starts: NDArray[Any] | None) -> list[twin.Word]:
    vocabulary = twin.Vocabulary(SMALL.size, SMALL.mask_id, SMALL.protected_ids)
    return twin.words_of(ids.tolist(), None if starts is None else starts.tolist(), vocabulary)


# The same bits as the twin


@pytest.mark.parametrize("config", POLICIES, ids=NAMES)
def test_masks_equal_the_twin_for_every_policy(config: MaskingConfig) -> None:
    for rows, length in ((1, 1), (3, 7), (4, 40)):
        ids = ids_for(rows, length)
        examples = np.array([2**63 + 5, 0, 7, 2**40][:rows], np.uint64)
        starts = starts_for(config, rows, length)
        assert_equals_twin(ids, examples, 3, 11, config, SMALL, starts)


@settings(max_examples=150, deadline=None)
@given(
    config=st.sampled_from(POLICIES),
    shares=st.sampled_from([(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.3, 0.3)]),
    rate=st.floats(0.0, 1.0),
    rows=st.integers(0, 3),
    length=st.integers(1, 30),
    seed=st.integers(0, 2**64 - 1),
    protected=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_masks_equal_the_twin_for_any_text(
    config: MaskingConfig,
    shares: tuple[float, float],
    rate: float,
    rows: int,
    length: int,
    seed: int,
    protected: float,
) -> None:
    config = dataclasses.replace(
        config, rate=rate, mask_fraction=shares[0], random_fraction=shares[1]
    )
    ids = ids_for(rows, length, seed % 1000, protected)
    starts = starts_for(config, rows, length, seed % 999)
    assert_equals_twin(ids, np.arange(rows) + seed % 77, seed % 5, seed, config, SMALL, starts)


# Invariance


@pytest.mark.parametrize("config", [p for p in POLICIES if p.rate == 0.15])
def test_masks_do_not_depend_on_the_batch_or_the_types(config: MaskingConfig) -> None:
    ids, starts = ids_for(12, 50), starts_for(config, 12, 50)
    examples = np.arange(12) * 1000
    whole = mask(ids, examples, config=config, word_starts=starts)
    order = np.array([7, 3, 11, 0])
    part = mask(
        ids[order].astype(np.uint16), examples[order].astype(np.uint32), config=config,
        word_starts=None if starts is None else starts[order].astype(np.int64),
    )  # fmt: skip
    assert np.array_equal(part.input_ids, whole.input_ids[order])
    assert np.array_equal(selected(part), selected(whole)[order])
    tensors = mask(
        torch.from_numpy(ids), torch.from_numpy(examples), config=config,  # type: ignore[arg-type]
        word_starts=None if starts is None else torch.from_numpy(starts),  # type: ignore[arg-type]
    )  # fmt: skip
    assert isinstance(tensors.labels, torch.Tensor)
    assert np.array_equal(tensors.input_ids, whole.input_ids)


# Words


@settings(max_examples=100, deadline=None)
@given(
    unit=st.sampled_from(["word", "span"]),
    budget=st.sampled_from(Budget),
    rate=st.floats(0.01, 0.99),
    length=st.integers(1, 80),
    seed=st.integers(0, 10**6),
)
def test_no_word_is_selected_in_part(
    unit: str, budget: Budget, rate: float, length: int, seed: int
) -> None:
    config = MaskingConfig(unit=unit, budget=budget, rate=rate)
    ids, starts = ids_for(1, length, seed), starts_for(config, 1, length, seed)
    chosen = selected(mask(ids, config=config, seed=seed, word_starts=starts))[0]
    for word in words_of(ids[0], starts[0]):
        assert len(set(chosen[word.places])) == 1


@pytest.mark.parametrize("unit", ["word", "span"])
def test_a_bool_table_says_where_words_begin(unit: str) -> None:
    config = MaskingConfig(unit=unit)
    ids, starts = ids_for(20, 40), starts_for(config, 20, 40) == 1
    as_bool = mask(ids, config=config, word_starts=starts)
    as_ints = mask(ids, config=config, word_starts=starts.astype(np.uint8))
    assert np.array_equal(as_bool.input_ids, as_ints.input_ids)


def test_unit_words_of_one_token_are_tokens() -> None:
    ids = ids_for(50, 60)
    words = mask(ids, config=MaskingConfig(unit="word"), word_starts=np.ones((50, 60), bool))
    assert np.array_equal(selected(words), selected(mask(ids)))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("corrupt", Corrupt)
def test_a_unit_is_corrupted_alike_only_if_asked(unit: str, corrupt: Corrupt) -> None:
    config = MaskingConfig(unit=unit, corrupt=corrupt, mask_fraction=0.5, random_fraction=0.0)
    ids, starts = ids_for(400, 64), starts_for(config, 400, 64)
    batch = mask(ids, config=config, word_starts=starts)
    mixed = 0
    chosen = selected(batch)
    for row in range(len(ids)):
        words = words_of(ids[row], None if starts is None else starts[row])
        for word in words:
            if chosen[row, word.first]:
                mixed += len(set((batch.input_ids[row, word.places] == 4).tolist())) > 1
    assert (mixed > 0) == (corrupt is Corrupt.TOKEN and unit != "token")


# Spans


def runs_of(config: MaskingConfig, rows: int, length: int, seed: int = 0) -> Counter[int]:
    """Lengths of the runs of selected tokens, every token a word, without those at the ends."""
    ids = np.full((rows, length), 7)
    starts = np.ones((rows, length), np.uint8)
    chosen = selected(mask(ids, config=config, seed=seed, word_starts=starts))
    lengths: Counter[int] = Counter()
    for row in chosen:
        edges = np.flatnonzero(np.diff(row.astype(np.int8)))
        for start, end in itertools.pairwise(edges):
            if row[start + 1]:
                lengths[int(end - start)] += 1
    return lengths


def test_span_lengths_are_those_of_spanbert() -> None:
    # At a low rate two spans hardly ever touch, so that runs are spans.
    runs = runs_of(MaskingConfig(unit="span", rate=0.002), 4000, 512)
    assert max(runs) <= 10
    observed = np.array([runs[length] for length in range(1, 11)])
    expected = np.array(twin.span_lengths()) * observed.sum()
    assert observed.sum() > 900
    assert chi_square.p_value(observed, expected) > LOWEST_P
    mean = (observed * np.arange(1, 11)).sum() / observed.sum()
    assert mean == pytest.approx(3.8, rel=0.06)  # as the paper says


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5])
def test_every_place_of_a_row_is_in_a_span_equally_often(rate: float) -> None:
    config = MaskingConfig(unit="span", rate=rate)
    ids, starts = np.full((60_000, 24), 7), np.ones((60_000, 24), np.uint8)
    starts[:, 12] = 2  # another document begins in the middle
    chosen = selected(mask(ids, config=config, word_starts=starts))
    error = (rate * (1 - rate) / len(ids)) ** 0.5
    assert np.abs(chosen.mean(0) - rate).max() < 4.5 * error


@pytest.mark.parametrize("budget", Budget)
def test_spans_do_not_reach_into_another_document(budget: Budget) -> None:
    config = MaskingConfig(unit="span", budget=budget, corrupt=Corrupt.UNIT,
                           mask_fraction=0.5, random_fraction=0.0)  # fmt: skip
    ids = np.full((20_000, 20), 7)
    starts = np.ones((20_000, 20), np.uint8)
    starts[:, 10] = 2
    batch = mask(ids, config=config, word_starts=starts)
    chosen = selected(batch)
    both = chosen[:, 9] & chosen[:, 10]
    assert both.sum() > 50
    # Within a span both would be masked or both kept.
    alike = (batch.input_ids[both, 9] == 4) == (batch.input_ids[both, 10] == 4)
    assert 0.3 < alike.mean() < 0.7
    within = chosen[:, 4] & chosen[:, 5]
    alike = (batch.input_ids[within, 4] == 4) == (batch.input_ids[within, 5] == 4)
    assert alike.mean() > 0.85


# Budgets


def counts_of(config: MaskingConfig, ids: NDArray[Any], seed: int = 0) -> NDArray[np.int64]:
    starts = starts_for(config, *ids.shape)
    return np.diff(mask(ids, config=config, seed=seed, word_starts=starts).row_offsets)


@settings(max_examples=60, deadline=None)
@given(rate=st.floats(0.0, 1.0), length=st.integers(1, 200), seed=st.integers(0, 10**6))
def test_an_exact_budget_of_tokens_is_the_share_rounded_up_or_down(
    rate: float, length: int, seed: int
) -> None:
    ids = ids_for(6, length, seed)
    share = rate * np.isin(ids, SMALL.protected_ids, invert=True).sum(1)
    counts = counts_of(MaskingConfig(budget=Budget.EXACT, rate=rate), ids, seed)
    assert (counts >= np.floor(share - 1e-6)).all()
    assert (counts <= np.ceil(share + 1e-6)).all()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
def test_the_mean_of_exact_budgets_is_exact(unit: str, rate: float) -> None:
    config = MaskingConfig(unit=unit, budget=Budget.EXACT, rate=rate)
    ids = ids_for(20_000, 33)
    share = rate * np.isin(ids, SMALL.protected_ids, invert=True).sum(1)
    difference = counts_of(config, ids) - share
    assert abs(difference.mean()) < 4.5 * difference.std() / len(ids) ** 0.5
    spread = {"token": 1.0, "word": 9.0, "span": 9.0}[unit]
    assert np.abs(difference).max() < spread  # a token, or a word
    assert difference.std() < 0.6 * counts_of(dataclasses.replace(config, budget=Budget.BERNOULLI),
                                              ids).std()  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_how_many_words_an_exact_budget_sorts_at_first_changes_nothing(unit: str) -> None:
    config = MaskingConfig(unit=unit, budget=Budget.EXACT, rate=0.3)
    ids = ids_for(50, 90)
    starts = starts_for(config, *ids.shape)
    expected = mask(ids, config=config, word_starts=starts)
    for spread in (0, 1 << 33):  # too few of them every other time, and all
        other = dataclasses.replace(config)
        vars(other)["thresholds"] = (*config.thresholds[:3], spread)
        for one, two in zip(expected, mask(ids, config=other, word_starts=starts), strict=True):
            assert np.array_equal(one, two)


def test_exact_budgets_select_every_token_equally_often() -> None:
    ids = np.full((60_000, 20), 7)
    chosen = selected(mask(ids, config=MaskingConfig(budget=Budget.EXACT)))
    assert set(chosen.sum(1)) == {3}
    error = (0.15 * 0.85 / len(ids)) ** 0.5
    assert np.abs(chosen.mean(0) - 0.15).max() < 4.5 * error


@pytest.mark.parametrize(("length", "bias"), [(128, 0.05), (512, 0.02)])
def test_exact_budgets_disfavour_long_words_a_little(length: int, bias: float) -> None:
    # A word that crosses the budget comes in by chance, so that long ones are not shut out. What is
    # left is the bias of a random order: its first words are drawn alike, whatever their length.
    config = MaskingConfig(unit="word", budget=Budget.EXACT)
    ids = np.full((40_000, length), 7)
    sizes = np.resize([1, 2, 1, 4, 1, 1, 3, 1, 2], length)
    begins = np.cumsum([0, *sizes])
    starts = np.zeros(length, np.uint8)
    starts[begins[begins < length]] = 1
    chosen = selected(mask(ids, config=config, word_starts=np.tile(starts, (len(ids), 1))))
    words = words_of(ids[0], starts)
    rates = [
        chosen[:, [word.first for word in words if len(word.places) == size]].mean()
        for size in (1, 2, 4)
    ]
    assert rates == sorted(rates, reverse=True)
    assert 0.15 * (1 - bias) < rates[-1] < rates[0] < 0.15 * (1 + bias)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("budget", Budget)
def test_rates_of_zero_and_one_have_no_exceptions(unit: str, budget: Budget) -> None:
    ids = ids_for(20, 50)
    plain = ~np.isin(ids, SMALL.protected_ids)
    for rate, expected in ((0.0, np.zeros_like(plain)), (1.0, plain)):
        config = MaskingConfig(unit=unit, budget=budget, rate=rate)
        starts = starts_for(config, 20, 50)
        assert np.array_equal(selected(mask(ids, config=config, word_starts=starts)), expected)


@pytest.mark.parametrize("config", POLICIES, ids=NAMES)
def test_rows_without_text_and_rows_of_one_token_are_masked_too(config: MaskingConfig) -> None:
    special = np.full((3, 9), 2)
    starts = starts_for(config, 3, 9)
    assert len(mask(special, config=config, word_starts=starts).labels) == 0
    ones = mask(np.full((50, 1), 7), config=config, word_starts=starts_for(config, 50, 1))
    if config.rate in (0.0, 1.0):
        assert len(ones.labels) == 50 * config.rate


@pytest.mark.parametrize("config", [p for p in POLICIES if p.rate == 0.15])
def test_selected_tokens_are_80_percent_masked_10_random_10_kept(config: MaskingConfig) -> None:
    ids = np.full((3000, 128), 7)
    starts = starts_for(config, 3000, 128)
    batch = mask(ids, config=config, word_starts=starts, vocabulary=LARGE)
    assert len(batch.labels) == pytest.approx(0.15 * ids.size, rel=0.05)  # spans vary most
    shown = batch.input_ids.ravel()[batch.positions]
    counts = [(shown == LARGE.mask_id).sum(), (shown == 7).sum()]
    shares = np.array([*counts, len(shown) - sum(counts)]) / len(shown)
    # Units of several tokens are fewer draws: the tolerance is that of draws of four tokens.
    assert np.abs(shares - [0.8, 0.1, 0.1]).max() < 4.5 * (0.16 * 4 / len(shown)) ** 0.5


@pytest.mark.parametrize("config", [p for p in POLICIES if p.rate == 0.15])
@pytest.mark.parametrize("size", [6, 1 << 20])
def test_random_ids_are_uniform_in_small_and_huge_vocabularies(
    config: MaskingConfig, size: int
) -> None:
    vocabulary = VocabularyInfo(size, 0, (0, 1, 2))
    config = dataclasses.replace(config, rate=0.01, mask_fraction=0.0, random_fraction=1.0)
    ids = np.full((40_000, 128), 5)
    starts = starts_for(config, *ids.shape)
    batch = mask(ids, config=config, word_starts=starts, vocabulary=vocabulary)
    drawn = batch.input_ids.ravel()[batch.positions] - 3
    assert len(drawn) > 40_000
    choices = size - 3
    observed = np.bincount(drawn * min(choices, 64) // choices, minlength=min(choices, 64))
    expected = np.full(len(observed), len(drawn) / len(observed))
    assert drawn.min() >= 0
    assert chi_square.p_value(observed, expected) > LOWEST_P


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_need_to_be_known(unit: str) -> None:
    with pytest.raises(ValueError, match=f"word_starts: unit `{unit}` needs them"):
        mask(ids_for(2, 5), config=MaskingConfig(unit=unit))
    for starts in (np.ones((2, 4), bool), np.ones((2, 5))):
        with pytest.raises(ValueError, match="word_starts: bool or integers"):
            mask(ids_for(2, 5), config=MaskingConfig(unit=unit), word_starts=starts)
