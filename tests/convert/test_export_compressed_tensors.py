import json

import pytest
import torch

from mpq.convert.export_compressed_tensors import export_compressed_tensors
from mpq.errors import ExportError
from mpq.formats.zoo import parse_format
from mpq.modeling.packed import unpack_weight
from tests.convert.exports import (
    CONFIG,
    HEAD,
    logits,
    packed,
    packed_sites,
    shipped_model,
    the_rest,
)

MIXED = {
    "model.layers.0.self_attn.q_proj.weight": "int4-g128",
    "model.layers.0.self_attn.k_proj.weight": "int8",
    "model.layers.0.self_attn.v_proj.weight": "int3-g64",
    "model.layers.0.self_attn.o_proj.weight": "int2-g32",
    "model.layers.0.mlp.gate_proj.weight": "int8a-g64",
    "model.layers.0.mlp.up_proj.weight": "fp8-e4m3",
    "model.layers.0.mlp.down_proj.weight": "fp8-e4m3-g64",
    "model.layers.1.self_attn.q_proj.weight": "nvfp4",
    "model.layers.1.self_attn.k_proj.weight": "mxfp4",
    "model.layers.1.self_attn.v_proj.weight": "mxfp6-e2m3",
    "model.layers.1.self_attn.o_proj.weight": "mxfp8-e4m3",
    "model.layers.1.mlp.gate_proj.weight": "bfp4",
    "model.layers.1.mlp.up_proj.weight": "mxint8",
    "model.layers.1.mlp.down_proj.weight": "bfp6(block=4x16)",
    "model.layers.2.self_attn.q_proj.weight": "fixed8.6",
    "model.layers.2.self_attn.k_proj.weight": "int5-tensor",
    "model.layers.2.self_attn.v_proj.weight": "bf16",
    "model.layers.2.self_attn.o_proj.weight": "int4f-g128",
    "model.layers.2.mlp.gate_proj.weight": "int2f-g32",
    "model.layers.2.mlp.up_proj.weight": "int8f",
}


def test_transformers_loads_a_mixed_export_and_gives_our_logits(tmp_path):
    model = shipped_model()
    sites = packed_sites(model, MIXED | {"model.embed_tokens.weight": "int8"})
    rest = the_rest(model, sites)
    export_compressed_tensors(tmp_path / "out", sites.items(), rest, CONFIG, tables=HEAD)
    ours = model.state_dict()
    for site, weight in sites.items():
        ours[site].copy_(unpack_weight(weight))
    assert torch.equal(logits(shipped_model(tmp_path / "out")), logits(model))


def test_a_tied_head_that_is_left_alone_stays_tied(tmp_path):
    model = shipped_model()
    sites = packed_sites(model, {name: MIXED[name] for name in list(MIXED)[:2]})
    export_compressed_tensors(tmp_path / "out", sites.items(), the_rest(model, sites), CONFIG)
    back = shipped_model(tmp_path / "out")
    assert back.lm_head.weight is back.model.embed_tokens.weight
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert told["format"] == "pack-quantized"
    assert [group["targets"] for group in told["config_groups"].values()] == [
        ["model.layers.0.self_attn.q_proj"],
        ["model.layers.0.self_attn.k_proj"],
    ]
    assert {"lm_head", "model.layers.0.mlp.up_proj"} <= set(told["ignore"])


def test_layers_of_one_scheme_share_a_group(tmp_path):
    sites = {f"{name}.weight": packed("int4-g64") for name in "ab"} | {"c.weight": packed("int8")}
    export_compressed_tensors(tmp_path / "out", sites.items(), [], CONFIG)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert [group["targets"] for group in told["config_groups"].values()] == [["a", "b"], ["c"]]


def test_an_input_format_stands_in_the_scheme(tmp_path):
    sites = {"a.weight": packed("int8"), "b.weight": packed("fp8-e4m3")}
    inputs = {"a.input": parse_format("int8-token"), "b.input": parse_format("fp8-e4m3-token")}
    export_compressed_tensors(tmp_path / "out", sites.items(), [], CONFIG, inputs=inputs)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = list(told["config_groups"].values())
    assert [group["format"] for group in groups] == ["int-quantized", "float-quantized"]
    assert [group["input_activations"]["type"] for group in groups] == ["int", "float"]
    assert all(group["input_activations"]["dynamic"] for group in groups)


def test_every_weight_that_does_not_fit_is_listed_and_nothing_is_left_behind(tmp_path):
    sites = {
        "a.weight": packed("nf4-g64"),
        "b.weight": packed("int4-g48"),
        "c.weight": packed("int4-g64"),
        "d.weight": packed("log8"),
    }
    with pytest.raises(ExportError, match="cannot hold 3 of the plan's tensors") as caught:
        export_compressed_tensors(tmp_path / "out", sites.items(), [], CONFIG)
    message = str(caught.value)
    assert "a.weight in nf4-g64: no layout of it holds such values; nearest: int4-g64" in message
    assert "b.weight in int4-g48: its groups of 48 leave a short one" in message
    assert "d.weight in log8" in message
    assert "c.weight" not in message
    assert not list((tmp_path / "out").iterdir())


def test_inputs_without_a_packed_weight_are_refused(tmp_path):
    inputs = {"a.input": parse_format("int8-token"), "b.input": parse_format("bfp8")}
    with pytest.raises(ExportError, match="only beside its layer's weight") as caught:
        export_compressed_tensors(tmp_path / "out", [], [], CONFIG, inputs=inputs)
    assert "b.input in bfp8: it names no format of activations, but" in str(caught.value)


def test_a_table_without_a_head_is_refused(tmp_path):
    sites = {"wte.weight": packed("int8")}
    with pytest.raises(ExportError, match="loads no quantised lookup table"):
        export_compressed_tensors(
            tmp_path / "out", sites.items(), [], CONFIG, tables={"wte.weight": ""}
        )
