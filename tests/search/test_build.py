import math

import pytest

from mpq.cost import cost
from mpq.errors import PlanError
from mpq.formats.zoo import parse_format
from mpq.search.build import build_space
from tests.search.synthetic import Problem, flat, formats, make_sites, make_space


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(2, activations=True)))


def test_fused_sites_share_a_group_and_others_stand_alone(space):
    names = {group.name: len(group.sites) for group in space.groups}
    assert names["model.layers.0.qkv.weight"] == 3
    assert names["model.layers.0.qkv.input"] == 3
    assert sum(names.values()) == len(space.sites)
    loose = make_space(Problem(make_sites(2)), tie="none")
    assert len(loose.groups) == 14


def test_candidates_are_sorted_by_bits():
    problem = Problem(make_sites(1))
    space = make_space(problem, formats=("bfp6", "bfp2", "bfp4"))
    assert [str(fmt) for fmt in space.groups[0].candidates] == ["bfp2", "bfp4", "bfp6"]


def test_damage_is_summed_over_a_group_and_never_negative():
    def damage(site, text):
        return -1e-3 if text == "bfp4" else 2.0

    sites = make_sites(1)
    candidates = {site.name: formats("bfp2", "bfp4") for site in sites}
    space = build_space(sites, candidates, damage=damage)
    qkv = space.damage[[len(group.sites) for group in space.groups].index(3)]
    assert qkv.tolist() == [6.0, 0.0]
    assert space.predicted_damage((0,) * len(space.groups)) == 14.0


def test_fixed_sites_cost_but_are_not_chosen():
    sites = make_sites(1)
    searched = [site.name for site in sites if site.kind == "o_proj"]
    space = build_space(
        sites,
        {name: formats("bfp2", "bfp4") for name in searched},
        fixed={"model.layers.0.down_proj.weight": parse_format("bfp8")},
        damage=flat,
    )
    plan = space.plan((0,))
    assert {name: str(fmt) for name, fmt in plan.formats.items()} == {
        "model.layers.0.o_proj.weight": "bfp2",
        "model.layers.0.down_proj.weight": "bfp8",
    }
    assert space.mean_bits("weight_bits", (0,)) == cost(plan, sites).weight_bits


def build(candidates, **options):
    return build_space(make_sites(1), candidates, damage=flat, **options)


def test_nothing_to_search():
    with pytest.raises(PlanError, match="at least one searched site"):
        build({})


def test_unknown_sites_are_named():
    with pytest.raises(PlanError, match=r"unknown: \['nowhere'\]"):
        build({"nowhere": formats("bfp2")})


def test_a_site_cannot_be_searched_and_fixed():
    name = "model.layers.0.o_proj.weight"
    with pytest.raises(PlanError, match="searched or fixed, not both"):
        build({name: formats("bfp2")}, fixed={name: parse_format("bfp8")})


def test_tied_sites_need_the_same_candidates():
    names = [f"model.layers.0.{kind}.weight" for kind in ("q_proj", "k_proj", "v_proj")]
    candidates = dict(zip(names, [formats("bfp2"), formats("bfp3"), formats("bfp2")], strict=True))
    with pytest.raises(PlanError, match=r'qkv.*bfp2 \| bfp3[\s\S]*tie = "none"'):
        build(candidates)


def test_an_unmeasured_group_is_refused():
    with pytest.raises(PlanError, match=r"none was measured for model.layers.0.o_proj.weight"):
        build_space(
            make_sites(1),
            {"model.layers.0.o_proj.weight": formats("bfp2")},
            damage=unmeasured,
        )


def unmeasured(site, text):
    return math.nan
