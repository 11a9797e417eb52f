import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import mpq
from mpq.cli import profile, profile_values
from mpq.modeling.loading import load_model
from mpq.plans.rules import read_plan
from mpq.profiling import fixed_point, streaming
from tests.data.tokenizers import byte_tokenizer


@pytest.fixture
def run(model_dir, tmp_path):
    """The exit code of a command of `mpq-profile` on the small model."""

    def call(command, *flags, out="run"):
        window = ["--window", "32", "--tokens", "256", "--text", str(model_dir / "text.txt")]
        base = [command, "--model", str(model_dir), *window, "--out", str(tmp_path / out)]
        return profile.main([*base, "--device", "cpu", *flags])

    return call


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def bytes_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_model_that_ships_with_mpq_end_to_end(tmp_path, capsys):
    flags = ["--tokens", "512", "--out", str(tmp_path), "--device", "cpu"]
    assert profile.main(["variance", *flags]) == 0
    said = capsys.readouterr().out
    assert "log2 of the variance by block, 512 tokens" in said
    assert "q_proj, k_proj, v_proj  inputs" in said
    assert len(rows(tmp_path / "variance.csv")) == 153
    assert profile.main(["statistics", *flags, "--fixed-width", "8"]) == 0
    said = capsys.readouterr().out
    assert "the 10 of 153 sites with the highest kurtosis" in said
    assert "fixed8.toml (108 sites, fractions from" in said
    loaded = load_model("mpq/tiny-llama", device="cpu")
    text = "The iterator protocol: an object with a method that returns the next item."
    tokens = loaded.tokenizer(text, return_tensors="pt").input_ids

    def error():
        path = tmp_path / "plans" / "fixed8.toml"
        plan = read_plan(path, mpq.sites(loaded.model), fingerprint=loaded.fingerprint)
        with torch.no_grad():
            exact = loaded.model(tokens).logits
            with mpq.apply_plan(loaded.model, plan):
                return float((loaded.model(tokens).logits - exact).norm() / exact.norm())

    least_squares = error()
    assert profile.main(["statistics", *flags, "--fixed-width", "8", "--fixed-rule", "range"]) == 0
    assert 0 < least_squares < error() < 1


def test_variance_end_to_end(run, tmp_path, capsys):
    assert run("variance") == 0
    said = capsys.readouterr().out
    assert "log2 of the variance by block, 256 tokens" in said
    table = rows(tmp_path / "run" / "variance.csv")
    assert {row["role"] for row in table} == {
        *("weight", "input", "output", "q", "k", "v", "probs")
    }
    assert {"lm_head.output", "model.embed_tokens.weight"} < {row["site"] for row in table}
    for kind in ("png", "svg"):
        assert (tmp_path / "run" / "plots" / f"variance.{kind}").stat().st_size > 1000
    figure = mpq.plots.variance(tmp_path / "run")
    assert [axes.get_title("left") for axes in figure.axes] == [
        *("weights", "inputs", "outputs", "attention")
    ]


def test_statistics_end_to_end(run, tmp_path, capsys):
    assert run("statistics") == 0
    said = capsys.readouterr().out
    table = rows(tmp_path / "run" / "statistics.csv")
    heaviest = sorted(table, key=lambda row: -float(row["kurtosis"]))
    shown = [line.split()[0] for line in said.splitlines() if "model." in line.split(" ")[0]]
    assert shown == [row["site"] for row in heaviest[: profile_values.NUM_SHOWN]]
    for row in table:
        assert float(row["min"]) <= float(row["mean"]) <= float(row["max"])
        assert float(row["abs_p50"]) <= float(row["abs_p99.9"]) <= float(row["absmax"])
    assert not (tmp_path / "run" / "plans").exists()


def test_the_second_profile_of_a_run_needs_no_forward_pass(run, tmp_path, monkeypatch):
    assert run("variance") == 0
    before = (tmp_path / "run" / "values.json").read_bytes()
    monkeypatch.setattr(streaming, "run", None)
    for width in ("8", "4"):
        assert run("statistics", "--fixed-width", width) == 0
        assert (tmp_path / "run" / "plans" / f"fixed{width}.toml").is_file()
    assert run("variance") == 0
    assert (tmp_path / "run" / "values.json").read_bytes() == before


def test_the_flag_offers_every_rule():
    assert profile_values.RULES == fixed_point.RULES


@pytest.mark.parametrize("rule", fixed_point.RULES)
def test_a_fixed_point_plan_can_be_applied(run, model_dir, tmp_path, rule):
    assert run("statistics", "--fixed-width", "8", "--fixed-rule", rule) == 0
    loaded = load_model(str(model_dir), device="cpu")
    path = tmp_path / "run" / "plans" / "fixed8.toml"
    plan = read_plan(path, mpq.sites(loaded.model), fingerprint=loaded.fingerprint)
    assert set(plan.formats) == {site.name for site in mpq.sites(loaded.model)}
    assert {given.element.width for given in plan.formats.values()} == {8}
    with torch.no_grad(), mpq.apply_plan(loaded.model, plan):
        assert bool(loaded.model(torch.arange(32)[None]).logits.isfinite().all())
    if rule == "range":
        table = rows(tmp_path / "run" / "statistics.csv")
        largest = {row["site"]: float(row["absmax"]) for row in table}
        for name, given in plan.formats.items():
            assert largest[name] * 2.0**given.scale.fraction <= 127


def test_kinds_are_included_in_the_plan_when_asked_for(run, model_dir, tmp_path):
    flags = ("--include", "lm_head", "embeddings", "output")
    assert run("statistics", "--fixed-width", "8", *flags) == 0
    model = load_model(str(model_dir), device="cpu").model
    every = mpq.sites(model, lm_head=True, embeddings=True, bias=True, output=True)
    plan = read_plan(tmp_path / "run" / "plans" / "fixed8.toml", every)
    left_out = {site.name for site in every} - set(plan.formats)
    assert left_out == {
        f"model.layers.{block}.self_attn.{kind}_proj.output" for block in (0, 1) for kind in "kv"
    }
    with torch.no_grad(), mpq.apply_plan(model, plan):
        assert bool(model(torch.arange(32)[None]).logits.isfinite().all())


def test_globs_narrow_the_tables_and_the_plan(run, tmp_path, capsys):
    assert run("statistics", "--sites", "*.v", "*.q", "--fixed-width", "4") == 0
    assert {row["role"] for row in rows(tmp_path / "run" / "statistics.csv")} == {"q", "v"}
    plan = (tmp_path / "run" / "plans" / "fixed4.toml").read_text()
    assert plan.count('"fixed4.') == 4
    assert run("variance", "--sites", "lm_head.*") == 0
    assert {row["block"] for row in rows(tmp_path / "run" / "variance.csv")} == {"-1"}
    assert not (tmp_path / "run" / "plots").exists(), "no block, no figure"
    assert "variance table:" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["variance", "statistics"])
def test_a_profile_that_was_stopped_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch, command):
    flags = ["--tokens", "1024"]  # 4 batches
    flags += ["--fixed-width", "8"] if command == "statistics" else []
    assert run(command, *flags, out="whole") == 0
    original, calls = streaming.run, []

    def stopped(model, inputs):
        calls.append(inputs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(model, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "run", stopped)
        assert run(command, *flags, out="half") == 130
    assert {path.name for path in (tmp_path / "half").iterdir()} == {"values.json"}
    assert run(command, *flags, out="half") == 0
    assert bytes_of(tmp_path / "half") == bytes_of(tmp_path / "whole")


def test_a_profile_of_another_text_needs_another_directory(run, capsys):
    assert run("variance") == 0
    capsys.readouterr()
    assert run("statistics", "--seed", "1") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "there and asked for differ in data_sha256" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("variance", "--sites", "*.wieght"), r"*.wieght"),
        (("statistics", "--fixed-width", "77"), "77"),
        (("statistics", "--fixed-width", "8", "--sites", "lm_head.*"), "profile more sites"),
        (("variance", "--tokens", "100"), "whole windows of 32 tokens"),
    ],
)
def test_impossible_wishes_are_refused(run, tmp_path, flags, message, capsys):
    assert run(*flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "plans").exists()


@pytest.mark.parametrize(
    "flags", [["variance", "--method", "kl"], ["statistics", "--fixed-width"]]
)
def test_wrong_usage_exits_with_2(flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        profile.main(flags)
    assert exit_.value.code == 2
    assert "usage: mpq-profile" in capsys.readouterr().err


@pytest.fixture
def classifier(tmp_path):
    """A config of a classifier on labelled sentences of unequal length."""
    folder = tmp_path / "model"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sentences = [f"{index % 2}\t{'a fine film ' * (1 + index % 5)}" for index in range(60)]
    (tmp_path / "data.tsv").write_text("label\tsentence\n" + "\n".join(sentences) + "\n")
    path = tmp_path / "bert.toml"
    path.write_text(
        f"""
[model]
id = {str(folder)!r}
task = "classification"
device = "cpu"
[data]
source = "sst2"
path = {str(tmp_path / "data.tsv")!r}
calibration_examples = 20
search_examples = 20
heldout_examples = 20
[space]
formats = ["bfp4", "bfp6"]
"""
    )
    return path


def test_a_classifier_is_profiled_on_its_examples(classifier, tmp_path, capsys):
    out = tmp_path / "run"
    flags = [str(classifier), "--out", str(out)]
    assert profile.main(["variance", *flags]) == 0
    assert "log2 of the variance by block, 20 examples" in capsys.readouterr().out
    table = {row["site"]: row for row in rows(out / "variance.csv")}
    assert table["classifier.output"]["count"] == "40"
    counts = {int(row["count"]) for row in table.values() if row["site"].endswith("query.input")}
    assert len(counts) == 1
    assert counts.pop() % 32 == 0
    assert profile.main(["statistics", *flags, "--fixed-width", "8", "--include", "bias"]) == 0
    model = load_model(str(tmp_path / "model"), task="classification", device="cpu").model
    plan = read_plan(out / "plans" / "fixed8.toml", mpq.sites(model, bias=True))
    with torch.no_grad():
        exact = model(torch.arange(3, 23)[None]).logits
        with mpq.apply_plan(model, plan):
            np.testing.assert_allclose(model(torch.arange(3, 23)[None]).logits, exact, atol=0.2)


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("variance", "mpq-profile variance --model Qwen/Qwen3-0.6B"),
        ("statistics", "mpq-profile statistics --fixed-width 8"),
    ],
)
def test_help_shows_an_example_and_loads_nothing_heavy(command, example):
    code = (
        "import sys\nfrom mpq.cli.profile import main\n"
        f"try:\n    main([{command!r}, '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'scipy', 'pandas', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert example in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
