import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpq import run as room
from mpq.errors import PlanError, RunError
from mpq.plans.plan import Plan
from mpq.run import (
    ARTEFACTS,
    CONFIG,
    FRONT,
    PLANS,
    PROVENANCE,
    STALE_SECONDS,
    TRIALS,
    collect_provenance,
    default_run_dir,
    flatten,
    open_run,
    read_toml,
    start_run,
    write_csv,
)
from tests.plans.llama import llama_sites

ROOT = Path(__file__).parents[1]
CONFIG_TABLE = {
    "model": {"id": "mpq/tiny-llama"},
    "space": {"formats": ["bfp4", "bfp6"], "fixed": {"*.probs": "bfp8"}},
    "search": {"trials": 10, "refine": 5, "timeout_minutes": 3.0, "seed": 0},
}
PROVENANCE_TABLE = {"model_fingerprint": "aaa", "data_sha256": "ddd", "time": "then"}


def changed(section, **keys):
    return CONFIG_TABLE | {section: CONFIG_TABLE[section] | keys}


def without(section, key):
    kept = {name: value for name, value in CONFIG_TABLE[section].items() if name != key}
    return CONFIG_TABLE | {section: kept}


@pytest.fixture
def run(tmp_path):
    return start_run(tmp_path / "run", CONFIG_TABLE, PROVENANCE_TABLE)


# --- new runs -------------------------------------------------------------------------------


def test_a_new_run_has_its_config_its_provenance_and_its_folders(run):
    assert run.config == CONFIG_TABLE
    assert run.provenance == PROVENANCE_TABLE
    assert {path.name for path in run.path.iterdir()} == {CONFIG, PROVENANCE, PLANS, "plots"}
    assert run.artefact(FRONT) == run.path / "front.csv"


def test_a_run_goes_into_an_empty_directory_and_beside_artefacts_of_a_profile(tmp_path):
    for name in ("sensitivity_fisher.csv", "values.json", "variance.csv", "statistics.csv"):
        (tmp_path / name).write_text("whatever a profile wrote\n")
    assert start_run(tmp_path, CONFIG_TABLE, {}).path == tmp_path


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"directory of its own, this one holds thesis\.tex.*--out"):
        start_run(tmp_path, CONFIG_TABLE, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_config_with_none_starts_no_run(tmp_path):
    with pytest.raises(RunError, match=r"None, found at model\.revision"):
        start_run(tmp_path, {"model": {"revision": None}}, {})
    with pytest.raises(RunError, match="a run directory has a config"):
        open_run(tmp_path)


def test_the_default_place_of_a_run_is_named_after_its_config():
    assert default_run_dir("search_configs/tiny_llama.toml") == Path("runs/tiny_llama")


# --- opening --------------------------------------------------------------------------------


def test_opening_reads_and_changes_nothing(run):
    stray = run.path / ".trials.csv.1-ab.tmp"
    stray.write_text("")
    os.utime(stray, (0, 0))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert open_run(str(run.path)) == run
    assert open_run(run.path).config == CONFIG_TABLE
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_a_directory_that_is_not_there_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"gone: a run directory has a config\.toml, and it is not"):
        open_run(tmp_path / "gone")


def test_a_directory_without_a_config_is_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(RunError, match=r"it holds notes\.txt; mpq-search makes one"):
        open_run(tmp_path)


def test_an_artefact_that_is_not_there_yet_is_named(run):
    (run.path / PROVENANCE).unlink()
    with pytest.raises(RunError, match=r"provenance\.json: this artefact cannot be read"):
        _ = run.provenance


# --- resuming -------------------------------------------------------------------------------


def test_the_same_config_resumes_the_run(run):
    write_csv(run.artefact(TRIALS), [{"trial": 0}])
    again = start_run(run.path, CONFIG_TABLE, PROVENANCE_TABLE)
    assert again == run
    assert again.artefact(TRIALS).exists()


def test_tuples_are_the_same_config_as_the_lists_that_are_read(run):
    start_run(run.path, changed("space", formats=("bfp4", "bfp6")), PROVENANCE_TABLE)


@pytest.mark.parametrize(
    "config",
    [
        changed("search", trials=11),
        changed("search", refine=50),
        changed("search", timeout_minutes=4.5),
        without("search", "timeout_minutes"),
    ],
    ids=["trials", "refine", "a later timeout", "no timeout"],
)
def test_a_run_may_grow(run, config):
    assert start_run(run.path, config, PROVENANCE_TABLE).config == config


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (changed("search", trials=9), r"search\.trials: 10 -> 9"),
        (changed("search", refine=0), r"search\.refine: 5 -> 0"),
        (changed("search", timeout_minutes=1.0), r"timeout_minutes: 3\.0 -> 1\.0"),
        (changed("search", seed=1), r"search\.seed: 0 -> 1"),
        (changed("space", formats=["bfp4"]), r"formats: \['bfp4', 'bfp6'\] -> \['bfp4'\]"),
        (changed("space", fixed={}), r"space\.fixed\.\*\.probs: 'bfp8' -> \(not set\)"),
        (changed("model", revision="x"), r"model\.revision: \(not set\) -> 'x'"),
        ({}, r"(?s)model\.id: .*space\.formats: .*search\.seed: 0 -> \(not set\)"),
    ],
)
def test_a_run_of_another_config_is_refused_with_what_differs(run, config, match):
    with pytest.raises(RunError, match=match) as caught:
        start_run(run.path, config, PROVENANCE_TABLE)
    assert "only search.trials, search.refine, search.timeout_minutes may grow" in str(
        caught.value
    )
    assert run.config == CONFIG_TABLE


def test_every_key_that_differs_is_named(run):
    config = changed("search", trials=20, seed=3) | {"cost": {"tokens": 5}}
    with pytest.raises(RunError, match=r"(?s)seed.*cost\.tokens") as caught:
        start_run(run.path, config, PROVENANCE_TABLE)
    assert "trials: " not in str(caught.value)


def test_a_run_goes_on_with_its_model_and_its_data_or_not_at_all(run):
    other = {"model_fingerprint": "bbb", "data_sha256": "eee"}
    with pytest.raises(RunError, match=r"(?s)fingerprint: aaa -> bbb.*data_sha256: ddd -> eee"):
        start_run(run.path, changed("search", trials=20), other)
    assert (run.provenance, run.config) == (PROVENANCE_TABLE, CONFIG_TABLE)


def test_resuming_records_what_is_new(run):
    start_run(run.path, CONFIG_TABLE, PROVENANCE_TABLE | {"time": "now"})
    start_run(run.path, CONFIG_TABLE, PROVENANCE_TABLE | {"time": "later", "cpus": 2})
    assert run.provenance == PROVENANCE_TABLE | {
        "resumed": [{"time": "now"}, {"time": "later", "cpus": 2}]
    }


def test_resuming_restores_what_a_kill_kept_from_being_written(run):
    (run.path / PROVENANCE).unlink()
    (run.path / PLANS).rmdir()
    start_run(run.path, CONFIG_TABLE, PROVENANCE_TABLE)
    assert run.provenance["data_sha256"] == "ddd"
    assert (run.path / PLANS).is_dir()


def test_resuming_sweeps_what_killed_writers_left_and_spares_living_ones(run):
    old, young = run.path / ".front.csv.1-ab.tmp", run.path / PLANS / ".a.toml.2-cd.tmp"
    for path in (old, young):
        path.write_text("part of a fi")
    os.utime(old, (time.time() - STALE_SECONDS - 60,) * 2)
    start_run(run.path, CONFIG_TABLE, PROVENANCE_TABLE)
    assert not old.exists()
    assert young.exists()


STARTER = """
import sys, time
from mpq import files, run
from pathlib import Path
slow = Path.replace
def crawl(own, to):
    print(to.name, flush=True)
    time.sleep(0.2)
    return slow(own, to)
Path.replace = crawl
run.start_run(sys.argv[1], {"search": {"trials": int(sys.argv[2])}}, {"model_fingerprint": "a"})
print("done", flush=True)
"""


@pytest.mark.parametrize("moment", [PROVENANCE, CONFIG, "resumed"])
def test_a_start_killed_at_any_moment_can_be_started_again(tmp_path, moment):
    path = tmp_path / "run"
    if moment == "resumed":
        start_run(path, {"search": {"trials": 1}}, {"model_fingerprint": "a"})
    command = [sys.executable, "-c", STARTER, str(path), "2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        wanted = CONFIG if moment == "resumed" else moment
        while starter.stdout.readline().strip() != wanted:
            pass
        starter.send_signal(signal.SIGKILL)
    assert starter.returncode == -signal.SIGKILL
    again = start_run(path, {"search": {"trials": 2}}, {"model_fingerprint": "a"})
    assert again.config == {"search": {"trials": 2}}
    assert again.provenance["model_fingerprint"] == "a"


# --- plans and provenance -------------------------------------------------------------------


def test_a_plan_is_written_and_read_back(run):
    plan = Plan.of({"model.layers.0.self_attn.k": "bfp4"}, model="m", fingerprint="aaa")
    path = run.write_plan("front-3", plan)
    assert path == run.path / "plans" / "front-3.toml"
    assert read_toml(path)["schema"] == 1
    assert run.read_plan("front-3", llama_sites(), fingerprint="aaa") == plan


def test_a_run_reads_plans_of_its_model_only(run):
    run.write_plan("a", Plan.of({}, fingerprint="aaa"))
    with pytest.raises(PlanError, match=r"names fingerprint aaa .* this model has bbb"):
        run.read_plan("a", llama_sites(), fingerprint="bbb")


def test_provenance_says_what_a_run_was_made_from():
    found = collect_provenance(
        seed=3, model="m", model_fingerprint="f", data_sha256="d", command="mpq-search"
    )
    assert {"optuna", "torch", "transformers", "numpy"} <= found["versions"].keys()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (found["seed"], found["command"]) == (3, "mpq-search")
    assert found["time"].endswith("+00:00")


def test_provenance_asks_for_identity_under_the_names_that_resuming_compares():
    found = collect_provenance(seed=0, model="m", model_fingerprint="f", data_sha256="d")
    assert set(room.IDENTITY_KEYS) <= found.keys()


def test_provenance_imports_nothing_heavy():
    code = (
        "import sys; from mpq.run import collect_provenance as c\n"
        "c(seed=0, model='m', model_fingerprint='f', data_sha256='d')\n"
        "assert not {'torch', 'transformers', 'optuna', 'pandas'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": (1, 2)}}, "e": {}, "f": []}) == {
        "a.b": 1,
        "a.c.d": [1, 2],
        "f": [],
    }


def test_artefact_names_are_distinct():
    assert len(set(ARTEFACTS)) == len(ARTEFACTS)
