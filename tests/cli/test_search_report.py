import csv
import json

import pytest

from mpq.cli.search_report import (
    Artefacts,
    number,
    objective_texts,
    plan_name,
    print_comparisons,
    print_front,
    print_times,
    summary,
    write_plans,
)
from mpq.run import start_run
from mpq.search.objective import make_objectives
from mpq.search.prove import prove
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from tests.search.synthetic import Problem, make_sites, make_space


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished search over the synthetic problem, its proof, and a run directory."""
    folder = tmp_path_factory.mktemp("report")
    problem = Problem(make_sites(2))
    search = Search(
        make_space(problem),
        make_objectives(["kl", "weight_bits"]),
        SearchSettings(trials=14, refine=3, sampler="random"),
        problem,
        storage=f"journal://{folder}/log",
    )
    search.run()
    proof = prove(
        search.space,
        search.records(),
        search.objectives,
        Problem(make_sites(2), num_windows=8),
        anchors=search.anchors,
        plans=3,
        confidence=0.9,
        seed=0,
        on_plan=lambda *_: None,
    )
    return search, proof, start_run(folder / "run", {"search": {}}, {"seed": 0})


def test_the_tables_are_rewritten_at_most_every_few_seconds(done):
    search, _, run = done
    artefacts = Artefacts(run, search)
    artefacts.update(search.records()[:5])
    artefacts.update(search.records())
    with run.artefact("trials.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    artefacts.update(search.records(), force=True)
    with run.artefact("trials.csv").open(newline="") as file:
        assert [row["number"] for row in csv.DictReader(file)] == [str(i) for i in range(17)]


def test_plans_of_a_former_front_are_removed(done):
    search, proof, run = done
    stale = run.write_plan("front_9999", search.space.plan(search.space.uniform["bfp2"]))
    written = write_plans(run, search, proof)
    assert not stale.exists()
    assert all(path.is_file() for path in written)
    names = {path.stem for path in written}
    assert {"at_bfp2", "at_bfp3", "at_bfp4", "at_bfp5", "at_bfp6"} <= names


def test_the_summary_is_plain_json_and_counts_everything(done):
    search, proof, _ = done
    table = json.loads(json.dumps(summary(search, proof), allow_nan=False))
    assert table["trials"] == sum(table["by_source"].values()) == 17
    one = next(one for one in table["proof"]["comparisons"] if one["anchor"] == "bfp4")
    assert one["cost"]["weight_bits"] <= 4.5
    assert one["plan"] == "plans/at_bfp4.toml"
    assert "proof" not in summary(search, None)


def test_the_tables_are_printed(done, capsys):
    search, proof, _ = done
    print_front(search, proof)
    print_comparisons(proof, 0.9)
    print_times(search)
    said = capsys.readouterr().out
    for part in ("Pareto front", "uniform bfp6", "paired 90% intervals", "bfp4", "17 trials in"):
        assert part in said


def test_a_search_that_beats_no_baseline_says_so(done, capsys):
    search, proof, _ = done
    print_comparisons(proof, 0.9)
    lost = [
        one.anchor for one in proof.comparisons if one.is_contested and one.returned != "found"
    ]
    said = capsys.readouterr().out
    assert ("found nothing better" in said) == bool(lost)
    assert plan_name(search, proof.comparisons[0]) == "at_bfp2"


def test_numbers_are_short():
    assert [number(v) for v in (0.123456, 1228800.0, 4.5, float("inf"))] == [
        "0.1235",
        "1228800",
        "4.5",
        "inf",
    ]


def test_values_go_by_their_objectives(done):
    search, _, _ = done
    assert objective_texts(search, (0.25, 4.5)) == "kl 0.25, weight_bits 4.5"
