"""Claims about `mask_batch(selected=)`: tokens that someone else has selected."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlmlab.masking import Budget, Corrupt, MaskingConfig, VocabularyInfo, mask_batch

VOCABULARY = VocabularyInfo(1000, 4, (0, 1, 2, 3, 4))
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 1000, (16, 96)).astype(np.uint16)
STARTS = (RANDOM.random(IDS.shape) < 0.7).astype(np.uint8)
EXAMPLES = np.arange(16) * 7 + 3


def masked(config: MaskingConfig, selected: NDArray[np.bool_] | None = None, **more: object):  # type: ignore[no-untyped-def]
    arguments = {"example_ids": EXAMPLES, "epoch": 2, "seed": 5, "vocabulary": VOCABULARY, **more}
    return mask_batch(IDS, config=config, selected=selected, **arguments)  # type: ignore[arg-type]


def selection_of(batch) -> NDArray[np.bool_]:  # type: ignore[no-untyped-def]
    chosen = np.zeros(IDS.size, np.bool_)
    chosen[batch.positions] = True
    return chosen.reshape(IDS.shape)


@pytest.mark.parametrize(
    "policy",
    [
        MaskingConfig(rate=0.3, budget=Budget.EXACT),
        MaskingConfig(rate=0.3, unit="word"),
        MaskingConfig(rate=0.3, unit="span", mask_fraction=0.5, random_fraction=0.5),
    ],
)
def test_tokens_selected_elsewhere_are_corrupted_as_the_policys_own(policy: MaskingConfig) -> None:
    starts = None if policy.unit == "token" else STARTS
    own = masked(policy, word_starts=starts)
    given = masked(policy, selection_of(own))
    for one, other in zip(own, given, strict=True):
        assert np.array_equal(one, other)


def test_words_selected_elsewhere_are_corrupted_at_once_as_the_policys_own() -> None:
    config = MaskingConfig(rate=0.3, unit="word", corrupt=Corrupt.UNIT, mask_fraction=0.5)
    own = masked(config, word_starts=STARTS)
    begins = STARTS.astype(bool) | (IDS <= 4)  # at a special token, after one, and with the row
    begins[:, 1:] |= IDS[:, :-1] <= 4
    units = np.cumsum(begins, axis=1)
    for names in (units, units * -7):  # whatever numbers name them
        given = masked(config, selection_of(own), units=names)
        for one, other in zip(own, given, strict=True):
            assert np.array_equal(one, other)


def test_units_are_for_what_is_selected_elsewhere_and_corrupted_by_units() -> None:
    chosen, units = np.ones(IDS.shape, np.bool_), np.zeros(IDS.shape, np.int64)
    per_unit = MaskingConfig(corrupt=Corrupt.UNIT)
    with pytest.raises(ValueError, match="units"):
        masked(per_unit, units=units)
    with pytest.raises(ValueError, match="units"):
        masked(MaskingConfig(), chosen, units=units)
    for wrong in (units[1:], units.astype(np.float32)):
        with pytest.raises(ValueError, match="units: integers"):
            masked(per_unit, chosen, units=wrong)


def test_a_policy_of_ones_own_needs_the_tokens_that_it_has_selected() -> None:
    with pytest.raises(ValueError, match="my_ideas:EveryOther"):
        masked(MaskingConfig(unit="my_ideas:EveryOther"))


def test_the_rate_does_not_count() -> None:
    chosen = RANDOM.random(IDS.shape) < 0.5
    low, high = (masked(MaskingConfig(rate=rate), chosen) for rate in (0.01, 0.9))
    assert all(np.array_equal(one, other) for one, other in zip(low, high, strict=True))


def test_protected_ids_are_left_out_and_all_others_are_predicted() -> None:
    batch = masked(MaskingConfig(), np.ones(IDS.shape, np.bool_))
    assert np.array_equal(batch.positions, np.flatnonzero(IDS.ravel() > 4))
    assert np.array_equal(batch.labels, IDS.ravel()[batch.positions])
    assert batch.row_offsets[-1] == len(batch.positions)
    protected = IDS.ravel() <= 4
    assert np.array_equal(batch.input_ids.ravel()[protected], IDS.ravel()[protected])


def test_nothing_selected_is_nothing_predicted() -> None:
    batch = masked(MaskingConfig(), np.zeros(IDS.shape, np.bool_))
    assert len(batch.positions) == 0
    assert np.array_equal(batch.input_ids, IDS)


def test_torch_tensors_get_the_masks_of_numpy_arrays() -> None:
    chosen = RANDOM.random(IDS.shape) < 0.2
    expected = masked(MaskingConfig(), chosen)
    found = mask_batch(
        torch.from_numpy(IDS.astype(np.int64)), example_ids=torch.from_numpy(EXAMPLES), epoch=2,
        seed=5, config=MaskingConfig(), vocabulary=VOCABULARY, selected=torch.from_numpy(chosen),
    )  # fmt: skip
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one, other.numpy())


@pytest.mark.parametrize(
    ("chosen", "config", "message"),
    [
        (np.ones((16, 95), np.bool_), MaskingConfig(), "selected: bool"),
        (np.ones(IDS.shape, np.int64), MaskingConfig(), "selected: bool"),
        (np.ones(IDS.shape, np.bool_), MaskingConfig(corrupt=Corrupt.UNIT), "corrupt=unit"),
    ],
)
def test_what_is_no_selection_is_refused(
    chosen: NDArray[np.bool_], config: MaskingConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        masked(config, chosen)
