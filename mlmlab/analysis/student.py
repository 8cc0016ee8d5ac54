"""Student's t distribution, without SciPy."""

import math


def two_sided_p(t: float, degrees: int) -> float:
    """The probability of a value at least as far from 0 as `t`."""
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def critical_t(p: float, degrees: int) -> float:
    """The t whose `two_sided_p` is `p`, by bisection: 4.303 for 0.05 and 2 degrees of freedom."""
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > p:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > p else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized, by its continued fraction (DLMF 8.17.22) with Lentz's method; where that
    converges slowly, by the symmetry in DLMF 8.17.4."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            d = 1.0 / (1.0 + coefficient * d)
            c = 1.0 + coefficient / c
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta)
    return front * fraction / a
