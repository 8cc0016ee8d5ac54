"""Pearson's chi-square test without scipy."""

import math

import numpy as np
from numpy.typing import ArrayLike


def tail(statistic: float, degrees: int) -> float:
    """P(chi-square > statistic), by the cube-root normal approximation (Wilson, Hilferty 1931).

    Within a fifth down to 1e-3 and a factor of two down to 1e-4, at any number of degrees.
    """
    variance = 2.0 / (9.0 * degrees)
    deviation = ((statistic / degrees) ** (1.0 / 3.0) - (1.0 - variance)) / math.sqrt(variance)
    return 0.5 * math.erfc(deviation / math.sqrt(2.0))


def p_value(observed: ArrayLike, shares: ArrayLike | None = None) -> float:
    """Chance of counts at least this far from `shares` (all equal unless given)."""
    counts = np.asarray(observed, np.float64)
    weights = np.ones_like(counts) if shares is None else np.asarray(shares, np.float64)
    expected = weights / weights.sum() * counts.sum()
    assert expected.min() >= 5.0, "too few draws for the approximation"
    return tail(float(((counts - expected) ** 2 / expected).sum()), counts.size - 1)
