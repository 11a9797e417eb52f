"""The frame of experiment 001: pure parts by value, and all parts in a small setting."""

import importlib
import json
from functools import partial
from pathlib import Path

import pytest

from mpq.assets.prose import documents
from mpq.config import load_search_config
from mpq.errors import DataError, RunError
from mpq.formats.zoo import parse_format
from mpq.run import read_toml, write_toml
from tests.scripts import importable

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "001_mixed_beats_uniform"
CONFIGS = sorted((FOLDER / "configs").glob("*.toml"))
SCRIPTS = (
    "figures",
    "looks",
    "peers",
    "report",
    "rivals",
    "run",
    "searches",
    "tables",
    "text",
    "tokens",
)


@pytest.fixture
def scripts():
    """The scripts of the folder, which import each other as neighbours do."""
    with importable(FOLDER):
        yield {name: importlib.import_module(name) for name in SCRIPTS}


# --- text -------------------------------------------------------------------------------------

ARTICLES = " = A = \n aa \n = = Part = = \n bb \n = Long title = \n cc \n = C = \n" + "c" * 60


def test_articles_begin_with_titles_and_not_with_headings(scripts):
    found = scripts["text"].articles("\n" + ARTICLES)
    assert [one.split(" = ")[1] for one in found] == ["A", "Long title", "C"]
    assert "".join(found) == "\n" + ARTICLES


def test_held_out_are_whole_articles_from_the_start(scripts):
    split = scripts["text"].split_articles
    first = ARTICLES.index(" = Long title = ")
    second = ARTICLES.index(" = C = ")
    share = first / len(ARTICLES)
    assert split(ARTICLES, share) == (ARTICLES[:first], ARTICLES[first:])
    assert split(ARTICLES, share + 0.001) == (ARTICLES[:second], ARTICLES[second:])


def test_text_that_cannot_be_split_is_refused(scripts):
    with pytest.raises(DataError, match=r"lines ' = Title = '.*wiki\.test\.raw"):
        scripts["text"].articles("no title\n = = heading = = \n")
    with pytest.raises(DataError, match="3 articles, and all would be held out"):
        scripts["text"].split_articles(ARTICLES, 0.9)


# --- searches ---------------------------------------------------------------------------------


def test_every_part_has_its_configs_and_seeds(scripts):
    searches = scripts["searches"]
    jobs = {p: searches.jobs_of(p, FOLDER / "configs", (0, 1, 2)) for p in searches.CONFIGS}
    assert [job.name for job in jobs["tiny_llama"]] == [f"tiny_llama_seed{n}" for n in range(3)]
    assert jobs["tiny_llama_w_a"][0].config == ROOT / "search_configs" / "tiny_llama_w_a.toml"
    named = {job.config.stem for some in jobs.values() for job in some} - {"tiny_llama_w_a"}
    assert named | {"tokens", "tokens_gemma"} == {path.stem for path in CONFIGS}
    for job in jobs["gemma_int"]:
        config = load_search_config(job.config)
        assert config.search.targets == tuple(
            bits + scripts["rivals"].SCALE_BITS for bits in scripts["peers"].CODE_BITS
        )
        assert scripts["rivals"].tie_of(job) in job.name.split("_")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_gemma_is_judged_as_the_issue_asks(path):
    config = load_search_config(path)
    assert path.read_text().startswith("# ")
    if "gemma" not in path.stem:
        assert (config.model.id, config.data.source) == ("mpq/tiny-llama", "builtin")
        return
    data = config.data
    assert (config.model.id, config.model.dtype) == ("runs/gemma", "bfloat16")
    assert (data.path, data.heldout_path) == tuple(
        f"runs/wikitext2/{name}.txt" for name in ("search", "heldout")
    )
    assert (data.window, data.batch_size, data.judge_every) == (512, 1, 4)


# --- tables -----------------------------------------------------------------------------------


def interval(mean, low=0.0, high=0.0):
    return {"mean": mean, "low": low, "high": high}


def comparison(anchor="bfp4", uniform=0.2, allocation=0.1, found=0.08, returned="found"):
    gain = uniform - min(allocation, found)
    return {
        "anchor": anchor,
        "uniform": interval(uniform),
        "allocation": interval(allocation),
        "found": interval(found),
        "gain_over_uniform": interval(gain, gain - 0.01, gain + 0.01),
        "gain_over_allocation": interval(0.02),
        "returned": returned,
        "cost": {"weight_bits": 4.5, "activation_bits": 4.25},
    }


def test_rows_of_comparisons(scripts):
    rows = scripts["tables"].comparison_rows
    run = {"objectives": {"kl": "minimize"}, "comparisons": [comparison()]}
    (row,) = rows(run)
    assert row == ("bfp4", "4.5", "0.2", "0.1", "0.08", "found", "60.0% [55.0%, 65.0%]")
    run["objectives"]["activation_bits"] = "minimize"
    assert rows(run)[0][1] == "4.5 + 4.25"
    run["comparisons"][0] |= {"uniform": None, "gain_over_uniform": None}
    assert rows(run)[0][2:] == ("", "0.1", "0.08", "found", "")


def test_rows_of_seeds_are_medians_over_the_anchors_that_all_have(scripts):
    seeds = [
        {"comparisons": [comparison(found=found, returned=role), *more]}
        for found, role, more in (
            (0.08, "found", []),
            (0.09, "found", [comparison("bfp5")]),
            (0.11, "allocation", []),
        )
    ]
    (row,) = scripts["tables"].seed_rows(seeds)
    assert row == (
        "bfp4", "4.5", "0.2", "0.1", "0.09", "55.0% [50.0%, 60.0%]", "10.0% [-10.0%, 20.0%]",
        "2 found, 1 allocation",
    )  # fmt: skip


def point(tokens, seed, gain, spread=0.001, anchor="3.5 bits"):
    return {
        "tokens": tokens, "seed": seed, "anchor": anchor,
        "search": interval(2 * gain), "search_allocation": 0.1,
        "heldout": interval(gain, gain - spread, gain + spread), "heldout_allocation": 0.2,
    }  # fmt: skip


def test_rows_of_tokens_count_seeds_whose_interval_is_above_0(scripts):
    points = [point(512, seed, gain) for seed, gain in enumerate((-0.01, 0.0005, 0.02))]
    (row,) = scripts["tables"].token_rows({"tokens": [512], "points": points})
    assert row == (
        "512", "3.5 bits", "1.0% [-20.0%, 40.0%]", "0.2% [-5.0%, 10.0%]", "1 of 3, 1 lost",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gains", "least"),
    [
        ({512: (-1, -1, 1), 1024: (-1, 1, 1), 2048: (1, 1, 1)}, 1024),
        ({512: (1, 1, 1), 1024: (-1, -1, 1), 2048: (1, 1, 1)}, 2048),
        ({512: (1, 1, 1), 1024: (1, 1, -1)}, 512),
        ({512: (1, 1, 1), 1024: (-1, 1, 0)}, None),
    ],
)
def test_beating_the_optimum_means_most_seeds_from_there_on(scripts, gains, least):
    points = [point(n, s, g, 0.5) for n, row in gains.items() for s, g in enumerate(row)]
    assert scripts["tokens"].beats_from(points) == least


# --- looks ------------------------------------------------------------------------------------


def test_rows_of_looks_say_how_near_estimates_come(scripts):
    numbers = [(0.1, 0.2, 0.03), (0.2, 0.3, 0.02), (0.3, 0.4, 0.01)]
    moved = [
        {"group": "a", "format": "int3-g128", "to": to, "change": c, "look": k, "profile": p}
        for to, count in (("narrower", 3), ("wider", 2), ("none", 3))
        for c, k, p in numbers[:count]
    ]
    rows = scripts["looks"].look_rows({"anchors": {"3.5 bits": {"kl": 2.0, "moved": moved}}})
    for row, to in zip(rows, ("narrower", "none"), strict=True):  # two say nothing of ranks
        assert row == (
            "3.5 bits", "2", to, "3", "0.1 to 0.3", "1.000", "1.50", "-1.000", "0.10",
        )  # fmt: skip


# --- rivals -----------------------------------------------------------------------------------


def test_the_others_numbers_are_those_of_the_issue(scripts):
    peers = scripts["peers"]
    assert peers.best_peer("untied", 3.5).loss == 5.050
    assert peers.best_peer("tied", 3.5).tool == "exact knapsack on isolated KL"
    assert peers.best_peer("uniform", 5.0).kl == 0.113
    least = {tie: [peers.least_kl(tie, bits) for bits in peers.CODE_BITS] for tie in
             ("untied", "tied")}  # fmt: skip
    assert least == {"untied": [None, 1.60, 0.73, 0.27], "tied": [4.17, 1.87, 0.73, 0.27]}
    known = {(p.tool, p.code_bits): p.kl for p in peers.PEERS if p.tie == "tied" and p.kl}
    assert known["Model Optimizer, gradient", 3.5] == 2.09
    assert known["Model Optimizer, kl_div rule", 3.5] == 2.16
    rows = scripts["rivals"].peer_rows()
    assert rows[0] == (
        "AutoScheme", "untied", "8.260", "5.050 (1.6)", "4.073 (0.732)", "3.610",
    )  # fmt: skip


def test_a_row_of_rivals_marks_what_beats_the_best_of_the_others(scripts):
    def measured(search, bits, kl, loss, **more):
        one = {"kl": interval(kl), "loss": loss}
        both = {"as stored": {"kl": interval(9.0), "loss": 9.0}, "scales unrounded": one}
        return {"search": search, "weight_bits": bits, **both, **more}

    results = {
        "full_precision_loss": 3.33,
        "rows": [
            measured("uniform", 4.125, 0.75, 4.09, returned="int4-g128"),
            measured("ours", 3.6249, 1.2, 4.5, target=3.625),
            measured("ours", 4.125, 0.72, 4.08, target=4.125),  # the loss is not less
            measured("ours", 5.125, 0.3, 3.5, target=5.125),  # the KL is not less
        ],
    }
    table = partial(scripts["rivals"].rival_rows, results, "untied", {"ours": "ours"})
    rows = table("scales unrounded")
    assert [row[:2] for row in rows] == [
        ("3", "3.125"), ("3.5", "3.625"), ("4", "4.125"), ("5", "5.125")
    ]  # fmt: skip
    assert [row[-1] for row in rows] == ["", "**1.2 (4.500)**", "0.72 (4.080)", "0.3 (3.500)"]
    assert [row[-2] for row in rows] == ["", "", "0.75 (4.090)", ""]
    assert rows[1][2:5] == ("AutoScheme", "1.6", "5.050")
    assert "int4-g128 0.75 (4.090) (0.748 (4.086))" in scripts["rivals"].reproduction(results)
    assert [row[-1] for row in table("as stored")] == ["", *["9 (9.000)"] * 3]


def test_scales_are_unrounded_where_they_are_floats(scripts):
    unrounded = scripts["rivals"].unrounded
    assert str(unrounded(parse_format("int3-g128"))) == "int3-g128-sf32"
    assert str(unrounded(parse_format("bfp4"))) == "bfp4"


# --- all of it, small -------------------------------------------------------------------------

DATA = {"window": 64, "calibration_tokens": 128, "search_tokens": 128, "heldout_tokens": 256}
SEARCH = {"trials": 5, "refine": 1}


def small_config(path, target):
    """A copy of a config for the shipped model, with few tokens and trials."""
    table = read_toml(path)
    table["model"]["id"] = "mpq/tiny-llama"
    table["data"] |= DATA
    table["search"] |= SEARCH
    table["prove"] = {"plans": 1}
    if "targets" in table["search"]:
        table["search"]["targets"] = table["search"]["targets"][1:3]
    if "bfp3" in table["space"]["formats"]:
        table["space"]["formats"] = ["bfp3", "bfp4", "bfp5"]
    write_toml(target / path.name, table)


@pytest.fixture
def small(scripts, tmp_path, monkeypatch):
    """A directory to run in, and the setting."""
    monkeypatch.chdir(tmp_path)
    two = ("gemma_int_tied_2348", "gemma_groups_untied")
    monkeypatch.setitem(scripts["searches"].CONFIGS, "gemma_int", two)
    # The figures of a run take longer than its few trials, and have their own tests.
    monkeypatch.setattr("mpq.cli.search.draw", lambda *_: [])
    configs = tmp_path / "configs"
    for path in [*CONFIGS, ROOT / "search_configs" / "tiny_llama_w_a.toml"]:
        small_config(path, configs)
    small_config(FOLDER / "scores.toml", tmp_path)
    texts = [document.text for document in documents("validation")][:24]
    raw = "".join(f" = Article {n} = \n\n {text} \n" for n, text in enumerate(texts))
    (tmp_path / "wiki.test.raw").write_text(raw)
    tiny = {f"data.{key}": count for key, count in DATA.items()}
    return scripts["run"].Setting(
        configs=configs,
        results=tmp_path / "results",
        seeds=(0, 1),
        tokens=(64, 128),
        tokens_gemma=(128,),
        looks={"every": 8},
        rivals={"num_windows": 2, "window": 64},
        scores_config=tmp_path / "scores.toml",
        scores={"sets": importlib.import_module("scores").Sets(plans=12, tolerance=0.5)},
        samplers={
            "samplers": ["random"],
            "seeds": [0],
            "overrides": {
                **tiny,
                "space.formats": ["bfp3", "bfp4", "bfp5"],
                "search.trials": 6,
                "search.targets": [4.0],
            },
        },
    )


@pytest.mark.slow
def test_all_parts_run_are_skipped_when_done_and_make_the_report(scripts, small, capsys):
    run = scripts["run"]
    parts = [part for part in run.PARTS if part != "text"]
    assert run.main(["text", "--wikitext", "wiki.test.raw"], small) == 0
    assert run.main([*parts, "--out", "runs/001"], small) == 0
    results = json.loads((small.results / "results.json").read_text())
    assert list(results) == parts[:-1]
    seeds = results["tiny_llama"]["runs"]
    assert [one["provenance"]["seed"] for one in seeds] == [0, 1]
    assert seeds[0]["provenance"]["data_sha256"] != seeds[1]["provenance"]["data_sha256"]
    assert [one["anchor"] for one in seeds[0]["comparisons"]] == ["bfp3", "bfp4", "bfp5"]
    assert seeds[0]["tokens"]["search"] == 128
    assert 0 < seeds[0]["forward_share"] < 1
    names = [one["name"] for one in results["gemma_int"]["runs"]]
    rivals = results["rivals"]["rows"]
    assert [row["search"] for row in rivals[3:]] == [name for name in names for _ in range(2)]
    assert all(row["weight_bits"] <= row["target"] for row in rivals[3:])
    assert results["rivals"]["full_precision_loss"] > 0
    for found in results["looks"]["anchors"].values():
        assert found["kl"] > 0
        assert {row["to"] for row in found["moved"]} <= {"narrower", "wider", "none"}
        assert all((row["profile"] > 0) == (row["to"] == "narrower") for row in found["moved"])
    gains = results["tokens"]["points"]
    assert len(gains) == 2 * 2 * 2
    for one in gains:  # the additive optimum is among the trials: none looks worse on their text
        assert one["search"]["mean"] >= 0
        assert one["is_allocation"] == (one["search"]["mean"] == 0)
    tables = (small.results / "tables.md").read_text()
    assert tables.count("\n## ") + 1 == len(parts) - 1
    figures = {path.stem for path in (small.results / "figures").glob("*.png")}
    assert {"tiny_llama_front", "gemma_bfp_front", "tokens", "tiny_llama_hypervolume"} <= figures

    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("trials.csv")}
    capsys.readouterr()
    assert run.main(["tiny_llama", "gemma_int", "--out", "runs/001"], small) == 0
    assert capsys.readouterr().out.count("done before") == 2 + 2
    assert {path: path.stat().st_mtime_ns for path in before} == before

    assert run.main(["report", "--out", "elsewhere"], small) == 0
    assert json.loads((small.results / "results.json").read_text()) == results


@pytest.mark.slow
def test_rivals_wait_for_a_search_to_be_done(scripts, tmp_path):
    with pytest.raises(RunError, match="run the part gemma_int first"):
        scripts["run"].rivals(tmp_path, scripts["run"].FULL)


def test_the_twelve_windows_are_the_first_tokens_of_the_text(scripts):
    from mpq.modeling.loading import load_model

    loaded = load_model("mpq/tiny-llama")
    text = "The first tokens of the text, in its order. " * 20
    windows = scripts["rivals"].first_windows(loaded, text, 3, 16)
    assert (windows[:, 0] == loaded.tokenizer.bos_token_id).all()
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert windows[:, 1:].flatten().tolist() == ids[:45]
    with pytest.raises(DataError, match=r"12 windows are bos and 511 tokens each; the text has"):
        scripts["rivals"].first_windows(loaded, text, 12, 512)


def test_the_part_text_needs_its_file(scripts, capsys):
    with pytest.raises(SystemExit):
        scripts["run"].main(["text"])
    assert "--wikitext wiki.test.raw" in capsys.readouterr().err
