import numpy as np
import pytest
from scipy import stats

from mpq.search.anchors import Anchor, bits_of, make_anchors
from mpq.search.front import TrialRecord
from mpq.search.guided import optimum
from mpq.search.objective import make_objectives
from mpq.search.prove import bootstrap_mean, compare, prove, spread
from tests.search.synthetic import Problem, make_sites, make_space

OBJECTIVES = make_objectives(["kl", "weight_bits"])
KL = OBJECTIVES[0]


def test_the_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, 1.0, 200)
    found = bootstrap_mean(values, confidence=0.9, seed=1)
    other = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    assert found.mean == values.mean()
    width = other.high - other.low
    assert found.low == pytest.approx(other.low, abs=0.1 * width)
    assert found.high == pytest.approx(other.high, abs=0.1 * width)
    assert found == bootstrap_mean(values, confidence=0.9, seed=1)


PLANS = {"uniform": (0,), "allocation": (1,), "found": (2,)}


def judge(uniform, allocation, found, quality=KL):
    windows = {(0,): np.array(uniform), (1,): np.array(allocation), (2,): np.array(found)}
    anchor = Anchor(
        name="x", limits={}, uniform=(0,), uniform_name="bfp3", allocation=PLANS["allocation"]
    )
    return compare(anchor, PLANS, windows, quality=quality, confidence=0.95, seed=0)


def test_the_search_stands_only_where_it_beats_both_baselines():
    won = judge([2.0, 4.0], [2.0, 3.0], [1.0, 3.5])
    assert (won.returned, won.choices) == ("found", (2,))
    assert won.gain_over_uniform.mean == 0.75
    assert won.gain_over_allocation.mean == 0.25
    assert judge([2.0, 4.0], [1.0, 2.0], [1.5, 3.0]).returned == "allocation"
    lost = judge([1.0, 2.0], [1.5, 3.0], [1.2, 2.5])
    assert (lost.returned, lost.gain_over_uniform.mean) == ("uniform", 0.0)
    assert judge([1.0], [1.0], [1.0]).returned == "uniform"


def test_accuracy_is_better_when_it_is_higher():
    accuracy = make_objectives(["accuracy"])[0]
    won = judge([0.5, 0.5], [0.5, 0.6], [0.7, 0.7], accuracy)
    assert won.returned == "found"
    assert won.gain_over_uniform.mean == pytest.approx(0.2)


def records_of(space, problem, plans):
    found = []
    for number, choices in enumerate(plans):
        windows = problem(space.plan(choices))["kl"]
        found.append(
            TrialRecord(
                number=number,
                state="complete",
                source="sampler",
                choices=choices,
                digest=str(number),
                values=(float(windows.mean()), space.mean_bits("weight_bits", choices)),
                costs={},
                windows=windows,
            )
        )
    return found


def test_a_proof_judges_baselines_and_front_once_each_on_other_windows():
    problem = Problem(make_sites(2))
    space = make_space(problem)
    plans = list(space.uniform.values())
    plans += [
        optimum(space, space.damage, bits_of(space, choices, ["weight_bits"]))
        for choices in plans[1:-1]
    ]
    heldout = Problem(make_sites(2), num_windows=48)
    told = []
    proof = prove(
        space,
        records_of(space, problem, plans),
        OBJECTIVES,
        heldout,
        anchors=make_anchors(space, OBJECTIVES, compared=["weight_bits"], limits={}),
        plans=4,
        confidence=0.95,
        seed=0,
        on_plan=lambda done, total: told.append((done, total)),
    )
    assert heldout.calls == len(proof.contenders) == told[-1][0] == told[-1][1]
    assert proof.num_windows == 48
    assert [one.anchor for one in proof.comparisons] == list(space.uniform)
    for one in proof.comparisons:
        limits = bits_of(space, space.uniform[one.anchor], ["weight_bits"])
        assert space.bits("weight_bits", one.choices) <= limits["weight_bits"]
        best = min(one.uniform.mean, one.allocation.mean, one.found.mean)
        assert heldout(space.plan(one.choices))["kl"].mean() == pytest.approx(best)


def test_a_budget_is_compared_with_the_widest_uniform_plan_that_keeps_it():
    problem = Problem(make_sites(2))
    space = make_space(problem)
    limits = {"weight_bits": space.bits("weight_bits", space.uniform["bfp4"]) + 2000}
    records = [
        TrialRecord(
            number=0,
            state="complete",
            source="allocation",
            choices=(choices := optimum(space, space.damage, limits)),
            digest="",
            values=(0.1,),
            costs={},
        )
    ]
    proof = prove(
        space,
        records,
        [KL],
        problem,
        anchors=make_anchors(space, [KL], compared=["weight_bits"], limits=limits),
        plans=4,
        confidence=0.95,
        seed=0,
        on_plan=lambda *_: None,
    )
    assert [(one.anchor, one.rival) for one in proof.comparisons] == [("budget", "bfp4")]
    assert proof.comparisons[0].choices == choices


def test_spread_keeps_the_ends():
    assert spread(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert spread([1, 2], 5) == [1, 2]
