"""Paired comparisons of plans over the windows that both have seen.

Windows differ in difficulty far more than plans do; judged on the same windows, plans differ by
their own doing. The test is Student's paired t-test ("The Probable Error of a Mean", Biometrika
6, 1908), one-sided: an objective is its windows' mean.
"""

import math

from scipy.special import stdtr

from mpq.search.objective import Objective
from mpq.search.space import FloatArray

SIGNIFICANCE = 0.05
"""Largest p-value at which a plan replaces another."""

HOPELESS = 0.3
"""Largest p-value for the other plan being better at which a plan is judged no further."""


def p_better(windows: FloatArray, other: FloatArray, quality: Objective) -> float:
    """One-sided p-value of "no better than the other", from the windows that both have seen.

    Small where `windows` are better than `other`'s, large where they are worse; where all
    windows differ by the same, 0, 0.5 or 1.
    """
    common = min(len(windows), len(other))
    gain = other[:common] - windows[:common]
    if quality.direction == "maximize":
        gain = -gain
    mean = float(gain.mean())
    error = float(gain.std(ddof=1)) / math.sqrt(common) if common > 1 else 0.0
    if not error > 0:
        return 0.5 - 0.5 * math.copysign(1, mean) if mean else 0.5
    return float(stdtr(common - 1, -mean / error))
