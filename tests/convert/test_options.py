"""What the solver may be asked: known words, possible numbers, nothing that is ignored."""

import pytest

from mpq.convert.options import SolverOptions
from mpq.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("method", "awq", "method must be one of gptq, rtn, not 'awq'"),
        ("groups", "dynamic", "groups must be one of static, stale, exact, not 'dynamic'"),
        ("grid", "lp", "grid must be one of absmax, mse, not 'lp'"),
        ("damping", -0.1, "damping must be from 0 to 1.0, not -0.1"),
        ("damping", float("nan"), "damping must be from 0 to 1.0, not nan"),
        ("damping", 1.5, "damping must be from 0 to 1.0, not 1.5"),
        ("batch_columns", 0, "batch_columns must be at least 1, not 0"),
    ],
)
def test_impossible_options_are_refused(key, value, told):
    with pytest.raises(ConfigError, match=told):
        SolverOptions(**{key: value})


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError, match=r"groups must be .*; grid must be .*; batch_columns"):
        SolverOptions(groups="no", grid="no", batch_columns=-1)


@pytest.mark.parametrize("setting", [{"act_order": True}, {"groups": "exact"}])
def test_round_to_nearest_does_not_ignore_an_order(setting):
    with pytest.raises(ConfigError, match="method rtn does not: leave them out"):
        SolverOptions(method="rtn", **setting)
