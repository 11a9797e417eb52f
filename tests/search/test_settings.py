import pytest

from mpq.errors import BudgetError, ConfigError
from mpq.search.objective import make_objectives
from mpq.search.settings import (
    MAX_DIRECT_GROUPS,
    SearchSettings,
    anchors_of,
    budget_limits,
    check_space,
    ladders_of,
)
from tests.search.synthetic import Problem, make_sites, make_space


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(2)))


def test_two_budgets_on_one_resource_join(space):
    values = space.values["weight_bits"]
    limits = budget_limits(space, {"weight_bits": 4.5, "weight_bytes": values * 4 / 8})
    assert limits == {"weight_bits": values * 4}


def test_ladders_reach_over_all_anchors_and_no_further(space):
    objectives = make_objectives(["kl", "weight_bits"])

    def ends(**keys):
        settings = SearchSettings(targets=(3.25, 4.0), **keys)
        anchors = anchors_of(space, settings, objectives)
        steps = ladders_of(space, settings, anchors, ["weight_bits"])["weight_bits"]
        return steps[0] / space.values["weight_bits"], steps[-1] / space.values["weight_bits"]

    assert ends(anchors="targets") == (3.25, 4.0)
    assert ends() == (2.5, 6.5)
    assert ends(budget={"weight_bits": 5.0}) == (2.5, 5.0)


def test_a_budget_out_of_reach(space):
    with pytest.raises(BudgetError, match="cheapest plan"):
        budget_limits(space, {"weight_bits": 1.0})


def test_a_large_direct_space_is_refused_with_the_reason_and_the_way_out():
    many = make_space(Problem(make_sites(20)), tie="none")
    assert len(many.groups) > MAX_DIRECT_GROUPS
    settings = SearchSettings(mode="direct")
    with pytest.raises(ConfigError, match=r'at most 128 groups .* 140.*use space.mode = "guided"'):
        check_space(many, settings, make_objectives(["kl"]))
    check_space(many, SearchSettings(), make_objectives(["kl", "weight_bits"]))


def test_a_guided_search_needs_a_cost(space):
    with pytest.raises(ConfigError, match="needs a cost to trade"):
        check_space(space, SearchSettings(), make_objectives(["kl"]))
    check_space(space, SearchSettings(budget={"weight_bits": 4}), make_objectives(["kl"]))
    check_space(space, SearchSettings(mode="direct"), make_objectives(["kl"]))
