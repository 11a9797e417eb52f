import numpy as np
import pytest

from mpq.search.front import TrialRecord
from mpq.search.guided import ladder, uniform_stops
from mpq.search.objective import make_objectives
from mpq.search.rungs import (
    Seen,
    bracket,
    is_hopeless,
    pruner_shares,
    rung_ranges,
    trial_ranges,
)
from tests.search.synthetic import Problem, make_sites, make_space

RESOURCE = "weight_bits"


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(2)))


@pytest.mark.parametrize(
    ("num_windows", "batch_size", "expected"),
    [
        (32, 4, [(i, i + 4) for i in range(0, 32, 4)]),
        (10, 4, [(0, 4), (4, 8), (8, 10)]),
        (3, 8, [(0, 3)]),
    ],
)
def test_a_pruner_sees_whole_batches_that_cover_all_windows(num_windows, batch_size, expected):
    shares = pruner_shares(num_windows, batch_size)
    assert rung_ranges(shares, num_windows, batch_size) == expected


def test_trials_climb_their_rungs_or_take_a_pruners_steps():
    evaluate = Problem(make_sites(1))
    rungs = trial_ranges([0.25, 1.0], evaluate, is_pruned=False)
    assert rungs == rung_ranges([0.25, 1.0], evaluate.num_windows, evaluate.batch_size)
    steps = trial_ranges([0.25, 1.0], evaluate, is_pruned=True)
    assert len(steps) > len(rungs)
    assert steps[-1][1] == evaluate.num_windows


def test_shares_become_whole_batches():
    assert rung_ranges([0.25, 1.0], 64, 8) == [(0, 16), (16, 64)]
    assert rung_ranges([0.01, 0.3, 1.0], 20, 8) == [(0, 8), (8, 20)]
    assert rung_ranges([1.0], 20, 8) == [(0, 20)]
    assert rung_ranges([0.1, 0.4, 0.7, 1.0], 100, 1) == [(0, 10), (10, 40), (40, 70), (70, 100)]


def test_a_bracket_ends_at_the_next_step_of_the_ladder(space):
    ladders = {RESOURCE: ladder(uniform_stops(space, RESOURCE))}
    bits = space.bits(RESOURCE, space.uniform["bfp4"])
    cheaper = (1, *space.uniform["bfp4"][1:])
    assert bracket(space, space.uniform["bfp4"], ladders, [RESOURCE]) == {RESOURCE: bits}
    own = space.bits(RESOURCE, cheaper)
    limit = bracket(space, cheaper, ladders, [RESOURCE])[RESOURCE]
    assert own <= limit <= bits
    assert limit in ladders[RESOURCE]
    assert bracket(space, cheaper, {}, [RESOURCE]) == {RESOURCE: own}


WINDOWS = np.linspace(0.5, 1.5, 16)


def finished(space, windows, state="complete", **more):
    values = (float(windows.mean()), 3.5)
    return TrialRecord(
        number=0,
        state=state,
        source="sampler",
        choices=space.uniform["bfp3"],
        digest="",
        values=values,
        costs={},
        windows=windows,
        **more,
    )


def judged(space, windows, records, names=("kl", RESOURCE), first_values=None, limits=None):
    objectives = make_objectives(names)
    choices = (2, 0, *space.uniform["bfp3"][2:])
    seen = Seen(
        choices=choices,
        windows=windows,
        first_values=first_values or (float(windows.mean()), 3.5),
    )
    limits = {RESOURCE: 10**9} if limits is None else limits
    return is_hopeless(seen, space, records, objectives, quality=objectives[0], limits=limits)


def test_a_plan_goes_on_unless_a_finished_one_is_better_on_the_same_windows(space):
    noise = np.random.default_rng(0).normal(0, 0.05, 16)
    standing = [finished(space, WINDOWS)]
    assert judged(space, (WINDOWS + 0.1 + noise)[:4], standing)
    assert not judged(space, (WINDOWS - 0.1 + noise)[:4], standing)
    assert not judged(space, WINDOWS[:4] + 0.001 + np.array([1, -1, 1, -1]), standing)
    # The windows that only the other has seen say nothing.
    later = np.concatenate([WINDOWS[:4] + 1, np.zeros(12)])
    assert not judged(space, WINDOWS[:4], [finished(space, later)])


def test_only_plans_that_cost_no_more_and_were_judged_in_full_count(space):
    better = finished(space, WINDOWS - 0.4)
    assert judged(space, WINDOWS[:4], [better])
    assert not judged(space, WINDOWS[:4], [better], limits={RESOURCE: 10})
    assert not judged(space, WINDOWS[:4], [finished(space, WINDOWS - 0.4, state="dropped")])
    assert not judged(space, WINDOWS[:4], [])


def test_a_plan_that_is_ahead_in_another_measure_goes_on(space):
    other = finished(space, WINDOWS - 0.4, first_rung=(0.3, 0.6, 3.5))
    names = ("kl", "accuracy", RESOURCE)
    assert judged(space, WINDOWS[:4], [other], names, first_values=(0.5, 0.6, 3.5))
    assert not judged(space, WINDOWS[:4], [other], names, first_values=(0.5, 0.7, 3.5))
