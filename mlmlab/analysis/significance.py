"""Whether settings differ: losses paired by seed, and by document.

A difference is of mean losses, in nats per predicted token: the logarithm of a ratio of
perplexities. What is known of it is uncertain in two ways: other seeds would give other weights,
and other test documents would be harder or easier for one setting than for the other. All runs
share the test documents, so that only the differences of a document's losses count.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mlmlab.analysis.student import critical_t, two_sided_p
from mlmlab.evaluation.documents import DocumentLosses

LEVEL = 0.05
"""Settings that do not differ are called different in at most this share of all reports."""


@dataclass(frozen=True, eq=False)
class Sample:
    """The runs of a setting."""

    losses: Mapping[int, float]
    """By seed, nats per predicted token."""
    documents: Mapping[int, DocumentLosses] = field(default_factory=dict)
    """By seed; none where a run has not kept them."""

    @property
    def mean(self) -> float:
        """Of the losses."""
        return statistics.fmean(self.losses.values())

    @property
    def standard_error(self) -> float:
        """Of the mean, from the spread between seeds; nan for a single one."""
        losses = list(self.losses.values())
        if len(losses) < 2 or not all(map(math.isfinite, losses)):
            return math.nan
        return statistics.stdev(losses) / math.sqrt(len(losses))


@dataclass(frozen=True)
class Difference:
    """A setting's loss minus another's, over the seeds that both have."""

    seeds: int
    mean: float
    seed_error: float
    """Standard error of the mean on these test documents, from the spread between seeds; nan for
    fewer than two, or if the seeds give equal figures."""
    document_error: float
    """Standard error of the mean for these seeds, from the spread between documents; nan where
    they are not known."""
    shared_error: float
    """What seeds and documents only explain together: it is part of both errors."""
    p: float
    """Of a t test over seeds; nan without `seed_error`."""

    @property
    def total_error(self) -> float:
        """Of the mean, for other seeds and other documents: what is part of both counts once."""
        squares = self.seed_error**2 + self.document_error**2 - self.shared_error**2
        return math.sqrt(max(squares, self.seed_error**2, self.document_error**2))

    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the difference between the settings, on these test
        documents; nan where there is no t test."""
        if math.isnan(self.seed_error):
            return math.nan, math.nan
        margin = critical_t(0.05, self.seeds - 1) * self.seed_error
        return self.mean - margin, self.mean + margin


def difference(sample: Sample, other: Sample) -> Difference | None:
    """The first one's loss minus the other's; None if they have no seed in common."""
    seeds = sorted(sample.losses.keys() & other.losses.keys())
    if not seeds:
        return None
    paired = [sample.losses[seed] - other.losses[seed] for seed in seeds]
    mean, seed_error, p = statistics.fmean(paired), math.nan, math.nan
    if len(seeds) > 1 and (spread := statistics.stdev(paired)) > 0:
        seed_error = spread / math.sqrt(len(seeds))
        p = two_sided_p(mean / seed_error, len(seeds) - 1)
    document_error = shared_error = math.nan
    if all(seed in one.documents for seed in seeds for one in (sample, other)):
        sums = [sample.documents[s].loss_sums - other.documents[s].loss_sums for s in seeds]
        counts = sample.documents[seeds[0]].masked_tokens
        document_error, shared_error = document_errors(np.stack(sums), counts)
    return Difference(len(seeds), mean, seed_error, document_error, shared_error, p)


def document_errors(
    differences: NDArray[np.float64], masked_tokens: NDArray[np.int64]
) -> tuple[float, float]:
    """The standard errors `document_error` and `shared_error` of a `Difference`.

    The mean over seeds is a ratio of sums over documents, whose variance is that of its residuals
    (Cochran 1977, section 2.11). Averaged over seeds, they have what differs between documents,
    and what is left of what differs between documents for one seed and not for another; the
    latter shows in their spread around that average.

    Args:
        differences: float64 `[seeds, documents]`, of the loss sums.
        masked_tokens: int64 `[documents]`.
    """
    scored = masked_tokens > 0
    differences, counts = differences[:, scored], masked_tokens[scored]
    seeds, documents = differences.shape
    if documents < 2:
        return math.nan, math.nan
    total = counts.sum()
    means = differences.sum(axis=1, keepdims=True) / total  # [seeds, 1]
    residuals = (differences - means * counts) / total  # [seeds, documents]
    average = residuals.mean(axis=0)
    factor = documents / (documents - 1)
    document_error = math.sqrt(factor * float(np.square(average).sum()))
    if seeds < 2:
        return document_error, math.nan
    around = float(np.square(residuals - average).sum()) / (seeds * (seeds - 1))
    return document_error, math.sqrt(factor * around)


@dataclass(frozen=True)
class Compared:
    """A setting compared with the reference."""

    name: str
    difference: Difference
    """From the reference."""
    p: float
    """Corrected for the number of comparisons; nan where there is no t test."""

    @property
    def is_decided(self) -> bool:
        """Whether the two are called different."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Outcome:
    """What a comparison of settings comes to."""

    best: str
    """The setting with the lowest mean loss."""
    reference: str
    """The baseline; without one, the best setting."""
    is_against_baseline: bool
    others: tuple[Compared, ...]
    """All settings but the reference that share a seed with it."""
    comparisons: int
    """How many t tests p is corrected for."""


def compare(samples: Mapping[str, Sample], baseline: str | None = None) -> Outcome | None:
    """Settings against a baseline; or against the best one, which is found among the same figures,
    so that p is corrected for all pairs of settings then.

    Args:
        samples: by the setting's name; losses that are not finite are left out.

    Returns:
        None if no setting has a loss, or the baseline has none.
    """
    known = {}
    for name, sample in samples.items():
        losses = {seed: loss for seed, loss in sample.losses.items() if math.isfinite(loss)}
        if losses:
            known[name] = Sample(losses, sample.documents)
    if not known or (baseline is not None and baseline not in known):
        return None
    best = min(known, key=lambda name: known[name].mean)
    reference = best if baseline is None else baseline
    others = [name for name in known if name != reference]
    pairs = [(name, reference) for name in others]
    if baseline is None:
        pairs += combinations(others, 2)
    found = {pair: difference(known[pair[0]], known[pair[1]]) for pair in pairs}
    tested = {pair: one.p for pair, one in found.items() if one and not math.isnan(one.p)}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    compared = (
        Compared(name, one, corrected.get((name, reference), math.nan))
        for name in others
        if (one := found[name, reference])
    )
    return Outcome(best, reference, baseline is not None, tuple(compared), len(tested))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for their number (Holm 1979): the smallest times that number, the next times one
    less, and so on, none smaller than the one before it."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
