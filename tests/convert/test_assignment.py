"""Formats by loss: exact under a budget, Sparsebit's rule by a threshold."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mpq.convert.assignment import CandidateLosses, assign_by_threshold, assign_under_budget
from mpq.errors import BudgetError, PlanError
from mpq.formats.zoo import parse_format
from mpq.plans.site import Site

FORMATS = tuple(parse_format(text) for text in ("int2-g32", "int3-g32", "int4-g32"))


def site(name, group=None, shape=(8, 64)):
    return Site(name=name, role="weight", kind="k", block=0, shape=shape, group=group or name)


def losses(rows, *, groups=None, energies=None):
    sites = tuple(site(name, (groups or {}).get(name)) for name in rows)
    return CandidateLosses(
        sites=sites,
        formats=FORMATS,
        losses={n: dict(zip(map(str, FORMATS), row, strict=True)) for n, row in rows.items()},
        rounded={
            n: {str(f): 2 * x for f, x in zip(FORMATS, r, strict=True)} for n, r in rows.items()
        },
        energies=energies or dict.fromkeys(rows, 1.0),
    )


def texts(plan):
    return {name: str(fmt) for name, fmt in plan.items()}


def test_the_budget_is_kept_and_the_sum_is_least():
    generator = np.random.default_rng(0)
    rows = {n: sorted(generator.random(3), reverse=True) for n in "abcd"}
    found = losses(rows)
    plan = assign_under_budget(found, 3.6, relative=False, tied=True)
    bits = [fmt.bits((8, 64)) for fmt in FORMATS]
    budget = 3.6 * 4 * 512
    best = min(
        (c for c in itertools.product(range(3), repeat=4) if sum(bits[i] for i in c) <= budget),
        key=lambda c: sum(rows[n][i] for n, i in zip("abcd", c, strict=True)),
    )
    assert list(plan.values()) == [FORMATS[i] for i in best]
    assert sum(fmt.bits((8, 64)) for fmt in plan.values()) <= budget


def test_scales_count_towards_the_budget():
    found = losses({"a": (3.0, 2.0, 1.0)})
    assert texts(assign_under_budget(found, 4.0, relative=False, tied=True)) == {"a": "int3-g32"}
    assert texts(assign_under_budget(found, 4.5, relative=False, tied=True)) == {"a": "int4-g32"}


def test_what_is_fused_takes_one_format():
    rows = {"q": (9.0, 1.0, 0.0), "k": (1.0, 1.0, 1.0), "o": (2.0, 1.0, 0.0)}
    found = losses(rows, groups={"q": "qk", "k": "qk"})
    tied = assign_under_budget(found, 3.5, relative=False, tied=True)
    assert tied["q"] == tied["k"]
    free = assign_under_budget(found, 3.5, relative=False, tied=False)
    assert texts(free) == {"q": "int4-g32", "k": "int2-g32", "o": "int3-g32"}


def test_relative_losses_are_shares_of_the_output():
    rows = {"loud": (10.0, 5.0, 1.0), "quiet": (1.0, 0.5, 0.1)}
    found = losses(rows, energies={"loud": 1000.0, "quiet": 1.0})
    absolute = assign_under_budget(found, 3.5, relative=False, tied=True)
    relative = assign_under_budget(found, 3.5, relative=True, tied=True)
    assert texts(absolute) == {"loud": "int4-g32", "quiet": "int2-g32"}
    assert texts(relative) == {"loud": "int2-g32", "quiet": "int4-g32"}


def test_damages_count_by_what_the_solver_leaves_of_them():
    rows = {"calm": (100.0, 50.0, 10.0), "touchy": (1.0, 0.5, 0.1)}
    texts_of = list(map(str, FORMATS))
    damages = {
        "calm": dict(zip(texts_of, (0.3, 0.2, 0.1), strict=True)),
        "touchy": dict(zip(texts_of, (9.0, 3.0, 0.1), strict=True)),
    }
    found = losses(rows)
    plan = assign_under_budget(found, 3.5, tied=True, damages=damages)
    assert texts(plan) == {"calm": "int2-g32", "touchy": "int4-g32"}
    # Where the solver leaves nothing of a damage, two bits are enough.
    solved = {**found.losses, "touchy": dict.fromkeys(texts_of, 0.0)}
    plan = assign_under_budget(replace(found, losses=solved), 3.5, tied=True, damages=damages)
    assert texts(plan) == {"calm": "int4-g32", "touchy": "int2-g32"}


def test_a_profile_that_lacks_a_damage_is_refused():
    found = losses({"a": (3.0, 2.0, 1.0)})
    with pytest.raises(PlanError, match="lacks 2: a in int3-g32, a in int4-g32; profile these"):
        assign_under_budget(found, 3.5, tied=True, damages={"a": {"int2-g32": 1.0}})


def test_a_stored_order_counts_towards_the_budget():
    found = replace(losses({"a": (3.0, 2.0, 1.0)}), stores_order=True)
    order = 32 * 64 / (8 * 64)
    for bits, wanted in (
        (3.5, "int2-g32"),
        (4.0, "int3-g32"),
        (4.5, "int3-g32"),
        (5.0, "int4-g32"),
    ):
        plan = assign_under_budget(found, bits - 0.5 + order, relative=False, tied=True)
        assert texts(plan) == {"a": wanted}


def test_a_budget_out_of_reach_is_refused():
    with pytest.raises(BudgetError, match="smallest"):
        assign_under_budget(losses({"a": (3.0, 2.0, 1.0)}), 2.0, relative=False, tied=True)


def test_the_threshold_takes_the_first_candidate_below_it_else_the_last():
    rows = {"a": (512.0, 51.2, 5.12), "b": (51200.0, 5120.0, 512.0), "c": (0.0, 0.0, 0.0)}
    plan = assign_by_threshold(losses(rows), 0.2, tied=True)
    assert texts(plan) == {"a": "int3-g32", "b": "int4-g32", "c": "int2-g32"}


def test_the_threshold_looks_at_a_fused_group_as_one():
    rows = {"q": (512.0, 0.0, 0.0), "k": (0.0, 0.0, 0.0)}
    together = losses(rows, groups={"q": "qk", "k": "qk"})
    assert texts(assign_by_threshold(together, 0.6, tied=True)) == {
        "q": "int2-g32",
        "k": "int2-g32",
    }
    assert texts(assign_by_threshold(together, 0.6, tied=False)) == {
        "q": "int3-g32",
        "k": "int2-g32",
    }


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_of_nothing_is_refused(threshold):
    with pytest.raises(PlanError, match=r"a loss threshold is above 0, not"):
        assign_by_threshold(losses({"a": (1.0, 1.0, 1.0)}), threshold, tied=True)
