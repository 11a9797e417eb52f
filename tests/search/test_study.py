"""The loop: what it runs, what it repeats, how it ends, how it goes on."""

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest

from mpq.errors import BudgetError, ConfigError, RunError
from mpq.search.objective import make_objectives
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from tests.search.synthetic import Problem, make_sites, make_space


def make_search(folder, problem=None, *, objectives=("kl", "weight_bits"), **settings):
    problem = problem or Problem(make_sites(2))
    options = {"trials": 16, "refine": 4, "sampler": "random"} | settings
    functions = options.pop("functions", {})
    in_plan = options.pop("in_plan", None)
    storage = options.pop("storage", "journal://{}/study.log").format(folder)
    return Search(
        make_space(problem),
        make_objectives(objectives),
        SearchSettings(**options),
        problem,
        storage=storage,
        functions=functions,
        in_plan=in_plan,
    )


def test_a_search_has_exactly_its_trials_and_refinements(tmp_path):
    problem = Problem(make_sites(2))
    search = make_search(tmp_path, problem)
    told = []
    search.run(lambda records: told.append(records[-1].number))
    records = search.records()
    sources = [record.source for record in records]
    assert len(records) == 20
    assert sources.count("refine") == 4
    assert sources[-4:] == ["refine"] * 4
    assert told == [record.number for record in records]
    assert search.num_run == 20
    assert problem.calls == sum(not record.is_reused for record in records)
    assert 0 <= search.forward_seconds <= search.loop_seconds
    search.run()
    assert len(search.records()) == 20


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_guided_trials_hardly_repeat_a_plan(tmp_path, sampler):
    search = make_search(tmp_path, sampler=sampler, trials=60, refine=0)
    search.run()
    assert sum(record.is_reused for record in search.records()) <= 6


def test_more_trials_go_on_where_fewer_ended(tmp_path):
    make_search(tmp_path, trials=8, refine=0).run()
    search = make_search(tmp_path, trials=12, refine=2)
    first = search.records()
    assert len(first) == 8
    search.run()
    records = search.records()
    assert len(records) == 14
    assert [r.choices for r in records[:8]] == [r.choices for r in first]


def test_equal_plans_are_measured_once(tmp_path):
    problem = Problem(make_sites(1))
    search = make_search(tmp_path, problem, trials=40, refine=0, mode="direct")
    search.space.__dict__["digest"] = search.space.digest
    search.run()
    records = search.records()
    assert len(records) == 40
    assert problem.calls == len({record.choices for record in records})
    values = {}
    for record in records:
        assert values.setdefault(record.choices, record.values) == record.values


def test_values_are_those_of_the_plan(tmp_path):
    problem = Problem(make_sites(2))
    search = make_search(tmp_path, problem, objectives=("kl", "memory_density", "weight_bits"))
    search.run()
    for record in search.records():
        plan = search.space.plan(record.choices)
        assert record.digest == plan.digest
        assert record.values[0] == pytest.approx(problem(plan)["kl"].mean())
        assert record.values[1] == record.costs["memory_density"]
        assert record.windows.shape == (problem.num_windows,)


def test_over_budget_plans_cost_no_evaluation_and_never_count(tmp_path):
    problem = Problem(make_sites(2))
    search = make_search(
        tmp_path, problem, mode="direct", trials=30, refine=0, budget={"weight_bits": 4.0}
    )
    search.run()
    records = search.records()
    over = [record for record in records if record.costs["weight_bits"] > 4.0]
    assert over
    assert len(records) == 30
    for record in records:
        assert record.is_feasible == (record.costs["weight_bits"] <= 4.0)
        assert record.is_evaluated == record.is_feasible
        assert record.is_candidate == record.is_feasible
    assert problem.calls == sum(r.is_evaluated and not r.is_reused for r in records)
    worst = max(r.values[0] for r in records if r.is_candidate)
    assert all(record.values[0] <= worst for record in over)


def test_guided_plans_never_exceed_a_budget(tmp_path):
    search = make_search(tmp_path, budget={"weight_bits": 4.2}, objectives=("kl",))
    search.run()
    assert all(record.is_feasible for record in search.records())
    assert max(record.costs["weight_bits"] for record in search.records()) <= 4.2


def test_a_function_of_the_users_is_an_objective(tmp_path):
    def score(plan):
        return float(sum(str(fmt) == "bfp6" for fmt in plan.formats.values()))

    name = "maximize:mine:score"
    search = make_search(
        tmp_path, objectives=(name, "weight_bits"), functions={name: score}, refine=3
    )
    search.run()
    for record in search.records():
        assert record.values[0] == score(search.space.plan(record.choices))
    assert search.study.directions[0].name == "MAXIMIZE"


class Interrupting(Problem):
    """Stops the program in the middle of one measurement."""

    def __init__(self, *args, stop_at, error, **more):
        super().__init__(*args, **more)
        self.stop_at, self.error = stop_at, error

    def __call__(self, *args, **more):
        if self.calls == self.stop_at:
            self.calls += 1
            raise self.error
        return super().__call__(*args, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The plans of a search that nothing disturbed."""
    search = make_search(tmp_path_factory.mktemp("whole"))
    search.run()
    return sorted(record.choices for record in search.records())


@pytest.mark.parametrize(
    ("stop_at", "error"),
    [(3, KeyboardInterrupt()), (13, RuntimeError("device lost")), (17, KeyboardInterrupt())],
)
def test_an_interrupted_search_ends_like_an_uninterrupted_one(tmp_path, whole, error, stop_at):
    broken = Interrupting(make_sites(2), stop_at=stop_at, error=error)
    search = make_search(tmp_path / "broken", broken)
    with pytest.raises(type(error)):
        search.run()
    assert len(search.records()) < 20
    resumed = make_search(tmp_path / "broken")
    resumed.run()
    records = resumed.records()
    assert len(records) == 20
    assert sorted(record.choices for record in records) == whole


WORKER = """
    import os, signal, sys
    from tests.search.synthetic import Problem, make_sites
    from tests.search.test_study import make_search

    class Killed(Problem):
        def __call__(self, *args, **more):
            if self.calls == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(*args, **more)

    make_search(sys.argv[1], Killed(make_sites(2))).run()
"""


@pytest.mark.parametrize("kill_at", [4, 14])
def test_a_killed_search_goes_on_at_once_with_the_killed_trial(tmp_path, whole, kill_at):
    program = textwrap.dedent(WORKER)
    command = [sys.executable, "-c", program, str(tmp_path / "killed"), str(kill_at)]
    assert subprocess.run(command, check=False).returncode == -9
    resumed = make_search(tmp_path / "killed")
    assert len(resumed.records()) < 20
    resumed.run()
    records = resumed.records()
    assert len(records) == 20
    assert sorted(record.choices for record in records) == whole
    states = [trial.state.name for trial in resumed.study.get_trials()]
    assert states.count("FAIL") == 1
    assert states.count("RUNNING") == states.count("WAITING") == 0


def test_a_trial_that_was_taken_and_never_claimed_comes_back(tmp_path, monkeypatch):
    """A worker killed right after `ask` leaves a running trial without its name on it."""
    monkeypatch.setattr("mpq.search.workers.UNCLAIMED_SECONDS", 1)
    search = make_search(tmp_path, trials=9, refine=0)
    search.study.ask()
    search.run()
    assert len(search.records()) == 9
    states = [trial.state.name for trial in search.study.get_trials()]
    assert states.count("FAIL") == 1
    assert states.count("RUNNING") == 0


def test_several_workers_share_one_study(tmp_path):
    program = textwrap.dedent(WORKER)
    command = [sys.executable, "-c", program, str(tmp_path), "-1"]
    make_search(tmp_path)
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    records = make_search(tmp_path).records()
    assert len(records) == 20
    assert sum(record.source == "refine" for record in records) == 4
    measured = [record.choices for record in records if not record.is_reused]
    seeds = [record.choices for record in records if record.source != "sampler"]
    assert len(seeds) == len(set(seeds))
    assert len(set(measured)) >= len(measured) - 2  # both may measure one plan at a time


def test_sqlite_is_made_for_several_readers(tmp_path):
    problem = Problem(make_sites(1))
    path = tmp_path / "new" / "study.db"
    search = Search(
        make_space(problem),
        make_objectives(["kl", "weight_bits"]),
        SearchSettings(trials=6, refine=1),
        problem,
        storage=f"sqlite:///{path}",
    )
    search.run()
    assert len(search.records()) == 7
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_no_trial_starts_after_the_timeout(tmp_path):
    search = make_search(tmp_path, timeout_seconds=1e-9)
    search.run()
    assert search.records() == []


@pytest.mark.parametrize("pruner", ["median", "halving", "wilcoxon"])
def test_hopeless_trials_are_pruned_and_count(tmp_path, pruner):
    problem = Problem(make_sites(2))
    search = make_search(
        tmp_path,
        problem,
        objectives=("kl",),
        mode="direct",
        pruner=pruner,
        trials=24,
        refine=2,
        budget={"weight_bits": 6.0},
    )
    search.run()
    records = search.records()
    pruned = [record for record in records if record.state == "pruned"]
    assert len(records) == 26
    assert pruned
    assert all(record.source == "sampler" for record in pruned)
    assert all(len(record.windows) < problem.num_windows for record in pruned)
    assert not any(record.is_candidate for record in pruned)
    best = min(record.values[0] for record in records if record.is_candidate)
    assert min(record.values[0] for record in pruned) > best


def test_on_rungs_every_trial_sees_the_first_windows_and_the_best_see_all(tmp_path):
    problem = Problem(make_sites(2))
    search = make_search(tmp_path, problem, rungs=(0.25, 0.5, 1.0), trials=24, refine=6)
    search.run()
    records = search.records()
    dropped = [record for record in records if record.state == "dropped"]
    assert len(records) == 30
    assert {8, 32} <= {len(record.windows) for record in records} <= {8, 16, 32}
    assert {len(record.windows) for record in dropped} <= {8, 16}
    assert all(record.source in ("sampler", "refine") for record in dropped)
    assert not any(record.is_candidate for record in dropped)
    for record in records:
        kl = problem(search.space.plan(record.choices))["kl"]
        assert record.values[0] == pytest.approx(kl[: len(record.windows)].mean())
        assert record.num_judged == (0 if record.is_reused else len(record.windows))
        # What the study holds was measured on the same windows for all trials.
        trial = search.study.get_trials()[record.number]
        assert trial.values == pytest.approx([kl[:8].mean(), record.values[1]])
    assert sum(record.num_judged for record in records) < 0.9 * 30 * problem.num_windows


def test_an_interrupted_search_on_rungs_ends_like_an_uninterrupted_one(tmp_path):
    options = {"rungs": (0.25, 1.0), "refine": 6}
    whole = make_search(tmp_path / "whole", **options)
    whole.run()
    stop = Interrupting(make_sites(2), stop_at=24, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        make_search(tmp_path / "broken", stop, **options).run()
    resumed = make_search(tmp_path / "broken", **options)
    resumed.run()
    states = [
        sorted((record.choices, record.state) for record in search.records())
        for search in (whole, resumed)
    ]
    assert states[0] == states[1]


def test_targets_are_refined_in_turn_and_nothing_else_is(tmp_path):
    search = make_search(tmp_path, targets=(3.2, 3.7, 5.1), anchors="targets", refine=9)
    search.run()
    refined = [record.anchor for record in search.records() if record.source == "refine"]
    assert {name: refined.count(name) for name in set(refined)} == {
        "3.2 bits": 3, "3.7 bits": 3, "5.1 bits": 3
    }  # fmt: skip
    assert max(record.costs["weight_bits"] for record in search.records()) <= 5.1
    uniform = {record.anchor for record in search.records() if record.source == "uniform"}
    assert uniform == {"bfp2", "bfp3", "bfp4"}


def test_a_study_of_another_search_is_refused(tmp_path):
    make_search(tmp_path)
    with pytest.raises(RunError, match="made for another search: objectives differ"):
        make_search(tmp_path, objectives=("loss", "weight_bits"))
    with pytest.raises(RunError, match="made for another search: space differ"):
        make_search(tmp_path, Problem(make_sites(1)))


def test_what_does_not_go_together_is_refused_before_anything_is_stored(tmp_path):
    with pytest.raises(ConfigError, match="needs a cost to trade"):
        make_search(tmp_path, objectives=("kl",))
    with pytest.raises(BudgetError, match="cheapest plan"):
        make_search(tmp_path, budget={"weight_bits": 1.0})
    with pytest.raises(ConfigError, match="targets are values of weight_bits"):
        make_search(tmp_path, targets=(4.0,), objectives=("kl", "memory_density"))
    with pytest.raises(ConfigError, match="rungs judges plans by the windows of the first"):
        make_search(tmp_path, rungs=(0.5, 1.0), objectives=("my:function", "weight_bits"))
    with pytest.raises(ConfigError, match="needs exactly one objective"):
        make_search(tmp_path, pruner="median")
    assert list(tmp_path.iterdir()) == []
