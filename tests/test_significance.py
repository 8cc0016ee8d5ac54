"""Settings are called different as often as is promised, by statistics that tables confirm."""

import math

import numpy as np
import pytest

from mlmlab.analysis.significance import (
    Difference,
    Sample,
    compare,
    difference,
    document_errors,
    holm,
)
from mlmlab.analysis.student import critical_t, two_sided_p
from mlmlab.analysis.verdict import verdict
from mlmlab.evaluation.documents import DocumentLosses

SEED_SPREAD = 0.01
"""Standard deviation of a setting's loss between seeds: 1% of its perplexity."""
DOCUMENTS = 2000


def sample(rng: np.random.Generator, seeds: int, loss: float, shape: np.ndarray) -> Sample:
    """A setting's runs: each has an effect of its seed, and noise on each document.

    Args:
        shape: float64 `[2, documents]`: how hard each document is for any model, and its tokens.
    """
    hardness, counts = shape
    losses, documents = {}, {}
    for seed in range(seeds):
        effect = loss + rng.normal(0, SEED_SPREAD)
        sums = counts * (hardness + effect + rng.normal(0, 0.1, len(counts)))
        documents[seed] = DocumentLosses(sums, counts.astype(np.int64), "the test")
        losses[seed] = float(sums.sum() / counts.sum())
    return Sample(losses, documents)


def documents(rng: np.random.Generator, count: int = DOCUMENTS) -> np.ndarray:
    return np.stack([rng.normal(2, 0.5, count), rng.integers(1, 20, count).astype(float)])


def called_different(reports: int, seeds: int, effects: tuple[float, ...]) -> int:
    """In how many reports at least one setting is called different from the best."""
    rng = np.random.default_rng(15)
    count = 0
    for _ in range(reports):
        shape = documents(rng)
        samples = {str(n): sample(rng, seeds, effect, shape) for n, effect in enumerate(effects)}
        outcome = compare(samples)
        assert outcome is not None
        count += any(other.is_decided for other in outcome.others)
    return count


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_settings_are_called_different_in_five_percent_of_reports(seeds: int) -> None:
    count = called_different(1000, seeds, (0.0, 0.0))
    assert 33 <= count <= 67  # 50 ± 2.5 standard deviations of the binomial distribution


def test_picking_the_best_of_several_equal_settings_makes_no_difference() -> None:
    assert called_different(500, 5, (0.0, 0.0, 0.0, 0.0)) <= 37  # 25, and 2.5 of them


def test_a_difference_of_three_seed_deviations_is_found_in_most_reports_with_five_seeds() -> None:
    found = called_different(1000, 5, (0.0, 3 * SEED_SPREAD))
    assert found >= 900, found


@pytest.mark.parametrize(
    # Fisher and Yates, table III; the quantiles of 0.05, 0.01 and 0.001
    ("degrees", "tabulated"),
    [
        (1, (12.706, 63.657, 636.619)),
        (2, (4.303, 9.925, 31.599)),
        (4, (2.776, 4.604, 8.610)),
        (10, (2.228, 3.169, 4.587)),
        (120, (1.980, 2.617, 3.373)),
    ],
)
def test_students_t_is_that_of_the_tables(degrees: int, tabulated: tuple[float, ...]) -> None:
    for p, t in zip((0.05, 0.01, 0.001), tabulated, strict=True):
        assert critical_t(p, degrees) == pytest.approx(t, abs=6e-4)
        assert two_sided_p(t, degrees) == pytest.approx(p, rel=2e-3)
        assert two_sided_p(-t, degrees) == two_sided_p(t, degrees)
    assert two_sided_p(0.0, degrees) == 1.0


def test_one_degree_of_freedom_is_cauchys_distribution() -> None:
    for t in (1e-3, 0.3, 1.0, 7.0, 1e4):
        assert two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-7)


def test_holm_corrects_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_t_test_is_over_the_seeds_that_both_have() -> None:
    found = difference(Sample({0: 1.0, 1: 1.2, 2: 1.4}), Sample({1: 1.0, 2: 1.3, 3: 9.0}))
    assert found is not None
    assert found.seeds == 2
    assert found.mean == pytest.approx(0.15)
    assert found.seed_error == pytest.approx(0.05)
    assert found.p == pytest.approx(two_sided_p(3.0, 1))
    low, high = found.interval()
    assert (low + high) / 2 == pytest.approx(0.15)
    assert high - low == pytest.approx(2 * 12.706 * 0.05, rel=1e-4)
    assert difference(Sample({0: 1.0}), Sample({1: 1.0})) is None


def test_a_seed_that_changes_nothing_is_no_proof() -> None:
    found = difference(Sample({0: 1.0, 1: 1.0}), Sample({0: 2.0, 1: 2.0}))
    assert found is not None
    assert math.isnan(found.p)


def test_the_errors_are_what_new_seeds_and_new_documents_show() -> None:
    """The truth, by drawing again: both together, and the documents with the seeds as they are."""
    rng = np.random.default_rng(3)
    seeds, count, repeats = 4, 300, 2000
    seed_spread, document_spread, rest = 0.02, 0.3, 0.5
    sums = np.empty((repeats, 3))
    for repeat in range(repeats):
        counts = rng.integers(1, 20, count)
        by_seed = rng.normal(0, seed_spread, (seeds, 1))
        by_document = rng.normal(0, document_spread, count)
        each = 0.1 + by_seed + by_document + rng.normal(0, rest, (seeds, count))
        means = (each * counts).sum(1) / counts.sum()
        document_error, shared_error = document_errors(each * counts, counts)
        seed_error = means.std(ddof=1) / math.sqrt(seeds)
        found = Difference(seeds, means.mean(), seed_error, document_error, shared_error, 1.0)
        unbiased = seed_error**2 + document_error**2 - shared_error**2
        lowest = max(seed_error, document_error)  # what seeds and documents explain is no less
        assert found.total_error == pytest.approx(max(math.sqrt(max(unbiased, 0)), lowest))
        sums[repeat] = means.mean(), unbiased, shared_error**2
    weight = 20 * 19 * 39 / 6 / 20 / count / 10**2  # mean square of counts over square of mean
    shared = rest**2 * weight / seeds
    true = seed_spread**2 / seeds + document_spread**2 * weight + shared
    assert sums[:, 2].mean() == pytest.approx(shared, rel=0.05)
    assert sums[:, 1].mean() == pytest.approx(true, rel=0.05)
    assert sums[:, 0].var() == pytest.approx(true, rel=0.1)


def test_a_document_without_predicted_tokens_counts_for_nothing() -> None:
    sums = np.array([[1.0, -2.0, 3.0], [2.0, 0.0, 1.0]])
    counts = np.array([4, 5, 6])
    with_empty = np.insert(sums, 1, 0.0, axis=1), np.insert(counts, 1, 0)
    assert document_errors(*with_empty) == document_errors(sums, counts)


def said(samples: dict[str, Sample], baseline: str | None = None) -> str:
    return verdict(compare(samples, baseline), list(samples))


def test_the_verdict_names_the_winner_its_lead_and_how_sure_it_is() -> None:
    text = said({"a": Sample({0: 1.10, 1: 1.11, 2: 1.12}), "b": Sample({0: 1.0, 1: 1.0, 2: 1.03})})
    assert text.startswith("b is better than a, whose perplexity is 10.52% higher (95% interval ")
    assert "p = 0.0033 over 3 seeds" in text


def test_a_lead_that_seeds_can_make_is_not_called_one() -> None:
    text = said({"a": Sample({0: 1.0, 1: 1.3, 2: 1.1}), "b": Sample({0: 1.1, 1: 1.1, 2: 1.1})})
    assert text.startswith("Not decided: b has the lower perplexity")
    assert "is better than" not in text


def test_one_seed_says_which_checkpoint_is_better_and_nothing_of_settings() -> None:
    rng = np.random.default_rng(0)
    shape = documents(rng)
    text = said({"a": sample(rng, 1, 0.1, shape), "b": sample(rng, 1, 0.0, shape)})
    assert text.startswith("These two checkpoints differ by ")
    assert " in perplexity; b is better." in text
    assert " ± " in text.split("in perplexity")[0]
    assert "not whether a setting helps" in text
    without = said({"a": Sample({0: 1.1}), "b": Sample({0: 1.0})})
    assert without.startswith("These two checkpoints differ by 10.5% in perplexity; b is better.")


def test_with_a_baseline_only_the_comparisons_with_it_count() -> None:
    rng = np.random.default_rng(1)
    shape = documents(rng)
    effects = {"base": 0.0, "better": -0.2, "worse": 0.2, "same": 0.0}
    samples = {name: sample(rng, 5, effect, shape) for name, effect in effects.items()}
    outcome, against_best = compare(samples, "base"), compare(samples)
    assert outcome is not None
    assert against_best is not None
    assert (outcome.comparisons, against_best.comparisons) == (3, 6)
    text = said(samples, "base")
    assert text.startswith("better is better than the baseline, base: its perplexity is 1")
    assert "Worse: worse. Not decided: same." in text


def test_few_documents_are_named_as_a_doubt() -> None:
    rng = np.random.default_rng(2)
    counts = np.full(5, 10)
    by_document = np.array([-1.0, -0.5, 0.2, 1.0, 1.3])
    losses, other = {}, {}
    for seed in range(3):
        noise = rng.normal(0, 0.001, 5)
        losses[seed] = DocumentLosses(counts * (2 + by_document + noise), counts, "")
        other[seed] = DocumentLosses(counts * np.full(5, 2.0), counts, "")
    samples = {
        name: Sample({s: float(d.loss_sums.sum() / 50) for s, d in one.items()}, one)
        for name, one in (("a", losses), ("b", other))
    }
    text = said(samples)
    assert text.startswith("b is better than a")
    assert "may not hold on other documents" in text
