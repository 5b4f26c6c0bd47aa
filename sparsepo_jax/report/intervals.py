"""A mean and how far to trust it: over seeds (Student's t), or of one share over pairs (Wilson)."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """low and high: ends of the 95 % interval; None where there is none.

    kind: "t" over n seeds, "wilson" over n pairs, None for a single value.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    kind: str | None


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """mean +- t_{n-1} s / sqrt(n), s with n - 1 in its denominator (Student 1908).

    One value has no interval. ValueError: no value.
    """
    n = len(values)
    if not n:
        raise ValueError("the mean of nothing")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(1, mean, None, None, None)
    from scipy.special import stdtrit  # imported late: it takes half a second

    s = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * s / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half, "t")


def wilson(share: float, n: int) -> Interval:
    """95 % interval of a share of n independent cases (Wilson 1927).

    It says what other pairs might have given, not what another seed might.
    """
    z = 1.959963984540054
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return Interval(n, share, max(0.0, centre - half), min(1.0, centre + half), "wilson")
