import json

import optuna
import pytest

from mpq.cli import search_wiring
from mpq.cli.search import build_parser, main
from mpq.cli.search_asked import (
    asked_anchors,
    carried,
    check_costs,
    find_plans,
    finished_search,
    print_missing,
)
from mpq.errors import BudgetError, ConfigError
from mpq.run import open_run, start_run, write_json
from mpq.search.asked import TRIES, ask
from mpq.search.kept import Kept
from mpq.search.objective import make_objectives
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from mpq.search.workers import WORKER, this_worker
from tests.cli.test_search import write_config
from tests.cli.test_search_wiring import config_of
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


def anchors_at(search, costs):
    return asked_anchors(search.space, search.settings, search.objectives, costs)


def test_costs_become_anchors_narrowest_first(tmp_path):
    search = search_of(tmp_path)
    anchors = anchors_at(search, [4.1, 3.3])
    assert [anchor.name for anchor in anchors] == ["3.3 bits", "4.1 bits"]
    bits = [anchor.limits["weight_bits"] for anchor in anchors]
    values = search.space.values["weight_bits"]
    assert bits == [int(3.3 * values), int(4.1 * values)]


def test_a_budget_of_the_search_is_no_cost_that_was_asked_for(tmp_path):
    search = search_of(tmp_path, budget={"weight_bits": 3.0})
    with pytest.raises(BudgetError, match="as --at's are, that plans of the space can have"):
        anchors_at(search, [4.1])
    # No uniform plan but the narrowest keeps this one; the budget has an anchor in the search.
    (anchor,) = anchors_at(search, [2.8])
    assert anchor.name == "2.8 bits"


def test_a_budget_can_be_asked_for_by_its_value():
    space = make_space(Problem(make_sites(1)), formats=("bfp3", "bfp4"))
    settings = SearchSettings(budget={"weight_bits": 3.7}, anchors="targets", targets=(3.6,))
    (anchor,) = asked_anchors(space, settings, make_objectives(["kl", "weight_bits"]), [3.7])
    assert anchor.limits["weight_bits"] == int(3.7 * space.values["weight_bits"])


@pytest.mark.parametrize(
    ("objectives", "costs", "said"),
    [
        (["kl", "memory_density"], [4.1], r"among search\.objectives; got \['kl', 'memory_"),
        (["kl", "weight_bits"], [4.1, -1.0], r"positive numbers .* got \[4\.1, -1\.0\]"),
        (["kl", "weight_bits"], [float("inf")], r"positive numbers .* got \[inf\]"),
        (["kl", "weight_bits"], [float("nan")], r"positive numbers .* got \[nan\]"),
        (["kl", "weight_bits"], [4.1, 3.0, 4.1], r"each value once; got \[4\.1, 3\.0, 4\.1\]"),
    ],
)
def test_costs_that_no_search_has_are_refused(objectives, costs, said):
    with pytest.raises(ConfigError, match=said):
        check_costs(config_of(search={"objectives": objectives}), costs)


def test_what_the_config_rules_out_is_refused_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys
):
    def load(config):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(search_wiring, "load_subject", load)
    assert main([str(write_config(tmp_path)), "--at", "4.1", "4.1"]) == 1
    assert "each value once" in capsys.readouterr().err


def test_what_shapes_rule_out_is_refused_before_anything_is_measured(tmp_path, capsys):
    config, out = write_config(tmp_path), tmp_path / "run"
    assert main([str(config), "--out", str(out), "--at", "1.0"]) == 1
    assert "as --at's are" in capsys.readouterr().err
    assert not out.exists()


def test_a_finished_search_is_asked_with_what_it_measured_by(tmp_path):
    search = search_of(tmp_path, rungs=(0.25, 1.0))
    search.run()
    finished = finished_search(search, keep(search.judge.evaluate, tmp_path))
    assert finished.records == search.records()
    assert finished.first_windows == 8
    (anchor,) = anchors_at(search, [3.3])
    found = ask(finished, anchor)
    assert found.best.values[1] <= 3.3
    assert len(found.best.windows) == 32


def keep(problem, folder, part="search"):
    return Kept(problem, folder / "asked.json", part=part, settings={})


class Asking:
    """A finished search, its run directory, and how plans are asked for."""

    def __init__(self, folder):
        self.search = search_of(folder)
        self.search.run()
        self.heldout = Problem(make_sites(1), num_windows=8)
        self.run = start_run(folder / "run", {"search": {}}, {"seed": 0})
        write_json(self.run.artefact("summary.json"), {"trials": 7})

    @property
    def calls(self):
        return self.search.judge.evaluate.calls + self.heldout.calls

    def ask(self, costs):
        return find_plans(
            self.run,
            self.search,
            anchors_at(self.search, costs),
            windows=keep(self.search.judge.evaluate, self.run.path),
            heldout=keep(self.heldout, self.run.path, "heldout"),
            confidence=0.9,
        )

    def entries(self):
        return json.loads(self.run.artefact("summary.json").read_text())["asked"]


def test_a_repeat_measures_nothing_and_a_further_cost_what_is_new(tmp_path):
    asking = Asking(tmp_path)
    before = asking.calls
    first = asking.ask([3.3, 4.1])
    measured = asking.calls - before
    assert measured > 2
    assert asking.ask([3.3, 4.1]) == first
    assert asking.calls - before == measured
    assert asking.ask([3.3, 4.1, 4.8]).comparisons[:2] == first.comparisons
    assert measured < asking.calls - before <= measured + (1 + TRIES) + 3


def test_answers_are_merged_by_anchor(tmp_path):
    asking = Asking(tmp_path)
    asking.ask([3.3])
    asking.ask([4.1])
    assert [one["anchor"] for one in asking.entries()] == ["3.3 bits", "4.1 bits"]
    asking.ask([3.3])
    assert [one["anchor"] for one in asking.entries()] == ["3.3 bits", "4.1 bits"]
    assert {one["trials"] for one in asking.entries()} == {len(asking.search.records())}
    assert json.loads(asking.run.artefact("summary.json").read_text())["trials"] == 7


def test_what_is_done_is_kept_when_the_next_is_interrupted(tmp_path):
    asking = Asking(tmp_path)
    done = asking.run.path / "plans" / "asked_at_3.3_bits.toml"

    class Dying(Problem):
        def __call__(self, *arguments):
            if done.exists():
                raise KeyboardInterrupt
            return super().__call__(*arguments)

    asking.search.judge.evaluate.__class__ = Dying
    with pytest.raises(KeyboardInterrupt):
        asking.ask([3.3, 4.1])
    assert [one["anchor"] for one in asking.entries()] == ["3.3 bits"]


def test_entries_outlive_a_new_summary_and_say_when_the_search_went_on(tmp_path, capsys):
    asking = Asking(tmp_path)
    assert carried(asking.run, 7) == {}
    asking.ask([3.3, 4.1])
    capsys.readouterr()
    count = len(asking.search.records())
    assert carried(asking.run, count) == {"asked": asking.entries()}
    assert capsys.readouterr().err == ""
    assert carried(asking.run, count + 2) == {"asked": asking.entries()}
    assert "at 3.3 bits, 4.1 bits are from before the last trials" in capsys.readouterr().err


def test_why_nothing_is_answered_is_said(capsys):
    print_missing({"running": 2, "to be drawn": 27})
    said = capsys.readouterr()
    assert "there were: 2 running, 27 to be drawn; the same command goes on" in said.err
    assert said.out == ""


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
    assert entry["plan"] == "plans/asked_at_4.2_bits.toml"
    assert entry["cost"]["weight_bits"] <= 4.2
    assert (open_run(out).path / entry["plan"]).is_file()
    assert main([str(config), "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["asked"] == [entry]
    # While a trial of another worker runs, nothing is answered.
    study = optuna.load_study(study_name="mpq", storage=f"sqlite:///{out / 'study.db'}")
    study.ask().set_user_attr(WORKER, this_worker())
    assert main([str(config), "--out", str(out), "--at", "3.8"]) == 0
    assert "there were: 1 running;" in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text())["asked"] == [entry]
    assert [path.stem for path in (out / "plans").glob("asked_*")] == ["asked_at_4.2_bits"]
