"""`mpq-convert` from its flags to a checkpoint that loads, and every input that it refuses."""

import csv
import json
import math
import re
import shutil

import pytest
import torch

import mpq
from mpq.cli import convert, convert_writing
from mpq.convert import finished, losses, walk
from mpq.data.windows import load_splits
from mpq.measures import cross_entropy
from mpq.modeling.loading import load_model
from mpq.plans.rules import plan_toml
from mpq.run import write_toml


@pytest.fixture
def run(model_dir, tmp_path):
    """The exit code of `mpq-convert` on the small model."""

    def call(*flags, out="ck", model=None):
        text = ["--window", "32", "--tokens", "256", "--heldout-tokens", "128"]
        text += ["--text", str(model_dir / "text.txt")]
        base = ["--model", str(model or model_dir), *text, "--out", str(tmp_path / out)]
        return convert.main([*base, "--device", "cpu", *flags])

    return call


def heldout(model_dir, tokenizer):
    return load_splits(
        tokenizer=tokenizer,
        source="file",
        path=model_dir / "text.txt",
        window=32,
        calibration_tokens=256,
        search_tokens=32,
        heldout_tokens=128,
    ).heldout.tokens


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def digests(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_a_format_becomes_a_checkpoint_whose_loss_is_the_reported_one(
    run, model_dir, tmp_path, capsys
):
    assert run("--format", "int3-g16") == 0
    said = capsys.readouterr().out
    report = report_of(tmp_path / "ck")
    loaded = mpq.load(tmp_path / "ck")
    windows = heldout(model_dir, loaded.tokenizer)
    with torch.no_grad():
        logits = loaded.model(windows).logits
    loss = float(cross_entropy(logits[:, :-1], windows[:, 1:]).double().mean())
    assert report["heldout"]["loss_after"] == pytest.approx(loss, abs=1e-12)
    assert report["heldout"]["perplexity_after"] == math.exp(report["heldout"]["loss_after"])
    assert report["size"]["bits_per_value"] == 4.0
    assert f"-> {report['heldout']['perplexity_after']:.4g} on 128 held-out tokens" in said
    assert re.search(r"int3-g16 +gptq +14 +4\.000", said)
    assert not (tmp_path / "ck" / "unfinished").exists()
    with (tmp_path / "ck" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    assert {row["method"] for row in rows} == {"gptq"}
    assert sum(float(r["loss"]) for r in rows) < sum(float(r["rtn_loss"]) for r in rows)


def test_the_bytes_that_are_reported_are_those_of_the_files(run, tmp_path):
    assert run("--format", "int3-g16", "--method", "rtn") == 0
    size = report_of(tmp_path / "ck")["size"]
    (shard,) = (tmp_path / "ck").glob("*.safetensors")
    header = int.from_bytes(shard.read_bytes()[:8], "little")
    stored = shard.stat().st_size - 8 - header
    assert 0 <= stored - size["after"] <= 14 * 4  # a few bits of padding a tensor


def test_a_plan_of_weights_biases_and_activations(run, model_dir, tmp_path):
    loaded = load_model(str(model_dir))
    formats = {
        "model.layers.0.mlp.up_proj.weight": "bfp3",
        "model.layers.1.self_attn.q_proj.weight": "int4a-g16",
        "model.layers.1.mlp.down_proj.input": "bfp6",
        "model.layers.0.self_attn.k": "int8-token",
        "lm_head.weight": "mxfp8-e4m3",
    }
    plan = mpq.Plan.of(formats, model=str(model_dir), fingerprint=loaded.fingerprint)
    write_toml(tmp_path / "plan.toml", plan_toml(plan))
    assert run(str(tmp_path / "plan.toml")) == 0
    back = mpq.load(tmp_path / "ck")
    windows = heldout(model_dir, back.tokenizer)
    with torch.no_grad():
        logits = back.model(windows).logits
    loss = float(cross_entropy(logits[:, :-1], windows[:, 1:]).double().mean())
    report = report_of(tmp_path / "ck")
    assert report["heldout"]["loss_after"] == pytest.approx(loss, abs=1e-12)
    assert {row["site"] for row in report["tensors"]} == {n for n in formats if "weight" in n}


def test_an_interrupted_conversion_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch, capsys):
    assert run("--format", "bfp3", out="whole") == 0
    write = finished.FinishedBlocks.write

    def stop_after_the_first(self, key, block):
        write(self, key, block)
        if key == "block-00000":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finished.FinishedBlocks, "write", stop_after_the_first)
        assert run("--format", "bfp3", out="parts") == 130
    with pytest.raises(mpq.errors.CheckpointError, match=r"no config\.json"):
        mpq.load(tmp_path / "parts")
    solved = []
    convert_block = walk.convert_block
    monkeypatch.setattr(
        walk, "convert_block", lambda job: solved.append(len(job.places)) or convert_block(job)
    )
    assert run("--format", "bfp3", out="parts") == 0
    assert solved == [7, 0]  # the second block, and nothing behind the blocks
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    capsys.readouterr()
    assert run("--format", "bfp3", out="parts") == 0  # done: only says so
    assert solved == [7, 0]
    assert "perplexity:" in capsys.readouterr().out


def test_another_conversion_into_the_same_directory_is_refused(run, tmp_path, capsys):
    assert run("--format", "bfp3") == 0
    assert run("--format", "bfp4") == 1
    said = capsys.readouterr().err
    assert "format: 'bfp3' -> 'bfp4'" in said
    assert "choose another directory with --out" in said


def test_formats_are_assigned_under_a_budget(run, tmp_path, capsys):
    flags = ["--candidate-formats", "int4-g16,int3-g16,int2-g16", "--target-bits", "4.25"]
    assert run(*flags) == 0
    report = report_of(tmp_path / "ck")
    assert report["size"]["bits_per_value"] <= 4.25
    formats = {row["site"]: row["format"] for row in report["tensors"]}
    assert len(set(formats.values())) > 1
    layer = "model.layers.0.self_attn"
    assert len({formats[f"{layer}.{kind}_proj.weight"] for kind in "qkv"}) == 1
    lost = report["candidates"]["losses"]
    assert lost.keys() == formats.keys()
    assert all(one["int2-g16"] > one["int4-g16"] for one in lost.values())


def test_formats_are_assigned_by_a_threshold(run, tmp_path):
    flags = ["--candidate-formats", "int2-g16,int8", "--loss-threshold"]
    assert run(*flags, "1e9", out="loose") == 0
    assert run(*flags, "1e-12", out="strict") == 0
    for out, format in (("loose", "int2-g16"), ("strict", "int8")):
        rows = report_of(tmp_path / out)["tensors"]
        assert {row["format"] for row in rows} == {format}


def test_another_budget_goes_on_with_the_losses(run, tmp_path, monkeypatch):
    flags = ["--candidate-formats", "int4-g16,int2-g16", "--target-bits"]
    with monkeypatch.context() as patch:
        patch.setattr(walk, "convert_block", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*flags, "4.25")
    monkeypatch.setattr(losses, "_losses_of", lambda *_: 1 / 0)
    assert run(*flags, "3.5") == 0
    assert report_of(tmp_path / "ck")["size"]["bits_per_value"] <= 3.5


@pytest.mark.parametrize("flags", [("--groups", "exact"), ("--bias-correction",)])
def test_what_is_loaded_is_what_was_judged(run, model_dir, tmp_path, flags):
    assert run("--format", "int3-g16", *flags) == 0
    report = report_of(tmp_path / "ck")
    loaded = mpq.load(tmp_path / "ck")
    windows = heldout(model_dir, loaded.tokenizer)
    with torch.no_grad():
        logits = loaded.model(windows).logits
    loss = float(cross_entropy(logits[:, :-1], windows[:, 1:]).double().mean())
    assert report["heldout"]["loss_after"] == pytest.approx(loss, abs=1e-12)
    (shard,) = (tmp_path / "ck").glob("*.safetensors")
    header = int.from_bytes(shard.read_bytes()[:8], "little")
    assert 0 <= shard.stat().st_size - 8 - header - report["size"]["after"] <= 14 * 4
    expected = {"added"} if flags == ("--bias-correction",) else {""}
    assert {row["bias"] for row in report["tensors"]} == expected


def test_calibration_on_the_models_own_text(run, tmp_path, capsys):
    assert run("--format", "bfp3", "--generate") == 0
    assert re.search(r"tokens written .* (\d+)/\1 .* left ", capsys.readouterr().err)
    settings = report_of(tmp_path / "ck")["settings"]
    assert settings["text"]["source"] == "generated"
    assert settings["heldout"]["source"].startswith("file")
    assert run("--format", "bfp3", "--generate", "--seed", "1") == 1  # others lie there


def test_without_heldout_tokens_nothing_is_judged(run, tmp_path, capsys):
    assert run("--format", "bfp3", "--heldout-tokens", "0", "--activations", "disk") == 0
    assert report_of(tmp_path / "ck")["heldout"] is None
    assert "perplexity" not in capsys.readouterr().out


def test_model_and_text_of_the_run_that_the_plan_lies_in(run, model_dir, tmp_path):
    folder = tmp_path / "run"
    text = {"source": "file", "path": str(model_dir / "text.txt"), "window": 32}
    config = {"model": {"id": str(model_dir), "dtype": "bfloat16"}, "data": text}
    write_toml(folder / "config.toml", config)
    loaded = load_model(str(model_dir), dtype="bfloat16")
    plan = mpq.uniform_plan(loaded.model, "int4-g16", roles=("weight",))
    named = mpq.Plan(formats=plan.formats, model=str(model_dir), fingerprint=loaded.fingerprint)
    write_toml(folder / "plans" / "best.toml", plan_toml(named))
    flags = ["--tokens", "256", "--heldout-tokens", "128", "--device", "cpu"]
    out = tmp_path / "ck"
    assert convert.main([str(folder / "plans" / "best.toml"), *flags, "--out", str(out)]) == 0
    assert mpq.load(out).model.dtype == torch.bfloat16


def test_a_plan_for_other_weights_is_refused_or_taken_on_request(run, model_dir, tmp_path, capsys):
    plan = mpq.Plan.of({"model.layers.0.mlp.up_proj.weight": "int4"}, fingerprint="f00")
    write_toml(tmp_path / "plan.toml", plan_toml(plan))
    assert run(str(tmp_path / "plan.toml")) == 1
    assert "the plan names fingerprint f00" in capsys.readouterr().err
    assert run(str(tmp_path / "plan.toml"), "--allow-other-model") == 0


def test_a_text_shorter_than_its_windows_is_refused(run, capsys):
    assert run("--format", "int4", "--tokens", "4096") == 1
    assert "tokens" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_that_loads(run, tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(finished, "write_atomic", full)
        assert run("--format", "bfp3") == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "the same command goes on" in said
    with pytest.raises(mpq.errors.CheckpointError, match=r"no config\.json"):
        mpq.load(tmp_path / "ck")
    assert run("--format", "bfp3") == 0


def test_a_directory_of_something_else_is_refused(run, tmp_path, model_dir, capsys):
    shutil.copytree(model_dir, tmp_path / "ck")
    assert run("--format", "int4") == 1
    assert "a conversion needs a directory of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of a plan's file, --format, or --candidate-formats; 0 were given"),
        (["plan.toml", "--format", "int4"], "2 were given"),
        (["--candidate-formats", "int4,int3"], "give one of the two, not 0"),
        (
            ["--candidate-formats", "int4", "--target-bits", "4", "--loss-threshold", "1"],
            "give one of the two, not 2",
        ),
        (["--format", "int4", "--target-bits", "4"], "go with --candidate-formats"),
        (
            ["--candidate-formats", "int4", "--target-bits", "4.5", "--method", "rtn"],
            "compared by the loss of --method gptq",
        ),
        (["--candidate-formats", "int4,int3", "--target-bits", "1"], "smallest"),
        (["--candidate-formats", "int4,int3", "--loss-threshold", "0"], "is above 0, not 0.0"),
        (["--format", "int9000"], "int9000"),
        (["nowhere.toml"], "nowhere.toml: a plan is a readable TOML file"),
        (["--format", "int4", "--batch-size", "0"], "--batch-size is at least 1 window, not 0"),
        (["--format", "int4", "--damping", "-1"], "damping"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, capsys, flags, message):
    assert run(*flags) == 1
    assert message in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        convert.main(["--help"])
    said = capsys.readouterr().out
    assert "mpq-convert runs/tiny_llama/plans/best.toml --out checkpoints/tiny" in said
    assert convert_writing.REPORT in said
