"""Claims about `mlmlab/masking/kernel_cuda.py`: without a CUDA device, in its interpreter."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

HAS_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if HAS_DEVICE else "cpu"
triton = pytest.importorskip("triton")

from test_masking import LARGE, REPLACE_ALL, SMALL, random_ids  # noqa: E402
from test_units import ids_for, starts_for  # noqa: E402

from mlmlab.masking import (  # noqa: E402
    Budget,
    Corrupt,
    MaskingConfig,
    Unit,
    VocabularyInfo,
    mask_batch,
)
from mlmlab.masking.kernel_cuda import (  # noqa: E402
    IGNORED_LABEL,
    DeviceMaskedBatch,
    default_capacity,
    mask_batch_on_device,
)

# Triton announces a default for floating-point numbers; there are none here.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

POLICIES = [
    MaskingConfig(
        unit=unit, budget=budget, corrupt=corrupt, rate=0.4, mask_fraction=0.4, random_fraction=0.4
    )
    for unit, budget, corrupt in itertools.product(Unit, Budget, Corrupt)
]
NAMES = [f"{p.unit.value}-{p.budget.value}-{p.corrupt.value}" for p in POLICIES]
TOKENS, WORDS, SPANS, EXACT_SPANS = POLICIES[0], POLICIES[5], POLICIES[9], POLICIES[11]


def on_device(array: Any) -> torch.Tensor:
    return torch.as_tensor(array).to(DEVICE)


def mask(
    ids: Any,
    *,
    config: MaskingConfig = TOKENS,
    vocabulary: VocabularyInfo = SMALL,
    examples: Any = None,
    epoch: int = 3,
    seed: int = 11,
    starts: Any = None,
    capacity: int | None = None,
) -> DeviceMaskedBatch:
    return mask_batch_on_device(
        on_device(ids),
        example_ids=on_device(np.arange(len(ids)) if examples is None else examples),
        epoch=epoch,
        seed=seed,
        config=config,
        vocabulary=vocabulary,
        word_starts=None if starts is None else on_device(starts),
        capacity=capacity,
    )


def assert_equals_cpu(
    ids: Any,
    *,
    config: MaskingConfig = TOKENS,
    vocabulary: VocabularyInfo = SMALL,
    examples: Any = None,
    epoch: int = 3,
    seed: int = 11,
    starts: Any = None,
    capacity: int | None = None,
) -> int:
    """Compares all that is returned; says how many tokens are predicted."""
    names = np.arange(len(ids)) if examples is None else examples
    expected = mask_batch(
        ids, example_ids=names, epoch=epoch, seed=seed, config=config, vocabulary=vocabulary,
        word_starts=starts,
    )  # fmt: skip
    batch = mask(
        ids, config=config, vocabulary=vocabulary, examples=examples, epoch=epoch, seed=seed,
        starts=starts, capacity=capacity,
    )  # fmt: skip
    count = len(expected.labels)
    places = default_capacity(ids.size, config) if capacity is None else capacity
    padding = max(0, places - count)
    assert batch.input_ids.tolist() == expected.input_ids.tolist()
    assert batch.positions.tolist() == expected.positions.tolist()[:places] + [0] * padding
    assert batch.labels.tolist() == expected.labels.tolist()[:places] + [IGNORED_LABEL] * padding
    assert batch.row_offsets.tolist() == expected.row_offsets.tolist()
    assert batch.ids_outside.tolist() == [0] * len(ids)
    assert all(tensor.dtype == torch.int64 for tensor in batch)
    return count


# The same bits as on the CPU


@pytest.mark.parametrize("config", POLICIES, ids=NAMES)
def test_masks_equal_the_cpu_for_every_policy_and_shape(config: MaskingConfig) -> None:
    counts = 0
    for rows, length in ((0, 5), (3, 1), (1, 8), (3, 21)):
        starts = starts_for(config, rows, length)
        counts += assert_equals_cpu(ids_for(rows, length), config=config, starts=starts)
    assert counts > 10


@pytest.mark.parametrize("config", POLICIES[::2], ids=NAMES[::2])
def test_rates_of_zero_and_one_equal_the_cpu(config: MaskingConfig) -> None:
    ids, starts = ids_for(1, 13), starts_for(config, 1, 13)
    for rate, expected in ((0.0, 0), (1.0, int((ids != 2).sum()))):
        at_rate = dataclasses.replace(config, rate=rate)
        assert assert_equals_cpu(ids, config=at_rate, starts=starts) == expected


@pytest.mark.parametrize("config", POLICIES[::2], ids=NAMES[::2])
def test_rows_without_text_have_nothing_to_predict(config: MaskingConfig) -> None:
    ids, starts = ids_for(3, 9), starts_for(config, 3, 9)
    ids[1] = 2
    assert_equals_cpu(ids, config=config, starts=starts)
    assert mask(ids, config=config, starts=starts).row_offsets.diff()[1] == 0


@pytest.mark.parametrize("config", [TOKENS, WORDS, EXACT_SPANS], ids=["token", "word", "span"])
def test_rates_low_and_high_equal_the_cpu(config: MaskingConfig) -> None:
    for seed, rate in enumerate((0.02, 0.8)):
        ids, starts = ids_for(4, 130, seed), starts_for(config, 4, 130, seed)
        at_rate = dataclasses.replace(config, rate=rate)
        assert_equals_cpu(ids, config=at_rate, starts=starts, seed=seed)


@pytest.mark.parametrize("rate", [0.05, 0.7])
@pytest.mark.parametrize("spans", [SPANS, EXACT_SPANS], ids=["bernoulli", "exact"])
def test_long_runs_of_spans_equal_the_cpu(spans: MaskingConfig, rate: float) -> None:
    starts = starts_for(spans, 1, 120)
    config = dataclasses.replace(spans, rate=rate)
    assert assert_equals_cpu(ids_for(1, 120, protected=0.01), config=config, starts=starts)


@settings(max_examples=25, deadline=None)
@given(
    corrupt=st.sampled_from(Corrupt),
    rate=st.floats(0.0, 1.0),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    protected=st.sampled_from([0.0, 0.1, 1.0]),
    kinds=st.sampled_from([(0.3, 0.7, 0.0), (0.8, 0.2, 0.0), (0.2, 0.6, 0.2), (0.9, 0.0, 0.1)]),
)
def test_exact_spans_of_any_text_equal_the_cpu(
    corrupt: Corrupt,
    rate: float,
    length: int,
    seed: int,
    protected: float,
    kinds: tuple[float, float, float],
) -> None:
    config = dataclasses.replace(EXACT_SPANS, corrupt=corrupt, rate=rate)
    starts = np.random.default_rng(seed).choice(3, (2, length), p=kinds).astype(np.uint8)
    ids = ids_for(2, length, seed % 1000, protected)
    assert_equals_cpu(ids, config=config, epoch=seed % 5, seed=seed, starts=starts)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_a_budget_that_comes_out_even_equals_the_cpu(rate: float) -> None:
    # 16 positions are as many as the kernel has: the last span may end where the row does.
    ids, starts = ids_for(8, 16, protected=0.0), starts_for(EXACT_SPANS, 8, 16)
    ids[4:, 12:] = 2
    starts[4:, 12:] = 0  # nor does a word begin behind the text
    config = dataclasses.replace(EXACT_SPANS, rate=rate)
    assert assert_equals_cpu(ids, config=config, starts=starts) > 20


def test_a_word_longer_than_what_is_left_of_the_budget_comes_in_by_chance() -> None:
    ids, starts = np.full((12, 8), 7), np.zeros((12, 8), np.uint8)  # a word a row: all or nothing
    count = assert_equals_cpu(ids, config=EXACT_SPANS, starts=starts)
    assert 12 < count < 84


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**32, 2**63 + 1, 2**64 - 1, -(2**63)])
def test_masks_equal_the_cpu_for_64_bit_seeds_and_ids(seed: int) -> None:
    examples = np.array([0, 2**32 - 1, 2**32, 2**63, 2**64 - 1], np.uint64)
    assert assert_equals_cpu(ids_for(5, 6), examples=examples.view(np.int64), seed=seed)


@pytest.mark.parametrize("epoch", [0, 1, 2**24 - 1])
def test_masks_equal_the_cpu_in_every_epoch(epoch: int) -> None:
    assert assert_equals_cpu(ids_for(2, 20), epoch=epoch)


@pytest.mark.parametrize("size", [6, 1 << 20])
def test_replacements_equal_the_cpu_in_small_and_huge_vocabularies(size: int) -> None:
    vocabulary = VocabularyInfo(size, 0, (0, 1, 2))
    ids = random_ids(20, 1000, vocabulary)  # so many that the carry matters
    assert assert_equals_cpu(ids, config=REPLACE_ALL, vocabulary=vocabulary) > 9000


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64])
def test_the_integer_type_does_not_matter(dtype: type[np.integer]) -> None:
    ids = ids_for(3, 12)
    starts = starts_for(WORDS, 3, 12)
    assert assert_equals_cpu(ids.astype(dtype), config=WORDS, starts=starts.astype(np.int32))
    assert assert_equals_cpu(ids.astype(dtype), config=WORDS, starts=starts == 1)


def test_rows_that_do_not_lie_side_by_side_are_masked_alike() -> None:
    ids, starts = ids_for(4, 20), starts_for(WORDS, 4, 20)
    batch = mask_batch_on_device(
        on_device(ids.repeat(2, 1))[:, ::2], example_ids=on_device(np.arange(4).repeat(2))[::2],
        epoch=3, seed=11, config=WORDS, vocabulary=SMALL,
        word_starts=on_device(starts.repeat(2, 1))[:, ::2],
    )  # fmt: skip
    assert batch.input_ids.tolist() == mask(ids, config=WORDS, starts=starts).input_ids.tolist()


# The capacity


@pytest.mark.parametrize("capacity", [0, 17, 64, 65, 200])
def test_what_does_not_fit_is_left_out_and_counted(capacity: int) -> None:
    config = dataclasses.replace(TOKENS, rate=1.0)
    ids = np.full((8, 8), 7)
    assert assert_equals_cpu(ids, config=config, capacity=capacity) == 64


def test_nothing_is_written_behind_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    real, guarded = torch.empty, []

    def empty_with_a_guard(shape: Any, **options: Any) -> torch.Tensor:
        size = int(np.prod(shape))
        whole = real((size + 512,), **options).fill_(77)
        guarded.append(whole[size:])
        return whole[:size].view(shape)

    monkeypatch.setattr(torch, "empty", empty_with_a_guard)
    batch = mask(np.full((7, 9), 7), config=dataclasses.replace(TOKENS, rate=1.0), capacity=20)
    assert batch.row_offsets[-1] == 63
    assert len(guarded) == 7
    assert all((guard == 77).all() for guard in guarded)


@pytest.mark.parametrize("unit", Unit)
def test_the_default_capacity_holds_what_is_predicted(unit: Unit) -> None:
    config = MaskingConfig(unit=unit)
    ids, starts = ids_for(64, 128), starts_for(config, 64, 128)
    count = len(
        mask_batch(ids, example_ids=np.arange(64), epoch=0, seed=0, config=config,
                   vocabulary=SMALL, word_starts=starts).labels
    )  # fmt: skip
    capacity = default_capacity(ids.size, config)
    assert capacity % 64 == 0
    assert count + 100 < capacity < ids.size // 2
    assert default_capacity(ids.size, dataclasses.replace(config, rate=1.0)) == ids.size
    assert default_capacity(0, config) == default_capacity(1, config) == 64


def test_the_default_capacity_is_eight_deviations_above_the_mean() -> None:
    # 65,536 tokens: mean 9,830.4, standard deviation 91.4
    assert default_capacity(65_536, MaskingConfig()) == 10_624  # 10,562 rounded up to 64


# Wrong input


@pytest.mark.parametrize("number", [50, 2**40, -1, -(2**63)])
def test_ids_outside_the_vocabulary_are_counted_and_left_alone(number: int) -> None:
    ids = ids_for(3, 10)
    ids[1, 4] = ids[1, 7] = number
    batch = mask(ids, config=dataclasses.replace(TOKENS, rate=1.0))
    assert batch.ids_outside.tolist() == [0, 2, 0]
    assert batch.input_ids[1, 4] == batch.input_ids[1, 7] == number
    assert not {14, 17} & set(batch.positions[: int(batch.row_offsets[-1])].tolist())


def test_wrong_arguments_are_named() -> None:
    ids = ids_for(2, 5)
    with pytest.raises(ValueError, match="input_ids: integers"):
        mask(ids.astype(np.float32))
    with pytest.raises(ValueError, match="example_ids: integers"):
        mask(ids, examples=np.arange(3))
    with pytest.raises(ValueError, match="epoch: 0 to 16777215, not 16777216"):
        mask(ids, epoch=2**24)
    with pytest.raises(ValueError, match="capacity: "):
        mask(ids, capacity=-1)
    with pytest.raises(ValueError, match=r"masking\.rate"):
        mask(ids, config=MaskingConfig(rate=1.5))
    with pytest.raises(ValueError, match="unit `word` needs them"):
        mask(ids, config=WORDS)
    with pytest.raises(ValueError, match="word_starts: bool or integers"):
        mask(ids, config=WORDS, starts=np.ones((2, 4), bool))


# A real device


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_DEVICE, reason="no CUDA device")
@pytest.mark.parametrize("config", POLICIES, ids=NAMES)
def test_the_host_waits_for_nothing(config: MaskingConfig) -> None:
    ids, examples = on_device(ids_for(64, 512)), on_device(np.arange(64))
    starts = starts_for(config, 64, 512)
    words = None if starts is None else on_device(starts)
    fresh = dataclasses.replace(config, rate=0.123)  # so that its table is uploaded here, too
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask_batch_on_device(
            ids, example_ids=examples, epoch=0, seed=1, config=fresh, vocabulary=SMALL,
            word_starts=words,
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_DEVICE, reason="no CUDA device")
@pytest.mark.parametrize("config", POLICIES, ids=NAMES)
@pytest.mark.parametrize(("rows", "length"), [(256, 512), (2000, 128), (3, 5000)])
def test_large_batches_equal_the_cpu(config: MaskingConfig, rows: int, length: int) -> None:
    ids = random_ids(rows, length, LARGE)
    starts = starts_for(config, rows, length)
    at_rate = dataclasses.replace(config, rate=0.15)
    assert assert_equals_cpu(ids, config=at_rate, vocabulary=LARGE, starts=starts)
