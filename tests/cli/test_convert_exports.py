"""Exports of a checkpoint: what transformers loads gives our logits; what cannot be is refused."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mpq
from mpq.cli import convert, convert_exports
from mpq.cli.convert_exports import lookup_tables, refuse_inexpressible, write_tool_plans
from mpq.convert.block import WalkOptions
from mpq.convert.conversion import prepare
from mpq.convert.options import SolverOptions
from mpq.errors import ExportError
from mpq.modeling.checkpoint import open_checkpoint
from mpq.plans.plan import Plan
from mpq.run import write_toml
from tests.modeling.families import build, save_llama, text


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A Llama whose layers are multiples of 32 wide, as GPTQ packs them, and a text."""
    return save_llama(tmp_path_factory.mktemp("model"), hidden_size=64, intermediate_size=96)


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
    assert run(mixed_plan(tmp_path), *flags) == 0
    said = capsys.readouterr()
    assert "compressed-tensors (read back, the same values)" in said.out, said.err
    total = len(open_checkpoint(tmp_path / "ck").dense_names) + 14
    for step in ("written", "read back"):
        for name in ("compressed-tensors", "gptq"):
            assert re.search(rf"{name}: {step} .* {total}/{total} .* left ", said.err), said.err
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
    assert not (tmp_path / "ck" / "compressed-tensors" / "config.json").exists()
    assert run(*flags) == 0  # written again


def test_what_a_target_cannot_hold_is_refused_before_any_work(run, tmp_path, capsys):
    assert run("--format", "bmf8-e4m3", "--export", "gptq") == 1
    said = capsys.readouterr().err
    assert "a gptq checkpoint cannot hold 14 of the plan's tensors" in said
    assert "nearest: int8" in said
    assert not (tmp_path / "ck" / "unfinished" / "blocks").exists()


def conversion(family, format, **options):
    model = build(family).to(torch.bfloat16)
    plan = mpq.uniform_plan(model, format, roles=("weight",))
    walking = WalkOptions(solver=SolverOptions(act_order=True, **options))
    return prepare(model, plan, text(1, 8), options=walking, device=torch.device("cpu"))


def test_every_target_is_asked():
    given = conversion("llama", "fp8-e4m3")
    refuse_inexpressible(given, ["compressed-tensors"])
    with pytest.raises(ExportError, match="a gptq checkpoint cannot hold 14 of"):
        refuse_inexpressible(given, ["compressed-tensors", "gptq"])


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("mixtral", {}, r"experts\.0\.gate_up_proj\.weight in int4-g16: experts are stored in a"),
        ("gpt2", {}, r"c_fc\.weight in int4-g16: "),
        ("llama", {"groups": "exact"}, r"q_proj\.weight in int4-g16: "),
    ],
)
def test_what_a_shape_or_an_order_forbids_is_told_before_the_walk(family, options, reason):
    with pytest.raises(ExportError, match=reason):
        refuse_inexpressible(conversion(family, "int4-g16", **options), ["compressed-tensors"])


def test_biases_that_engines_would_drop_are_told_before_the_walk():
    given = conversion("llama", "int4-g16")
    options = replace(given.options, bias_correction=True)
    with pytest.raises(ExportError, match="its layer has no bias, and engines drop one"):
        refuse_inexpressible(replace(given, options=options), ["gptq"])


def test_a_checkpoint_with_added_biases_is_not_exported(tmp_path):
    checkpoint = SimpleNamespace(biases_added=("model.layers.0.mlp.up_proj.bias",))
    with pytest.raises(ExportError, match=r"layers without one were given \(model\.layers\.0\."):
        convert_exports._write("gptq", tmp_path, checkpoint, {}, lambda *_: None)


def test_tables_know_the_head_that_is_tied_to_them():
    assert lookup_tables(build("gemma3")) == {"model.embed_tokens.weight": "lm_head.weight"}
    assert lookup_tables(build("llama")) == {"model.embed_tokens.weight": ""}


def test_the_plan_is_written_for_other_tools(tmp_path):
    plan = Plan.of({"model.layers.0.mlp.up_proj.weight": "int4-g128", "x.weight": "bl8"})
    assert write_tool_plans(tmp_path, plan) == {"gptqmodel": 1, "auto-round": 1, "llama.cpp": 0}
    dynamic = json.loads((tmp_path / "tool_plans" / "gptqmodel.json").read_text())
    assert dynamic
    assert (tmp_path / "tool_plans" / "auto-round.json").is_file()
    assert not (tmp_path / "tool_plans" / "llama.cpp.txt").exists()
