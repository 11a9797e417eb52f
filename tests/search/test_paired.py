import numpy as np
import pytest
from scipy import stats

from mpq.search.objective import make_objectives
from mpq.search.paired import p_better

KL, ACCURACY = make_objectives(["kl", "accuracy"])


def test_the_p_value_is_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    one, other = rng.gamma(2, 1, 30), rng.gamma(2, 1.1, 30)
    expected = stats.ttest_rel(one, other, alternative="less").pvalue
    assert p_better(one, other, KL) == pytest.approx(expected)
    assert p_better(one, other, ACCURACY) == pytest.approx(1 - expected)


def test_only_windows_that_both_have_seen_count():
    one, other = np.array([1.0, 2.0, 3.5]), np.array([1.1, 2.3, 3.6, 0.0, 0.0])
    assert p_better(one, other, KL) == p_better(one, other[:3], KL)
    assert p_better(other, one, KL) == pytest.approx(1 - p_better(one, other, KL))


def test_without_spread_the_difference_decides():
    ones = np.ones(4)
    assert p_better(ones, ones + 1, KL) == 0
    assert p_better(ones, ones, KL) == 0.5
    assert p_better(ones + 1, ones, KL) == 1
    assert p_better(np.array([1.0]), np.array([2.0]), KL) == 0
