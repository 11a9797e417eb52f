import json

import pytest

from mpq.cli.search import build_parser, main
from mpq.cli.search_asked import asked_anchors, finished_search
from mpq.errors import BudgetError, ConfigError
from mpq.run import open_run
from mpq.search.asked import ask
from mpq.search.objective import make_objectives
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from tests.cli.test_search import write_config
from tests.search.synthetic import Problem, make_sites, make_space


def search_of(folder, objectives=("kl", "weight_bits"), **settings):
    problem = Problem(make_sites(1))
    return Search(
        make_space(problem),
        make_objectives(objectives),
        SearchSettings(trials=6, refine=1, sampler="random", **settings),
        problem,
        storage=f"journal://{folder}/log",
    )


def test_costs_become_anchors_narrowest_first(tmp_path):
    search = search_of(tmp_path)
    anchors = asked_anchors(search, [4.1, 3.3])
    assert [anchor.name for anchor in anchors] == ["3.3 bits", "4.1 bits"]
    bits = [anchor.limits["weight_bits"] for anchor in anchors]
    values = search.space.values["weight_bits"]
    assert bits == [int(3.3 * values), int(4.1 * values)]


def test_a_budget_of_the_search_is_no_cost_that_was_asked_for(tmp_path):
    search = search_of(tmp_path, budget={"weight_bits": 3.0})
    with pytest.raises(BudgetError, match="as --at's are, that plans of the space can have"):
        asked_anchors(search, [4.1])
    # No uniform plan but the narrowest keeps this one; the budget has an anchor in the search.
    (anchor,) = asked_anchors(search, [2.8])
    assert anchor.name == "2.8 bits"


def test_a_search_that_cannot_be_asked_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"none but costs: \['weight_bits'\]"):
        asked_anchors(search_of(tmp_path / "costs", ["weight_bits"]), [4.1])
    search = search_of(tmp_path / "bytes", ["kl"], budget={"weight_bytes": 4000.0})
    with pytest.raises(
        ConfigError, match=r"as --at's are, which must be among search\.objectives"
    ):
        asked_anchors(search, [4.1])


def test_a_finished_search_is_asked_with_what_it_measured_by(tmp_path):
    search = search_of(tmp_path, rungs=(0.25, 1.0))
    search.run()
    finished = finished_search(search)
    assert finished.records == search.records()
    assert finished.first_windows == 8
    (anchor,) = asked_anchors(search, [3.3])
    found = ask(finished, anchor)
    assert found.best.values[1] <= 3.3
    assert len(found.best.windows) == 32


def test_costs_are_numbers_on_the_command_line():
    assert build_parser().parse_args(["a.toml", "--at", "3.3", "4"]).at == [3.3, 4.0]
    assert tuple(build_parser().parse_args(["a.toml"]).at) == ()


@pytest.mark.slow
def test_a_finished_run_is_asked_for_plans(tmp_path, capsys):
    config, out = write_config(tmp_path), tmp_path / "run"
    assert main([str(config), "--out", str(out)]) == 0
    trials = (out / "trials.csv").read_text()
    capsys.readouterr()
    assert main([str(config), "--out", str(out), "--at", "4.2"]) == 0
    assert "4.2 bits" in capsys.readouterr().out
    assert (out / "trials.csv").read_text() == trials
    (entry,) = json.loads((out / "summary.json").read_text())["asked"]
    assert entry["anchor"] == "4.2 bits"
    assert entry["plan"] == "plans/at_4.2_bits.toml"
    assert entry["cost"]["weight_bits"] <= 4.2
    assert (open_run(out).path / entry["plan"]).is_file()
    assert main([str(config), "--out", str(out), "--at", "1.0"]) == 1
    assert "as --at's are" in capsys.readouterr().err
