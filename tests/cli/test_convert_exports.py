"""Exports of a checkpoint: what transformers loads gives our logits; what cannot be is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mpq
from mpq.cli import convert
from mpq.cli.convert_exports import lookup_tables, refuse_inexpressible, write_tool_plans
from mpq.errors import ExportError
from mpq.plans.plan import Plan
from mpq.run import write_toml
from tests.modeling.families import build


@pytest.fixture
def run(model_dir, tmp_path):
    def call(*flags):
        text = ["--window", "32", "--tokens", "128", "--heldout-tokens", "0", "--device", "cpu"]
        text += ["--text", str(model_dir / "text.txt"), "--dtype", "bfloat16"]
        base = ["--model", str(model_dir), *text, "--out", str(tmp_path / "ck")]
        return convert.main([*base, *flags])

    return call


def mixed_plan(tmp_path):
    rules = {
        "model.layers.0.mlp.*.weight": "int8",
        "model.layers.1.mlp.down_proj.weight": "bf16",
        "model.layers.*.weight": "int4-g16",
    }
    write_toml(tmp_path / "plan.toml", {"schema": 1, "formats": rules})
    return str(tmp_path / "plan.toml")


def test_transformers_loads_the_export_and_gives_our_logits(run, tmp_path, capsys):
    flags = ["--export", "compressed-tensors", "--export", "gptq"]
    assert run(mixed_plan(tmp_path), "--grid", "absmax", *flags) in (0, 1)
    said = capsys.readouterr()
    assert "compressed-tensors (read back, the same values)" in said.out, said.err
    ours = mpq.load(tmp_path / "ck")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ck" / "compressed-tensors", dtype=torch.bfloat16
    )
    tokens = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours.model(tokens).logits)
    assert (tmp_path / "ck" / "compressed-tensors" / "tokenizer.json").is_file()
    assert (tmp_path / "ck" / "gptq" / "config.json").is_file()


def test_an_export_that_was_changed_is_noticed(run, tmp_path, capsys):
    flags = [mixed_plan(tmp_path), "--export", "compressed-tensors"]
    assert run(*flags) == 0
    (shard,) = (tmp_path / "ck" / "compressed-tensors").glob("*.safetensors")
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("q_proj.weight_scale"))
    save_file({**tensors, name: tensors[name] * 2}, shard, metadata={"format": "pt"})
    assert run(*flags) == 1
    assert "q_proj.weight" in capsys.readouterr().err


def test_what_a_target_cannot_hold_is_refused_before_any_work(run, tmp_path, capsys):
    assert run("--format", "bmf8-e4m3", "--export", "gptq") == 1
    said = capsys.readouterr().err
    assert "a gptq checkpoint cannot hold 14 of the plan's tensors" in said
    assert "nearest: int8" in said
    assert not (tmp_path / "ck" / "unfinished" / "blocks").exists()


def test_every_target_is_asked():
    plan = Plan.of({"a.weight": "fp8-e4m3"})
    refuse_inexpressible(plan, ["compressed-tensors"])
    with pytest.raises(ExportError, match="a gptq checkpoint cannot hold 1 of"):
        refuse_inexpressible(plan, ["compressed-tensors", "gptq"])


def test_tables_know_the_head_that_is_tied_to_them():
    assert lookup_tables(build("gemma3")) == {"model.embed_tokens.weight": "lm_head.weight"}
    assert lookup_tables(build("llama")) == {"model.embed_tokens.weight": ""}


def test_the_plan_is_written_for_other_tools(tmp_path):
    plan = Plan.of({"model.layers.0.mlp.up_proj.weight": "int4-g128", "x.weight": "bl8"})
    missing = write_tool_plans(tmp_path, plan)
    assert missing["gptqmodel"] == 1
    dynamic = json.loads((tmp_path / "tool_plans" / "gptqmodel.json").read_text())
    assert dynamic
    assert (tmp_path / "tool_plans" / "auto-round.json").is_file()
    assert (tmp_path / "tool_plans" / "llama.cpp.txt").is_file()
