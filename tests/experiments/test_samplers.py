"""The comparison of samplers: on a synthetic problem, and a tiny setting of the real one."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import wilcoxon

from mpq.config import load_search_config
from mpq.errors import RunError
from mpq.plans.move import UNTOUCHED, Move
from tests.scripts import importable
from tests.search.synthetic import Problem, make_sites, make_space

FOLDER = Path(__file__).parents[2] / "experiments" / "001_mixed_beats_uniform"
TINY = {
    "data.window": 64,
    "data.calibration_tokens": 256,
    "data.search_tokens": 256,
    "data.heldout_tokens": 256,
    "space.formats": ["bfp3", "bfp4", "bfp5"],
    "search.trials": 8,
    "search.targets": [4.0],
}


@pytest.fixture
def scripts():
    """The scripts of the folder, which import each other as neighbours do."""
    with importable(FOLDER):
        yield {name: importlib.import_module(name) for name in ("samplers", "optima", "asking")}


@pytest.fixture
def samplers(scripts):
    return scripts["samplers"]


@pytest.fixture
def optima(scripts):
    return scripts["optima"]


class Seen(Problem):
    """A problem whose plans can be looked at: each site as if it were alone."""

    def in_plan(self, plan):
        candidates = make_space(self).groups[0].candidates
        return {
            site: {
                UNTOUCHED: Move(-2 * self.own_damage(site, str(fmt)), 1.0),
                **{str(to): Move(0.0, 1.0) for to in candidates},
            }
            for site, fmt in plan.formats.items()
        }


@pytest.fixture
def problem():
    return Seen(make_sites(2))


def study_of(samplers, problem, out, arm="guided + refine", trials=20, seed=0):
    (arm,) = (one for one in samplers.ARMS if one.name == arm)
    keys = {"search.targets": [], **arm.keys("random", trials, seed)}
    config = load_search_config(samplers.CONFIG, keys)
    return samplers.run_study(config, make_space(problem), problem, arm, out)


# --- studies ----------------------------------------------------------------------------------


def test_every_arm_has_the_same_budget(samplers):
    for arm in samplers.ARMS:
        keys = arm.keys("tpe", 100, 3)
        counts = keys["search.trials"], keys["search.refine"]
        assert counts == ((60, 20) if arm.refines else (100, 0))
        config = load_search_config(samplers.CONFIG, keys)
        assert (config.search.sampler, config.search.seed) == ("tpe", 3)


def test_passes_are_those_of_measured_plans_and_of_looks(samplers, problem, tmp_path):
    study = study_of(samplers, problem, tmp_path)
    data = load_search_config(samplers.CONFIG, {}).data
    measured = sum(not record.is_reused for record in study.records)
    assert len(study.seen) > 0
    assert samplers.passes(study, data, 0.25) == measured + 1.5 * len(study.seen)


def test_a_finished_study_is_read_and_an_interrupted_one_goes_on(samplers, problem, tmp_path):
    whole = study_of(samplers, problem, tmp_path / "whole")
    calls, before = problem.calls, [record.choices for record in whole.records]
    again = study_of(samplers, problem, tmp_path / "whole")
    assert problem.calls == calls
    assert [record.choices for record in again.records] == before

    class Dying(Seen):
        def __call__(self, *arguments):
            if self.calls == 7:
                raise KeyboardInterrupt
            return super().__call__(*arguments)

    with pytest.raises(KeyboardInterrupt):
        study_of(samplers, Dying(problem.sites), tmp_path / "parts")
    parts = study_of(samplers, problem, tmp_path / "parts")
    assert [record.choices for record in parts.records] == before


def test_the_hypervolume_that_is_kept_is_that_of_the_fronts(samplers, problem, tmp_path):
    studies = [study_of(samplers, problem, tmp_path, seed=seed) for seed in (0, 1)]
    curves = samplers.hypervolumes(studies)
    (worst_bits, worst_kl), (best_bits, best_kl) = curves["box"]["worst"], curves["box"]["best"]
    for study in studies:
        kept = samplers.result_of(study, curves)
        assert list(kept["hypervolume"]) == ["4", "5", "8", "10", "15", "16"]
        assert list(kept["hypervolume"].values()) == sorted(kept["hypervolume"].values())
        measured = [not record.is_reused for record in study.records]
        by_plan = kept["hypervolume_by_measured_plan"]
        assert len(by_plan) == sum(measured) <= 16
        assert by_plan[-1] == kept["hypervolume"]["16"]  # what was tried before adds nothing
        points = [(bits, np.log10(kl)) for _, _, bits, kl in kept["front"]]
        ends = [bits for bits, _ in points[1:]] + [worst_bits]
        area = sum(
            (end - bits) * (np.log10(worst_kl) - kl)
            for (bits, kl), end in zip(points, ends, strict=True)
        )
        box = (worst_bits - best_bits) * np.log10(worst_kl / best_kl)
        assert kept["hypervolume"]["16"] == pytest.approx(area / box, abs=1e-5)


# --- against the additive optima --------------------------------------------------------------


def test_budgets_are_the_uniform_costs_and_even_steps_between(optima, problem):
    space = make_space(problem)
    budgets = optima.budgets_of(space)
    uniform = [space.bits("weight_bits", choices) for choices in space.uniform.values()]
    assert budgets[:: 2 * optima.STEPS_PER_BIT] == uniform
    assert len(budgets) == 4 * 2 * optima.STEPS_PER_BIT + 1
    assert np.ptp(np.diff(budgets)) <= 1


def test_a_front_of_the_optima_themselves_ties_with_them_everywhere(optima, problem, tmp_path):
    space = make_space(problem)
    heldout = optima.Windows(problem, space, tmp_path / "heldout.json")
    front = [
        record_of(space, optima.optimum(space, space.damage, {"weight_bits": bits}))
        for bits in optima.budgets_of(space)
    ]
    table = optima.against_optima(space, {"same": [front]}, {}, heldout)["samplers"]["same"]
    assert {row["verdict"] for row in table} == {"tied"}
    assert {row["gain"] for row in table} == {0.0}
    assert [row["rung"] for row in table[:3]] == [True, False, True]


def record_of(space, choices):
    """A trial that looked at nothing but the profile."""
    return SimpleNamespace(choices=choices, values=(space.predicted_damage(choices),))


def test_a_front_of_uniform_plans_loses_between_them_and_says_so(optima, problem, tmp_path):
    space = make_space(problem)
    heldout = optima.Windows(problem, space, tmp_path / "heldout.json")
    front = [record_of(space, choices) for choices in space.uniform.values()]
    table = optima.against_optima(space, {"none": [front]}, {}, heldout)["samplers"]["none"]
    assert (table[0]["verdict"], table[-1]["verdict"]) == ("tied", "tied")
    assert "lost" in {row["verdict"] for row in table[1:-1]}
    for row in table:
        assert (row["gain"] < 0) == (row["refined"] > row["optimum"])


def test_the_rival_costs_no_more_and_is_the_best_of_those(optima, problem):
    space = make_space(problem)
    front = [record_of(space, choices) for choices in space.uniform.values()]
    third = list(space.uniform.values())[2]
    more = (third[0] + 1, *third[1:])
    assert optima.plan_within(space, front, third) == third
    assert optima.plan_within(space, front, more) == third


def test_of_the_seeds_the_median_speaks(optima, problem, tmp_path):
    space = make_space(problem)
    heldout = optima.Windows(problem, space, tmp_path / "heldout.json")
    plans = list(space.uniform.values())
    heldout.measure(plans)
    row = optima.comparison(space, [plans[4], plans[0], plans[2]], plans[1], heldout)
    assert row["refined"] == heldout.windows(plans[2]).mean()
    assert row["gains"][2] == row["gain"] > 0 > row["gains"][1]


def test_held_out_plans_are_measured_once_and_kept(optima, problem, tmp_path):
    space, path = make_space(problem), tmp_path / "heldout.json"
    plans = list(space.uniform.values())
    optima.Windows(problem, space, path).measure(plans)
    again = optima.Windows(problem, space, path)
    again.measure([*plans, plans[0]])
    assert problem.calls == len(plans)
    expected = problem(space.plan(plans[1]))["kl"]
    np.testing.assert_array_equal(again.windows(plans[1]), expected)


def test_numbers_of_other_settings_are_refused_and_files_without_are_of_the_present(
    optima, problem, tmp_path
):
    space, path = make_space(problem), tmp_path / "heldout.json"
    plans = list(space.uniform.values())
    optima.Windows(problem, space, path, {"heldout": "a"}).measure(plans)
    message = r"heldout\.json holds .* other settings \(heldout: a -> b\); take another --out"
    with pytest.raises(RunError, match=message):
        optima.Windows(problem, space, path, {"heldout": "b"})
    (tmp_path / "heldout.settings.json").unlink()
    optima.Windows(problem, space, path, {"heldout": "b"}).measure(plans)
    assert problem.calls == len(plans)
    with pytest.raises(RunError, match="heldout: b -> a"):
        optima.Windows(problem, space, path, {"heldout": "a"})
    with pytest.raises(RunError, match="windows: 32 -> 8"):
        optima.Windows(Problem(problem.sites, num_windows=8), space, path, {"heldout": "b"})
    # Where nothing was measured, nothing is refused.
    path.unlink()
    optima.Windows(problem, space, path, {"heldout": "a"})


def test_a_sampler_without_refined_studies_has_no_rows(optima, problem, tmp_path):
    space = make_space(problem)
    heldout = optima.Windows(problem, space, tmp_path / "heldout.json")
    found = optima.against_optima(space, {"none": []}, {"none": []}, heldout)
    assert (found["samplers"], found["asked"]) == ({"none": []}, {"none": []})


def test_holm_steps_down(optima):
    # Holm's own order: 0.005 * 4, 0.01 * 3, 0.03 * 2, and never less than the one before.
    assert optima.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert optima.holm([0.9, 0.8]) == [1.0, 1.0]


def test_pairs_are_compared_within_their_windows(optima):
    rng = np.random.default_rng(0)
    windows = np.exp(rng.normal(0, 1, 64))  # windows differ far more than plans do
    worse = windows + 0.01 + rng.normal(0, 0.005, 64)
    assert optima.paired_p(windows, worse) < 1e-6
    assert wilcoxon(windows, worse).pvalue < 1e-6
    assert optima.paired_p(windows, windows) == 1.0
    assert optima.verdict(0.1, 0.01) == "won"
    assert optima.verdict(-0.1, 0.01) == "lost"
    assert optima.verdict(-0.1, 0.2) == "tied"


# --- answers between the rungs ----------------------------------------------------------------


def test_answers_cost_no_more_than_the_optima_and_measure_no_worse(
    samplers, scripts, problem, tmp_path
):
    study, space = study_of(samplers, problem, tmp_path), make_space(problem)
    answers = scripts["asking"].answers_of(space, study, problem, tmp_path)
    assert [*answers] == scripts["optima"].between(space)
    for best, answer in answers.items():
        assert space.bits("weight_bits", answer) <= space.bits("weight_bits", best)
        gain = problem(space.plan(best))["kl"].mean() - problem(space.plan(answer))["kl"].mean()
        assert (gain > 0) == (answer != best)
    assert any(answer != best for best, answer in answers.items())


def test_what_was_answered_is_not_asked_again(samplers, scripts, problem, tmp_path):
    study, space = study_of(samplers, problem, tmp_path), make_space(problem)
    before = scripts["asking"].answers_of(space, study, problem, tmp_path)
    calls = problem.calls
    assert scripts["asking"].answers_of(space, study, problem, tmp_path) == before
    assert problem.calls == calls
    # Another search measures and looks at what is new to all of them.
    (study.folder / "asked.json").unlink()
    assert scripts["asking"].answers_of(space, study, problem, tmp_path) == before
    assert problem.calls == calls


def test_answers_from_another_profile_are_refused(samplers, scripts, problem, tmp_path):
    study, space = study_of(samplers, problem, tmp_path), make_space(problem)
    (study.folder / "asked.json").write_text("{}")
    before = scripts["asking"].answers_of(space, study, problem, tmp_path)
    problem.misjudged[0] *= 2
    other = make_space(problem)
    with pytest.raises(RunError, match=r"asked\.json holds .*profile: "):
        scripts["asking"].answers_of(other, study, problem, tmp_path)
    assert scripts["asking"].answers_of(space, study, problem, tmp_path) == before


def test_answers_are_held_against_the_optima(scripts, problem, tmp_path):
    optima, space = scripts["optima"], make_space(problem)
    heldout = optima.Windows(problem, space, tmp_path / "heldout.json")
    uniform = [*space.uniform.values()]
    dearer = {best: best for best in optima.between(space)[:-1]}
    table = optima.against_optima(
        space, {}, {"same": [dearer], "widest": [dict.fromkeys(dearer, uniform[-1])]}, heldout
    )["asked"]
    assert {row["verdict"] for row in table["same"]} == {"tied"}
    assert {row["verdict"] for row in table["widest"]} == {"won"}
    assert len(table["same"]) == len(optima.between(space)) - 1


# --- the script -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_setting_runs_and_resumes(samplers, tmp_path, monkeypatch, capsys):
    measure = samplers.measure_samplers

    def tiny(out, **options):
        return measure(out, overrides=TINY, **options)

    monkeypatch.setattr(samplers, "measure_samplers", tiny)
    command = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    command += ["--samplers", "random", "--seeds", "0"]
    assert samplers.main(command) == 0
    text = (tmp_path / "results" / "samplers.json").read_text()
    results = json.loads(text)
    assert [study["trials"] for study in results["studies"]] == [8, 8, 7]
    assert min(study["passes"] for study in results["studies"]) >= 5
    assert results["config"]["data"]["search_tokens"] == 256
    assert results["against_optima"]["windows"] == 4
    assert len(results["against_optima"]["samplers"]["random"]) == 17
    assert len(results["against_optima"]["asked"]["random"]) == 8
    assert results["box"]["worst"][1] > results["box"]["best"][1]
    tables = (tmp_path / "results" / "samplers.md").read_text()
    assert tables.count("| random | guided + refine |") == 1
    assert (tmp_path / "results" / "figures" / "hypervolume_random.png").stat().st_size > 10_000
    assert "after 2 passes | after 4 passes | after 8 passes" in tables
    assert samplers.main(command) == 0
    # The same numbers, and no trial was run: seconds are those of the first time.
    again = json.loads((tmp_path / "results" / "samplers.json").read_text())
    assert {**again, "provenance": None} == {**results, "provenance": None}
