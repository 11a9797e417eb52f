"""mpq-search from the command line, on the model that ships with mpq."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from mpq.cli.search import build_parser, main
from mpq.run import open_run

SMALL = """
[model]
id = "mpq/tiny-llama"
[data]
window = 64
calibration_tokens = {calibration}
search_tokens = {search}
heldout_tokens = {heldout}
[space]
sites = {sites}
formats = {formats}
[search]
trials = {trials}
refine = {refine}
sampler = "{sampler}"
objectives = {objectives}
{more}
[prove]
plans = 3
"""


def write_config(folder, **changes):
    options = {
        "calibration": 256,
        "search": 256,
        "heldout": 256,
        "sites": ["*.weight"],
        "formats": ["bfp3", "bfp4", "bfp5"],
        "trials": 8,
        "refine": 2,
        "sampler": "tpe",
        "objectives": ["kl", "weight_bits"],
        "more": "",
    } | changes
    path = folder / "small.toml"
    path.write_text(SMALL.format(**options))
    return path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was searched, proven and drawn; and what the program said."""
    folder = tmp_path_factory.mktemp("search")
    config = write_config(folder)
    command = [sys.executable, "-m", "mpq.cli.search", str(config), "--out", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run", config, done


@pytest.mark.slow
def test_a_run_leaves_all_its_artefacts(finished):
    run, _, done = finished
    trials, front = rows_of(run / "trials.csv"), rows_of(run / "front.csv")
    assert len(trials) == 10
    assert {row["number"] for row in front} <= {row["number"] for row in trials}
    assert {row["source"] for row in trials} >= {"uniform", "allocation", "sampler", "refine"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["trials"] == 10
    assert [one["anchor"] for one in summary["proof"]["comparisons"]] == ["bfp3", "bfp4", "bfp5"]
    for one in summary["proof"]["comparisons"]:
        assert (run / one["plan"]).is_file()
    assert len(list((run / "plans").glob("front_*.toml"))) == len(front)
    assert (run / "plots" / "pareto_front.png").stat().st_size > 10_000
    assert (run / "plots" / "hypervolume.png").stat().st_size > 10_000
    assert (run / "plots" / "allocation_at_bfp4.svg").is_file()
    assert json.loads((run / "provenance.json").read_text())["seed"] == 0
    assert "Pareto front" in done.stdout
    assert "what is left of a trial's time is" in done.stdout


@pytest.mark.slow
def test_a_written_plan_fits_the_model_and_costs_what_it_says(finished):
    from mpq.cost import cost
    from mpq.modeling.loading import load_model
    from mpq.modeling.sites import sites

    run, _, _ = finished
    loaded = load_model("mpq/tiny-llama")
    found = sites(loaded.model)
    summary = json.loads((run / "summary.json").read_text())
    for one in summary["proof"]["comparisons"]:
        name = one["plan"].removeprefix("plans/").removesuffix(".toml")
        plan = open_run(run).read_plan(name, found, fingerprint=loaded.fingerprint)
        bits = float(one["anchor"].removeprefix("bfp")) + 0.5
        assert cost(plan, found).weight_bits == one["cost"]["weight_bits"] <= bits


@pytest.mark.slow
def test_a_finished_run_goes_on_when_more_is_asked_for(finished):
    run, config, _ = finished
    before = rows_of(run / "trials.csv")
    config.write_text(config.read_text().replace("trials = 8", "trials = 10"))
    assert main([str(config), "--out", str(run)]) == 0
    after = rows_of(run / "trials.csv")
    assert len(after) == 12
    assert after[: len(before)] == before


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    config = write_config(tmp_path)
    out = tmp_path / "run"
    assert main([str(config), "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in ("24 groups", "bfp3 bfp4 bfp5", "forward passes", "minutes", "GiB", "8 by tpe"):
        assert part in said
    assert not out.exists()


def test_wrong_input_ends_with_code_1_and_the_reason(tmp_path, capsys):
    config = write_config(tmp_path, more="budgets = 1")
    assert main([str(config)]) == 1
    assert "search.budgets" in capsys.readouterr().err
    config = write_config(tmp_path, more="[search.budget]\nweight_bits = 1.0")
    assert main([str(config), "--dry-run"]) == 1
    assert "cheapest plan" in capsys.readouterr().err
    config = write_config(tmp_path, objectives=["no.such.module:f", "weight_bits"])
    assert main([str(config), "--dry-run"]) == 1
    assert "no.such.module:f" in capsys.readouterr().err


def test_wrong_usage_ends_with_code_2():
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as error:
        build_parser().parse_args(["--help"])
    assert error.value.code == 0
    assert "mpq-search search_configs/tiny_llama.toml" in capsys.readouterr().out


# A shell that runs the tests in the background has them ignore Ctrl-C, and so their children.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mpq.cli.search import main
sys.exit(main())
"""


def start(config, out):
    command = [sys.executable, "-c", PROGRAM, str(config), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_trials(path, count):
    """Waits until a run has so many rows, as long as it takes."""
    while not path.is_file() or len(rows_of(path)) < count:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_or_killed_run_is_resumed_by_the_same_command(tmp_path, number, code):
    config = write_config(tmp_path, trials=14, refine=1)
    out = tmp_path / "run"
    process = start(config, out)
    wait_for_trials(out / "trials.csv", 1)
    os.kill(process.pid, number)
    _, said = process.communicate()
    assert process.returncode == code, said
    if code == 130:
        assert "the same command goes on" in said
        assert (out / "summary.json").is_file()
    done = len(rows_of(out / "trials.csv"))
    assert 0 < done < 15
    again = start(config, out)
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert "resuming" in said
    rows = rows_of(out / "trials.csv")
    assert len(rows) == 15
    measured = [row["digest"] for row in rows if row["reused"] == "0"]
    assert len(measured) == len(set(measured))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "objectives"),
    [
        (["*.weight"], ["kl", "weight_bits"]),
        (["*.weight", "*.input"], ["kl", "weight_bits", "activation_bits"]),
    ],
    ids=["weights", "weights and activations"],
)
def test_the_search_beats_uniform_plans_on_heldout_text_at_their_cost(tmp_path, sites, objectives):
    config = write_config(
        tmp_path,
        calibration=1024,
        search=1024,
        heldout=2048,
        sites=sites,
        objectives=objectives,
        formats=["bfp2", "bfp3", "bfp4", "bfp5", "bfp6"],
        trials=9,
        refine=2,
    )
    assert main([str(config), "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    uniform = {
        row["anchor"]: row for row in rows_of(tmp_path / "run" / "trials.csv")
        if row["source"] == "uniform"
    }  # fmt: skip
    found = {one["anchor"]: one for one in summary["proof"]["comparisons"]}
    for anchor in ("bfp3", "bfp4", "bfp5"):
        one = found[anchor]
        best = {"found": one["found"], "allocation": one["allocation"]}[one["returned"]]
        assert best["mean"] < one["uniform"]["mean"]
        assert one["gain_over_uniform"]["low"] > 0
        for cost in ("weight_bits", "activation_bits"):
            assert one["cost"][cost] <= float(uniform[anchor][cost])


@pytest.mark.slow
def test_a_budget_gives_one_best_plan(tmp_path, monkeypatch):
    """One objective of the user's own, from the working directory, under a budget."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def narrow(plan, model):\n"
        "    assert model.config.model_type == 'llama'\n"
        "    return sum(f.bits_per_value for f in plan.formats.values())\n"
    )
    config = write_config(
        tmp_path,
        objectives=["maximize:mine:narrow"],
        trials=5,
        refine=1,
        more="[search.budget]\nweight_bits = 4.2",
    )
    assert main([str(config), "--out", str(tmp_path / "run")]) == 0
    rows = rows_of(tmp_path / "run" / "trials.csv")
    assert all(float(row["weight_bits"]) <= 4.2 for row in rows)
    with (tmp_path / "run" / "plans" / "best.toml").open("rb") as file:
        assert tomllib.load(file)["model"] == "mpq/tiny-llama"


def test_a_search_without_time_for_a_trial_ends_well(tmp_path, capsys):
    config = write_config(tmp_path, more="timeout_minutes = 1e-9")
    assert main([str(config), "--out", str(tmp_path / "run")]) == 0
    assert not rows_of(tmp_path / "run" / "trials.csv")
    assert not (tmp_path / "run" / "plots" / "pareto_front.png").exists()
    assert "Pareto front: 0 plans" in capsys.readouterr().out
