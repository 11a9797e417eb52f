import re

import gguf
import numpy as np
import pytest
import torch

from mpq.convert.tool_plans import (
    LLAMA_CPP_INTEGERS,
    TOOLS,
    auto_round_layer_config,
    gptqmodel_dynamic,
    llama_cpp_tensor_types,
    tool_plan,
)
from mpq.errors import ExportError
from mpq.kernels.fake_quant import encode, quantize
from mpq.plans.plan import Plan

PLAN = Plan.of(
    {
        "model.embed_tokens.weight": "bf16",
        "model.layers.0.self_attn.q_proj.weight": "int4-g128",
        "model.layers.0.self_attn.k_proj.weight": "int4-g128",
        "model.layers.0.self_attn.v_proj.weight": "int8a",
        "model.layers.0.mlp.up_proj.weight": "mxfp4",
        "model.layers.0.mlp.down_proj.weight": "int8-g32-sf16",
        "model.layers.0.mlp.gate_proj.weight": "bfp4",
        "model.layers.0.mlp.up_proj.input": "int8",
        "model.layers.1.self_attn.q_proj.weight": "int4f-g128",
        "model.layers.1.mlp.gate_proj.weight": "int4f-g32-sf16",
        "model.layers.1.mlp.up_proj.weight": "int5f-g32-sf16",
    }
)
BFP = {"model.layers.0.mlp.gate_proj.weight": "bfp4"}
INPUT = {"model.layers.0.mlp.up_proj.input": "int8"}


def test_gptqmodel_gets_the_common_scheme_and_a_rule_for_each_other_layer():
    found = gptqmodel_dynamic(PLAN)
    content = dict(found.content)
    rules = content.pop("dynamic")
    assert content == {"bits": 4, "group_size": 128, "sym": True}
    assert rules[r"+:^model\.layers\.0\.self_attn\.v_proj$"] == {
        "bits": 8,
        "group_size": -1,
        "sym": False,
    }
    assert rules[r"-:^model\.layers\.0\.mlp\.gate_proj$"] == {}
    assert all(re.compile(rule[2:]) for rule in rules)
    assert BFP.items() <= found.without_equivalent.items()
    assert found.without_equivalent["model.layers.0.mlp.up_proj.weight"] == "mxfp4"
    assert not any("q_proj" in rule for rule in rules)  # of full range: sym has all codes


def test_auto_round_gets_a_table_of_modules():
    found = auto_round_layer_config(PLAN)
    layer = "model.layers.0."
    assert found.content[layer + "self_attn.q_proj"] == {
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "data_type": "int",
        "act_bits": 16,
    }
    assert found.content[layer + "mlp.up_proj"]["data_type"] == "mx_fp"
    alone = {"bits": 16, "data_type": "float", "act_bits": 16}
    assert found.content[layer + "mlp.gate_proj"] == alone
    assert found.content["model.embed_tokens"] == alone
    assert found.without_equivalent == BFP | INPUT


def test_llama_cpp_gets_lines_for_true_equivalents_only():
    found = llama_cpp_tensor_types(PLAN)
    assert set(found.content) == {
        "--token-embedding-type bf16",
        r"--tensor-type blk\.0\.ffn_up\.weight=mxfp4",
        r"--tensor-type blk\.0\.ffn_down\.weight=q8_0",
        r"--tensor-type blk\.1\.ffn_gate\.weight=q4_0",
        r"--tensor-type blk\.1\.ffn_up\.weight=q5_0",
    }
    left = {site for site in PLAN.formats if "attn" in site}
    assert set(found.without_equivalent) == left | BFP.keys() | INPUT.keys()


@pytest.mark.parametrize("text", LLAMA_CPP_INTEGERS)
def test_llama_cpp_s_types_have_our_scales_and_our_values(text):
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.05
    x[0, :64] = 0.0
    x[1, 3], x[1, 9] = -0.5, 0.5
    kind = gguf.GGMLQuantizationType[LLAMA_CPP_INTEGERS[text].upper()]
    raw = gguf.quants.quantize(x.numpy(), kind)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    scales = np.ascontiguousarray(raw.reshape(-1, size)[:, :2]).view(np.float16).flatten()
    # Of -m and m, theirs takes the first, which here is ours, the negative one.
    assert np.array_equal(encode(x, text).scales.numpy(), scales)
    # They divide by the scale before it is stored: a code may differ, the values that it may be
    # do not.
    theirs = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    assert torch.equal(quantize(theirs, text), theirs)
    assert float((quantize(x, text) != theirs).float().mean()) < 0.01


def test_a_layer_whose_gguf_name_is_unknown_is_listed():
    plan = Plan.of({"transformer.h.0.c_attn.weight": "mxfp4"})
    assert llama_cpp_tensor_types(plan).without_equivalent == {
        "transformer.h.0.c_attn.weight": "mxfp4"
    }


@pytest.mark.parametrize("tool", TOOLS)
def test_a_plan_is_written_for_every_tool_an_empty_one_too(tool):
    assert tool_plan(PLAN, tool) == TOOLS[tool](PLAN)
    assert not tool_plan(Plan.of({}), tool).without_equivalent


def test_an_unknown_tool_is_refused():
    with pytest.raises(ExportError, match=r"a plan is written for gptqmodel, .*'awq' is none"):
        tool_plan(PLAN, "awq")
