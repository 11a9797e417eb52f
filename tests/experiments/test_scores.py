"""How well damage scores predict: the drawing of plans, the correlations, a tiny real setting."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from mpq.config import load_search_config
from mpq.cost import cost
from mpq.errors import BudgetError, RunError
from mpq.formats.zoo import parse_format
from mpq.plans.plan import Plan
from mpq.profiling.sensitivity import METHODS
from mpq.profiling.table import DamageTable
from tests.scripts import importable
from tests.search.synthetic import make_sites

FOLDER = Path(__file__).parents[2] / "experiments" / "001_mixed_beats_uniform"
FORMATS = tuple(parse_format(f"bfp{width}") for width in range(2, 9))
TINY = {
    "data.window": 32,
    "data.calibration_tokens": 128,
    "data.search_tokens": 32,
    "data.heldout_tokens": 128,
    "space.formats": ["bfp2", "bfp4", "bfp6"],
    "space.sites": ["model.layers.[01].*proj.weight"],
}


@pytest.fixture
def drawing():
    with importable(FOLDER):
        yield importlib.import_module("drawing")


@pytest.fixture
def scores(drawing):  # which puts the folder on the path
    return importlib.import_module("scores")


@pytest.fixture
def candidates():
    return dict.fromkeys((s for s in make_sites(4) if s.role == "weight"), FORMATS)


# --- drawing ----------------------------------------------------------------------------------


def test_bits_are_those_of_the_plan(drawing, candidates):
    for drawn in drawing.draw_over_range(candidates, 5, 0):
        plan = Plan(formats=drawn.formats)
        assert drawn.bits == pytest.approx(cost(plan, list(candidates)).weight_bits)


def test_plans_cover_the_range_and_are_the_same_for_a_seed(drawing, candidates):
    plans = drawing.draw_over_range(candidates, 40, 3)
    bits = np.array([plan.bits for plan in plans])
    assert bits.min() < 3.0  # of 2.5 to 8.5
    assert bits.max() > 8.0
    expected = 2.5 + (np.arange(40) + 0.5) / 40 * 6
    assert np.abs(bits - expected).max() < 1.5
    assert abs((bits - expected).mean()) < 0.2
    again = drawing.draw_over_range(candidates, 40, 3)
    assert [plan.formats for plan in again] == [plan.formats for plan in plans]
    other = drawing.draw_over_range(candidates, 40, 4)
    assert [plan.formats for plan in other] != [plan.formats for plan in plans]


def test_plans_of_equal_bits_are_mixed_and_lie_where_asked(drawing, candidates):
    plans = drawing.draw_at(candidates, 30, 0, bits=4.5, tolerance=0.05)
    assert len(plans) == 30
    assert all(abs(plan.bits - 4.5) <= 0.05 for plan in plans)
    assert len({tuple(map(str, plan.formats.values())) for plan in plans}) == 30
    used = {str(fmt) for plan in plans for fmt in plan.formats.values()}
    assert used == {str(fmt) for fmt in FORMATS}


def test_the_chances_are_those_of_greatest_entropy(drawing, candidates):
    """Their logarithms are linear in the bits, and their mean is what was asked for."""
    table = drawing._Table.of(candidates)
    (chances, *_), (bits, *_) = table.chances(table.tilt(4.0)), table.bits
    per_value = bits / table.values[0]
    assert chances @ per_value == pytest.approx(4.0)
    assert np.ptp(np.diff(np.log(chances)) / np.diff(per_value)) < 1e-9


def test_bits_that_no_plan_has_are_refused(drawing, candidates):
    with pytest.raises(BudgetError, match=r"between 2\.500 and 8\.500 bits a value, not 9"):
        drawing.draw_at(candidates, 1, 0, bits=9.0, tolerance=0.1)
    one = dict(list(candidates.items())[:1])
    with pytest.raises(BudgetError, match=r"0 of 20000 plans have 4\.2 ± 0\.01.*wider tolerance"):
        drawing.draw_at(one, 1, 0, bits=4.2, tolerance=0.01)


# --- comparing --------------------------------------------------------------------------------


def synthetic_tables(candidates, rng):
    """Damages that add up, and the same under noise."""
    truth = {
        (site.name, str(fmt)): float(rng.lognormal() * 4.0**-fmt.element.width)
        for site, formats in candidates.items()
        for fmt in formats
    }
    noisy = {pair: value * float(rng.lognormal(sigma=2.0)) for pair, value in truth.items()}
    facts = {"tokens": 1, "fingerprint": "", "data_sha256": ""}
    return {
        method: DamageTable.empty(method=method, **facts).with_damage(damage)
        for method, damage in (("kl", truth), ("fisher", noisy))
    }


def test_the_score_that_adds_up_is_the_best(scores, drawing, candidates):
    tables = synthetic_tables(candidates, np.random.default_rng(0))
    plans = drawing.draw_at(candidates, 40, 0, bits=4.5, tolerance=0.05)
    joint = np.array([tables["kl"].predict(Plan(formats=plan.formats)) for plan in plans])
    found = scores.compare(plans, joint, tables, 0)
    assert found["scores"]["kl"]["spearman"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["scores"]["kl"]["kendall"]["value"] == 1.0
    assert found["scores"]["fisher"]["spearman_gain"]["high"] < 0  # over the default, kl
    assert "spearman_gain" not in found["scores"]["kl"]
    predicted = np.array(found["predicted"]["fisher"])
    for name, oracle in (("spearman", spearmanr), ("kendall", kendalltau)):
        one = found["scores"]["fisher"][name]
        assert one["value"] == pytest.approx(oracle(predicted, joint).statistic, abs=1e-3)
        assert one["low"] < one["value"] < one["high"] < 1


def test_the_interval_holds_the_truth_as_often_as_it_says(scores, monkeypatch):
    monkeypatch.setattr(scores, "RESAMPLES", 200)
    rng, rho = np.random.default_rng(1), 0.8
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's coefficient of two normal variables
    hits = 0
    for seed in range(60):
        x, noise = rng.normal(size=(2, 50))
        y = rho * x + np.sqrt(1 - rho**2) * noise
        found = scores.interval(scores.STATISTICS["spearman"], (x, y), seed)
        hits += found["low"] <= truth <= found["high"]
    assert hits >= 0.85 * 60


def test_a_plan_under_which_the_model_breaks_ranks_last(scores, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, subject, split):
            pass

        def __call__(self, plan):
            return {"kl": np.array([np.nan if "a" in plan.formats else 0.5])}

    monkeypatch.setattr(scores, "Evaluation", Broken)
    subject = SimpleNamespace(splits=SimpleNamespace(heldout=None), fixed={})
    plans = [SimpleNamespace(formats={name: FORMATS[0]}, bits=2.5) for name in "ab"]
    found = scores.judge(subject, "range", plans, tmp_path, lambda _: None)
    assert found.tolist() == [np.inf, 0.5]
    monkeypatch.setattr(scores, "Evaluation", None)  # what is there is not measured again
    again = scores.judge(subject, "range", plans, tmp_path, lambda _: None)
    assert again.tolist() == [np.inf, 0.5]
    assert scores.significant(again) == [None, 0.5]


# --- a tiny real setting ----------------------------------------------------------------------


def test_the_shipped_model_end_to_end_and_resumed(scores, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scores, "RESAMPLES", 50)
    config = load_search_config(scores.CONFIG, TINY)
    sets = scores.Sets(plans=4, bits=4.5, tolerance=0.5)
    said = []
    result = scores.measure_scores(config, tmp_path, sets=sets, say=said.append)
    assert (result["model"], result["sites"]) == ("mpq/tiny-llama", 14)
    assert (result["calibration_tokens"], result["judged_tokens"]) == (128, 128)
    assert tuple(result["units"]) == METHODS
    assert set(result["units"]) < set(result["cpu_seconds"])
    for group in result["sets"].values():
        assert group["plans"] == len(group["bits"]) == len(group["kl"]) == 4
        assert all(kl > 0 for kl in group["kl"])
        assert set(group["scores"]) == set(result["units"])
    assert all(abs(bits - 4.5) <= 0.5 for bits in result["sets"]["equal"]["bits"])
    assert json.loads(json.dumps(result)) == result
    lines = scores.table_of(result).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {m}" for m in result["units"]]

    monkeypatch.setattr(scores, "measure_damage", stopped)
    with pytest.raises(KeyboardInterrupt):  # a table is asked for, and is still there
        scores.measure_scores(config, tmp_path, sets=sets)
    monkeypatch.undo()
    monkeypatch.setattr(scores, "RESAMPLES", 50)
    again = scores.measure_scores(config, tmp_path, sets=sets, say=said.append)
    assert again["sets"] == result["sets"]
    other = load_search_config(scores.CONFIG, TINY | {"data.calibration_tokens": 64})
    with pytest.raises(RunError, match="calibration_tokens"):
        scores.measure_scores(other, tmp_path, sets=sets)


def stopped(*_):
    raise KeyboardInterrupt


def test_the_command_writes_its_numbers_and_prints_a_table(scores, tmp_path, monkeypatch, capsys):
    asked = []

    def measured(config, out, *, sets):
        asked.append((config.model.id, out, sets.plans))
        return {"units": {}, "sets": {}, "cpu_seconds": {}}

    monkeypatch.setattr(scores, "measure_scores", measured)
    assert scores.main(["--out", str(tmp_path), "--plans", "7"]) == 0
    assert asked == [("mpq/tiny-llama", tmp_path, 7)]
    assert json.loads((tmp_path / "scores.json").read_text())["sets"] == {}
    assert "| score | CPU seconds |" in capsys.readouterr().out
