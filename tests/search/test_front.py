import itertools

import numpy as np
import pytest

from mpq.search.front import TrialRecord, best_record, losses, pareto_front, trial_row
from mpq.search.objective import make_objectives

OBJECTIVES = make_objectives(["kl", "memory_density"])


def record(number, *values, **more):
    return TrialRecord(
        number=number,
        state=more.pop("state", "complete"),
        source=more.pop("source", "sampler"),
        choices=(number,),
        digest=str(number),
        values=values,
        costs={"memory_density": values[-1], "weight_bits": 4.5},
        **more,
    )


def beats(left, right):
    pairs = list(zip(losses(left, OBJECTIVES), losses(right, OBJECTIVES), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def test_the_front_is_what_nobody_beats():
    rng = np.random.default_rng(0)
    records = [record(i, *np.round(rng.random(2), 1)) for i in range(200)]
    front = pareto_front(records, OBJECTIVES)
    values = {r.values for r in records}
    expected = {v for v in values if not any(beats(other, v) for other in values)}
    assert {r.values for r in front} == expected
    assert len(front) == len(expected)
    assert all(a.values[1] >= b.values[1] for a, b in itertools.pairwise(front)), (
        "sorted by the last objective, best first"
    )


def test_of_equals_the_earliest_stands():
    assert [r.number for r in pareto_front([record(3, 1, 1), record(2, 1, 1)], OBJECTIVES)] == [2]


@pytest.mark.parametrize(
    "more",
    [{"state": "pruned"}, {"is_feasible": False}, {"is_evaluated": False}],
)
def test_only_measured_plans_within_budget_are_candidates(more):
    assert pareto_front([record(0, 0.1, 9, **more)], OBJECTIVES) == []
    assert best_record([record(0, 0.1, 9, **more)], OBJECTIVES[0], OBJECTIVES) is None


def test_infinite_values_are_no_candidates():
    assert pareto_front([record(0, np.inf, 9)], OBJECTIVES) == []


def test_best_record_follows_the_direction():
    records = [record(0, 0.3, 2), record(1, 0.1, 1), record(2, 0.1, 3)]
    assert best_record(records, OBJECTIVES[0], OBJECTIVES).number == 1
    assert best_record(records, OBJECTIVES[1], OBJECTIVES).number == 2


def test_a_row_says_what_was_measured_and_nothing_else():
    row = trial_row(record(0, 0.3, 2, seconds=2.0, forward_seconds=1.5), OBJECTIVES)
    assert row["kl"] == 0.3
    assert row["memory_density"] == 2
    assert row["weight_bits"] == 4.5
    assert row["overhead_seconds"] == 0.5
    over = trial_row(record(0, 0.3, 2, is_evaluated=False, is_feasible=False), OBJECTIVES)
    assert over["kl"] == ""
    assert over["memory_density"] == 2
    assert (over["feasible"], over["evaluated"]) == (0, 0)
