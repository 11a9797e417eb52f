from dataclasses import replace

import numpy as np
import pytest

from mpq.search.anchors import AT_BUDGET, make_anchors, within
from mpq.search.correction import corrected_damage
from mpq.search.expansion import CAUTIONS, GroupMoves, damage_around
from mpq.search.front import TrialRecord
from mpq.search.guided import optimum
from mpq.search.objective import make_objectives
from mpq.search.refine import is_better, lineages, propose
from tests.search.synthetic import Problem, make_sites, make_space

OBJECTIVES = make_objectives(["kl", "weight_bits"])
KL = OBJECTIVES[0]
COMPARED = ["weight_bits"]


@pytest.fixture(scope="module")
def problem():
    return Problem(make_sites(2))


@pytest.fixture(scope="module")
def space(problem):
    return make_space(problem)


def record(space, number, choices, kl=None, *, problem=None, **more):
    windows = problem(space.plan(choices))["kl"] if problem else None
    kl = float(windows.mean()) if kl is None else kl
    return TrialRecord(
        number=number,
        state="complete",
        source=more.pop("source", "sampler"),
        choices=choices,
        digest=space.plan(choices).digest,
        values=(kl, space.mean_bits("weight_bits", choices)),
        costs={},
        windows=windows,
        **more,
    )


def around(space, plan, factors):
    """The moves of a plan whose groups cost so many times what they cost alone.

    Each group's damage is quadratic along a line, as that of nested formats is.
    """
    root = np.sqrt(space.damage)
    now = root[np.arange(len(plan)), list(plan)][:, None]
    factors = factors[:, None]
    apart = (root - now) ** 2 / (root**2 + now**2)
    slope = 2 * factors * now * (root - now)
    return GroupMoves(slope=slope, apart=apart, whole=(-2 * factors * now**2)[:, 0])


def standing(space, records, limits=None, objectives=OBJECTIVES):
    anchors = anchors_of(space, objectives, limits)
    return lineages(space, records, objectives, quality=objectives[0], anchors=anchors)


def anchors_of(space, objectives=OBJECTIVES, limits=None, **more):
    return make_anchors(space, objectives, compared=COMPARED, limits=limits or {}, **more)


def test_a_lineage_stands_at_the_best_plan_at_a_uniform_plans_cost(space):
    uniform = list(space.uniform.values())
    cheap = tuple(min(c, 1) for c in uniform[1])
    records = [record(space, i, choices, kl=5.0 - i) for i, choices in enumerate(uniform)]
    records.append(record(space, 9, (0, *cheap[1:]), kl=0.5))
    found = {one.anchor.name: one.best.number for one in standing(space, records)}
    assert found == {"bfp2": 0, "bfp3": 9, "bfp4": 9, "bfp5": 9, "bfp6": 9}


def test_a_child_replaces_its_parent_only_by_the_paired_test(space):
    start = space.uniform["bfp3"]
    parent = replace(record(space, 0, start, kl=1.0), windows=np.linspace(0.5, 1.5, 32))
    rng = np.random.default_rng(0)
    better = parent.windows - rng.normal(0.05, 0.01, 32)
    noisy = parent.windows - 0.005 - np.tile([0.5, -0.5], 16)
    moved = (1, 1, *start[2:])
    for windows, wins in ((better, True), (noisy, False), (parent.windows, False)):
        child = replace(
            record(space, 1, moved, kl=0.99), windows=windows, source="refine", anchor="bfp3"
        )
        assert is_better(child, parent, KL, OBJECTIVES) is wins
        found = {one.anchor.name: one.best for one in standing(space, [parent, child])}
        assert found["bfp3"] is (child if wins else parent)


def test_the_best_of_many_trials_replaces_the_baseline_only_by_a_stricter_test(space):
    """With 24 rivals 0.05 becomes 0.002: a gain of 2.2 standard errors is the luck of the best."""
    cheaper, anchor = anchors_of(space)[:2]
    windows = np.linspace(0.5, 1.5, 32)
    baseline = replace(
        record(space, 0, anchor.allocation, kl=1.0, source="allocation"), windows=windows
    )
    wave = np.tile([1.0, -1.0], 16) * np.sqrt(31 / 32)  # standard deviation 1
    contenders = [
        tuple(plan)
        for plan in np.unique(np.random.default_rng(0).integers(0, 3, (300, 8)), axis=0)
        if within(space, tuple(plan), anchor.limits)
        and not within(space, tuple(plan), cheaper.limits)
        and tuple(plan) not in (anchor.allocation, anchor.uniform)
    ][:24]

    def start(gain_in_errors, rivals):
        ahead = windows - 0.1 * (gain_in_errors / np.sqrt(32) + wave)
        best = replace(record(space, 1, contenders[0], kl=ahead.mean()), windows=ahead)
        others = [
            record(space, 2 + i, plan, kl=2.0) for i, plan in enumerate(contenders[1:rivals])
        ]
        return next(
            one.best.number
            for one in standing(space, [baseline, best, *others])
            if one.anchor.name == "bfp3"
        )

    assert len(contenders) == 24
    assert start(2.2, rivals=1) == 1
    assert start(2.2, rivals=24) == 0
    assert start(4.5, rivals=24) == 1


def test_more_is_better_where_an_objective_is_maximised(space):
    objectives = make_objectives(["accuracy", "weight_bits"])
    parent = replace(record(space, 0, space.uniform["bfp3"], kl=0.5), windows=np.full(32, 0.5))
    child = replace(parent, number=1, values=(0.6, 3.5), windows=np.full(32, 0.6))
    assert is_better(child, parent, objectives[0], objectives)
    assert not is_better(parent, child, objectives[0], objectives)


def test_without_windows_the_value_decides(space):
    parent = record(space, 0, space.uniform["bfp3"], kl=1.0)
    assert is_better(record(space, 1, space.uniform["bfp3"], kl=0.9), parent, KL, OBJECTIVES)


def test_budgets_alone_make_one_lineage(space):
    objectives = make_objectives(["kl"])
    limits = {"weight_bits": space.bits("weight_bits", space.uniform["bfp4"])}
    records = [
        replace(record(space, i, choices, kl=5.0 - i), values=(5.0 - i,))
        for i, choices in enumerate(space.uniform.values())
    ]
    (one,) = standing(space, records, limits, objectives)
    assert (one.anchor.name, one.best.number, one.anchor.limits) == (AT_BUDGET, 2, limits)


def test_proposals_are_new_keep_the_cost_and_take_turns(space, problem):
    records = [
        record(space, i, choices, problem=problem)
        for i, choices in enumerate(space.uniform.values())
    ]
    anchors = []
    for number in range(10, 19):
        lineage, choices = propose(
            space, records, OBJECTIVES, quality=KL, anchors=anchors_of(space)
        )
        assert choices not in {r.choices for r in records}
        assert within(space, choices, lineage.anchor.limits)
        anchors.append(lineage.anchor.name)
        records.append(
            record(
                space,
                number,
                choices,
                problem=problem,
                source="refine",
                anchor=lineage.anchor.name,
                parent=lineage.best.number,
            )
        )
    # Nothing can be exchanged in the narrowest plan, nor gained on the widest.
    assert {"bfp3", "bfp4", "bfp5"} <= set(anchors)
    counts = [anchors.count(anchor) for anchor in ("bfp3", "bfp4", "bfp5")]
    assert max(counts) - min(counts) <= 1


def test_a_group_that_costs_more_within_the_plan_is_widened_first(space, problem):
    start = space.uniform["bfp4"]
    records = [record(space, 0, start, problem=problem)]
    (anchor,) = [one for one in anchors_of(space) if one.name == "bfp4"]
    asked = []
    for loud in (0, 2, 3, 4, 7):  # to widen the others is not worth what somebody else loses
        factors = np.full(len(start), 0.5)
        factors[loud] = 9.0

        def look(choices, factors=factors):
            asked.append(choices)
            return around(space, choices, factors)

        _, choices = propose(space, records, OBJECTIVES, quality=KL, anchors=[anchor], look=look)
        assert choices[loud] > start[loud]
        assert within(space, choices, anchor.limits)
    assert set(asked) == {start}


def test_the_optima_around_a_plan_come_first_then_exchanges(space, problem):
    start = space.uniform["bfp4"]
    records = [record(space, 0, start, problem=problem)]
    (anchor,) = [one for one in anchors_of(space) if one.name == "bfp4"]
    factors = np.array([3.0, 0.5, 9.0, 0.5, 0.5, 0.5, 0.5, 5.0])
    moves = around(space, start, factors)
    found = []
    for number in range(1, 12):
        _, choices = propose(
            space, records, OBJECTIVES, quality=KL, anchors=[anchor], look=lambda _: moves
        )
        found.append(choices)
        # Nothing that is tried helps, so the lineage stays where it is.
        records.append(record(space, number, choices, kl=9.0, source="refine", anchor="bfp4"))
    assert len({start, *found}) == 12
    tables = [damage_around(space.damage, start, moves, caution) for caution in CAUTIONS]
    optima = [optimum(space, table, anchor.limits) for table in tables]
    expected = [choices for choices in dict.fromkeys(optima) if choices != start]
    assert expected
    assert found[: len(expected)] == expected


def test_what_was_seen_and_what_was_measured_take_turns(space, problem):
    start = space.uniform["bfp4"]
    records = [record(space, 0, start, problem=problem)]
    for number, plan in enumerate(list(space.uniform.values())[1:2], start=1):
        records.append(record(space, number, plan, problem=problem))
    (anchor,) = [one for one in anchors_of(space) if one.name == "bfp4"]
    moves = around(space, start, np.array([3.0, 0.5, 9.0, 0.5, 0.5, 0.5, 0.5, 5.0]))
    found = []
    for number in range(2, 6):
        lineage, choices = propose(
            space, records, OBJECTIVES, quality=KL, anchors=[anchor], look=lambda _: moves
        )
        assert lineage.tried == len(found)
        measured = {one.choices: one.values[0] for one in records}
        corrected = corrected_damage(space.damage, measured, start)
        by_regression = optimum(space, corrected, anchor.limits)
        if len(found) % 2 and by_regression not in measured:
            assert choices == by_regression
            found.append("measured")
        else:
            found.append("seen")
        more = {"source": "refine", "anchor": "bfp4", "parent": 0}
        # Worse than the start, which therefore stays the best.
        records.append(record(space, number, choices, kl=9.0 + number, **more))
    assert "measured" in found
    assert found[0] == "seen"


def test_when_everything_was_tried_there_is_no_proposal():
    problem = Problem(make_sites(1))
    space = make_space(problem, formats=("bfp2", "bfp3"))
    plans = [tuple(int(bit) for bit in f"{index:04b}") for index in range(16)]
    records = [record(space, i, plan, problem=problem) for i, plan in enumerate(plans)]
    found = propose(space, records, OBJECTIVES, quality=KL, anchors=anchors_of(space))
    assert found is None
