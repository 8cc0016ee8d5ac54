"""Claims about `mlmlab/random.py`. All seeds are fixed; a p-value must exceed 1e-4."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import chi_square
from reference import philox as twin

import mlmlab.random
from mlmlab.kernels import fill_words, philox
from mlmlab.random import (
    EPOCHS,
    Domain,
    Seeds,
    derive_seed,
    permuted,
    uniforms,
    words,
)

SEEDS = [0, 1, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1, -1, -(2**40), 2**70 + 3]
IDENTITIES = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63, 2**64 - 1]
LOWEST_P = 1e-4

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def hexadecimal(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


# The test of the tests


@pytest.mark.parametrize(
    ("statistic", "degrees", "p"),
    [
        (6.635, 1, 0.01), (5.991, 2, 0.05), (13.816, 2, 0.001), (9.488, 4, 0.05),
        (18.467, 4, 0.001), (3.940, 10, 0.95), (29.588, 10, 0.001), (124.342, 100, 0.05),
        (149.449, 100, 0.001),
    ],
)  # fmt: skip
def test_chi_square_tail_agrees_with_the_tables(statistic: float, degrees: int, p: float) -> None:
    assert chi_square.tail(statistic, degrees) == pytest.approx(p, rel=0.2)


def test_chi_square_accepts_a_fair_generator_and_rejects_a_biased_one() -> None:
    generator = np.random.default_rng(0)
    fair = np.bincount(generator.integers(0, 50, 100_000), minlength=50)
    # the classic: `word % count` on a generator of too few bits favours the small numbers
    biased = np.bincount(generator.integers(0, 1 << 9, 100_000) % 50, minlength=50)
    assert chi_square.p_value(fair) > LOWEST_P
    assert chi_square.p_value(biased) < 1e-12


# Philox and the counter


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_and_its_twin_give_the_published_answers(
    counter: str, key: str, answer: str
) -> None:
    c0, c1, c2, c3 = hexadecimal(counter)
    k0, k1 = hexadecimal(key)
    assert list(twin.philox((c0, c1, c2, c3), (k0, k1))) == hexadecimal(answer)
    with np.errstate(over="ignore"):  # as plain Python, whose words warn where they wrap
        ours = philox(*(np.uint32(word) for word in (c0, c1, c2, c3, k0, k1)))
    assert [int(word) for word in ours] == hexadecimal(answer)


def test_words_of_a_block_stand_in_the_published_order() -> None:
    out = np.zeros(6, np.uint32)
    fill_words(out[1:5], np.uint64(0), 0, np.uint64(0), 0)
    assert out.tolist() == [0, *hexadecimal(KNOWN_ANSWERS[0][2]), 0]


def test_seed_epoch_domain_and_id_stand_where_the_layout_says() -> None:
    """Block 0 of the third published vector's key, id and an epoch and domain of its word 1."""
    seed = 0x299F31D0_A4093822
    identity = 0x03707344_13198A2E
    epoch = 0xA308D3
    out = words(seed, Domain.ORDER, np.array([identity], np.uint64), 4, epoch)
    counter = (0, 0x03A308D3, 0x13198A2E, 0x03707344)
    assert out[0].tolist() == list(twin.philox(counter, (0xA4093822, 0x299F31D0)))


def test_domain_numbers_never_change() -> None:
    assert {domain.name: domain.value for domain in Domain} == {
        "SELECT": 1, "REPLACE": 2, "ORDER": 3, "SPLIT": 4,
        "DROPOUT": 5, "INITIALIZE": 6, "SMALL_WORLD": 7, "EVALUATE": 8, "CORRUPT": 9, "BUDGET": 10,
        "POLICY": 11, "OBJECTIVE": 12, "SAMPLE": 13,
    }  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_words_equal_the_twin(seed: int) -> None:
    for domain, epoch in itertools.product(Domain, [0, 1, 70_000, EPOCHS - 1]):
        out = words(seed, domain, np.array(IDENTITIES, np.uint64), 7, epoch)
        assert out.dtype == np.uint32
        assert out.tolist() == [twin.words(seed, domain, i, 7, epoch) for i in IDENTITIES]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 127, 128, 130])
def test_words_equal_the_twin_for_any_count(count: int) -> None:
    out = words(9, Domain.SMALL_WORLD, np.array([3, 2**40]), count, epoch=2)
    assert out.shape == (2, count)
    assert out.tolist() == [twin.words(9, Domain.SMALL_WORLD, i, count, 2) for i in (3, 2**40)]


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64, np.uint64])
def test_words_do_not_depend_on_the_integer_type(dtype: type[np.integer]) -> None:
    out = words(4, Domain.SPLIT, np.arange(9, dtype=dtype), 5)
    assert out.tolist() == [twin.words(4, Domain.SPLIT, i, 5) for i in range(9)]


@pytest.mark.parametrize(
    ("seed", "low", "high"),
    [
        (-1, 2**32 - 1, 2**32 - 1), (2**64 - 1, 2**32 - 1, 2**32 - 1), (2**64 + 7, 7, 0),
        (-(2**63), 0, 2**31), (2**32, 0, 1),
    ],
)  # fmt: skip
def test_seeds_count_modulo_two_to_the_64(seed: int, low: int, high: int) -> None:
    one = words(seed, Domain.SELECT, np.arange(3), 4)
    assert np.array_equal(one, words(high << 32 | low, Domain.SELECT, np.arange(3), 4))


def test_words_differ_between_seeds_domains_epochs_and_ids() -> None:
    identities = np.array([0, 1, 2, 2**32, 2**32 + 1, 2**33], np.uint64)
    rows = [
        words(seed, domain, identities, 8, epoch)
        for seed in (0, 1, 2, 2**32, 2**33, -1)
        for domain in Domain
        for epoch in (0, 1, 2, 256, 65536, EPOCHS - 1)
    ]
    blocks = np.concatenate(rows).reshape(-1, 4)  # every block, of both block numbers
    assert len(np.unique(blocks, axis=0)) == len(blocks) == 6 * 13 * 6 * 6 * 2


# Uniforms


def test_uniforms_are_flat_with_the_right_mean_and_variance() -> None:
    sample = uniforms(7, Domain.SMALL_WORLD, np.arange(1000), 1000, epoch=3).ravel()
    assert sample.dtype == np.float64
    assert chi_square.p_value(np.bincount((sample * 256).astype(int), minlength=256)) > LOWEST_P
    # four standard errors; the variance of (x - 1/2)**2 is 1/180
    assert abs(sample.mean() - 0.5) < 4 * math.sqrt(1 / 12 / sample.size)
    assert abs(((sample - 0.5) ** 2).mean() - 1 / 12) < 4 * math.sqrt(1 / 180 / sample.size)


def test_uniforms_never_reach_zero_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = np.array([[0, 2**32 - 1]], np.uint32)
    monkeypatch.setattr(mlmlab.random, "words", lambda *_: extremes)
    sample = uniforms(0, Domain.SMALL_WORLD, np.arange(1), 2)
    assert 0.0 < sample[0, 0] < 2.0**-32
    assert 1.0 - 2.0**-32 < sample[0, 1] < 1.0


# Seeds for other generators


def test_derived_seeds_are_distinct_and_64_bits_wide() -> None:
    derived = {
        derive_seed(seed, domain, identity, epoch)
        for seed in (0, 1, -1, 2**32)
        for domain in Domain
        for identity in (0, 1, 2, 2**32, 2**64 - 1)
        for epoch in (0, 1, 2, 1000)
    }
    assert len(derived) == 4 * 13 * 5 * 4
    assert all(0 <= number < 2**64 for number in derived)
    assert len({number >> 32 for number in derived}) == len(derived)  # 1e-4 by chance
    assert len({number % 2**32 for number in derived}) == len(derived)


def test_a_derived_seed_is_the_first_two_words() -> None:
    low, high = twin.words(5, Domain.DROPOUT, 11, 2, epoch=4)
    assert derive_seed(5, Domain.DROPOUT, 11, 4) == low + 2**32 * high


# The order of the examples


def orders(count: int, runs: int) -> NDArray[np.int64]:
    """`[runs, count]`: one order for each of `runs` pairs of seed and epoch."""
    places = np.arange(count)
    return np.stack([permuted(places, count, run // 10, run % 10) for run in range(runs)])


def assert_bijection(order: NDArray[np.int64], count: int) -> None:
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(count))


@pytest.mark.parametrize("count", [*range(1, 71), 255, 256, 257, 1000, 4096, 4097, 65_537])
def test_an_order_has_every_example_once(count: int) -> None:
    assert_bijection(permuted(np.arange(count), count, 3, 1), count)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 20_000), st.integers(-(2**64), 2**65), st.integers(0, EPOCHS - 1))
def test_an_order_has_every_example_once_for_any_seed(count: int, seed: int, epoch: int) -> None:
    assert_bijection(permuted(np.arange(count), count, seed, epoch), count)


@pytest.mark.parametrize("count", [5, 64, 1000])
def test_an_order_does_not_depend_on_which_places_are_asked_together(count: int) -> None:
    whole = permuted(np.arange(count), count, 8, 2)
    backwards = np.arange(count)[::-1]
    assert np.array_equal(permuted(backwards, count, 8, 2), whole[backwards])
    one_by_one = [permuted(np.array([place]), count, 8, 2)[0] for place in range(count)]
    assert one_by_one == whole.tolist()
    repeated = np.array([count - 1, 0, count - 1], np.uint16)
    assert np.array_equal(permuted(repeated, count, 8, 2), whole[repeated])
    assert permuted(np.arange(0), count, 8, 2).shape == (0,)


def test_orders_differ_between_epochs_and_seeds() -> None:
    keys = [(0, 0), (0, 1), (0, 65536), (1, 0), (1, 1), (2**32, 0), (-1, 0)]
    some = [permuted(np.arange(1000), 1000, seed, epoch) for seed, epoch in keys]
    for one, other in itertools.combinations([np.arange(1000), *some], 2):
        assert (one == other).sum() < 10  # a Poisson number of mean 1: above 9 once in 1e7


def test_all_120_orders_of_five_examples_are_equally_likely() -> None:
    names = orders(5, 24_000) @ 5 ** np.arange(5)
    _, counts = np.unique(names, return_counts=True)
    assert len(counts) == math.factorial(5)
    assert chi_square.p_value(counts) > LOWEST_P


@pytest.mark.parametrize("count", [3, 4, 16, 64])
def test_orders_are_odd_as_often_as_even(count: int) -> None:
    """A Feistel network alone, of two bits or more a half, is always an even permutation."""
    sample = orders(count, 2000)
    inversions = sum((sample[:, [i]] > sample[:, i + 1 :]).sum(1) for i in range(count - 1))
    odd = int((inversions % 2).sum())
    assert chi_square.p_value([odd, 2000 - odd]) > LOWEST_P


@pytest.mark.parametrize("count", [2, 3, 4, 5, 16, 21, 64, 100])
def test_each_example_is_equally_likely_at_each_place(count: int) -> None:
    sample = orders(count, 4000)
    p_values = [
        chi_square.p_value(np.bincount(sample[:, place], minlength=count)) for place in range(count)
    ]
    assert min(p_values) > LOWEST_P / count  # Bonferroni: the claim is about all places


def test_neighbouring_places_hold_unrelated_examples() -> None:
    sample = permuted(np.arange(100_000), 100_000, 5, 0)
    steps = np.diff(sample) % 100_000  # uniform over 1 ... 99,999
    assert chi_square.p_value(np.bincount(steps * 100 // 100_000, minlength=100)) > LOWEST_P


def test_places_of_a_huge_order_cost_nothing_to_find() -> None:
    count = 10**12
    places = np.array([0, 1, 2, 10**6, count // 2, count - 1])
    order = permuted(places, count, 1, 0)
    assert len(set(order.tolist())) == len(places)
    assert 0 <= min(order) < max(order) < count
    assert max(order) > 10**11  # all six below a tenth: once in 1e6


def test_seeds_say_which_key_decides_what() -> None:
    seeds = Seeds.of(1, 2, 3)
    assert (seeds.order, seeds.masks, seeds.dropout, seeds.split) == (1, 1, 1, 3)
    assert seeds.weights == derive_seed(1, Domain.INITIALIZE)
    assert seeds.eval_masks == derive_seed(2, Domain.EVALUATE)


def test_no_two_micro_batches_of_a_run_share_their_dropout_noise() -> None:
    noise = Seeds.of(0, 0, 0).dropout_noise
    places = [(b, m, r) for b in (0, 1, 2**30) for m in range(3) for r in range(3)]
    assert len({noise(*place) for place in places}) == len(places)
