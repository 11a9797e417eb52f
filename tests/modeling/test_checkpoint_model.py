"""Models built from checkpoints: whose logits they have, and which checkpoints do not fit."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from mpq import Plan, apply_plan, encode, uniform_plan
from mpq.errors import CheckpointError
from mpq.modeling.checkpoint import config_of, model_of, open_checkpoint, write_checkpoint
from mpq.modeling.checkpoint_model import dtype_of
from mpq.modeling.packed import PackedWeight, unpack_weight
from tests.modeling.checkpoints import packed_tensors, rewrite, saved, signed
from tests.modeling.families import FAMILIES, UNREACHABLE, build, logits, text

EXPERT = "model.layers.0.mlp.experts.3.gate_up_proj.weight"


@pytest.mark.parametrize("family", [*FAMILIES, *UNREACHABLE])
def test_every_family_has_the_logits_of_its_unpacked_weights(family, tmp_path):
    model = build(family)
    plan = saved(model, tmp_path, max_shard_bytes=30_000)
    loaded = model_of(open_checkpoint(tmp_path))
    with apply_plan(model, plan):
        assert torch.equal(logits(loaded, text()), logits(model, text()))
    assert type(loaded) is type(model)
    assert not loaded.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral"])
def test_models_of_16_bits_keep_their_dtype_and_their_logits(family, dtype, tmp_path):
    # As load_model has it, which keeps rotary frequencies in float32; `.to(dtype)` does not.
    build(family).save_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=dtype)
    plan = saved(model, tmp_path / "packed", "mxfp4")
    loaded = model_of(open_checkpoint(tmp_path / "packed"))
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    with apply_plan(model, plan):
        assert torch.equal(logits(loaded, text()), logits(model, text()))


def test_buffers_that_no_file_holds_are_the_models_own(tmp_path):
    model = build("gemma3")
    saved(model, tmp_path)
    loaded = dict(model_of(open_checkpoint(tmp_path)).named_buffers())
    assert loaded.keys() == dict(model.named_buffers()).keys()
    assert loaded
    assert all(torch.equal(loaded[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_tied_head_comes_under_either_of_its_names(name, tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**_SMALL, tie_word_embeddings=True)).eval()
    plan = Plan.of({name: "int8-g16"})
    saved(model, tmp_path, plan)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.sites == (name,)
    loaded = model_of(checkpoint)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with apply_plan(model, plan):
        assert torch.equal(logits(loaded, text()), logits(model, text()))


def test_biases_stay_and_can_be_packed(tmp_path):
    model = build("gpt2")
    plan = uniform_plan(model, "int8", roles=("weight", "bias"))
    saved(model, tmp_path, plan)
    loaded = model_of(open_checkpoint(tmp_path))
    assert "transformer.h.0.mlp.c_fc.bias" in open_checkpoint(tmp_path).sites
    with apply_plan(model, plan):
        assert torch.equal(logits(loaded, text()), logits(model, text()))


def test_biases_are_added_to_layers_that_had_none(tmp_path):
    model = build("llama")
    name = "model.layers.1.mlp.up_proj.bias"
    plan = uniform_plan(model, "int4-g16", roles=("weight",))
    bias = torch.randn(48, generator=torch.Generator().manual_seed(4))
    write_checkpoint(
        tmp_path,
        model_config=config_of(model),
        tensors=[*packed_tensors(model, plan).items(), (name, bias)],
        plan=plan,
        biases_added=[name],
    )
    loaded = model_of(open_checkpoint(tmp_path))
    with apply_plan(model, plan):
        before = logits(model, text())
        model.model.layers[1].mlp.up_proj.bias = nn.Parameter(bias)
        assert torch.equal(logits(loaded, text()), logits(model, text()))
    assert not torch.equal(logits(loaded, text()), before)
    signed(tmp_path, biases_added=["model.layers.1.input_layernorm.bias"])
    with pytest.raises(CheckpointError, match=r"bias to a LlamaRMSNorm, which takes none"):
        model_of(open_checkpoint(tmp_path))


def test_some_experts_can_be_packed_and_others_not(tmp_path):
    model = build("mixtral")
    plan = Plan.of({EXPERT: "int3", EXPERT.replace("3.gate", "1.gate"): "bfp4"})
    saved(model, tmp_path, plan)
    checkpoint = open_checkpoint(tmp_path)
    assert EXPERT.replace("3.gate", "0.gate") in checkpoint.dense_names
    loaded = model_of(checkpoint)
    fused = loaded.model.layers[0].mlp.experts.gate_up_proj
    assert torch.equal(fused[3], unpack_weight(checkpoint.packed(EXPERT)))
    with apply_plan(model, plan):
        assert torch.equal(logits(loaded, text()), logits(model, text()))


def test_columns_in_another_order_come_back_in_place(tmp_path):
    model = build("llama")
    plan = uniform_plan(model, "int4-g16", roles=("weight",))
    tensors = packed_tensors(model, plan)
    name = "model.layers.0.mlp.down_proj.weight"
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    tensors[name] = PackedWeight(encoded=tensors[name].encoded, order=order)
    write_checkpoint(tmp_path, model_config=config_of(model), tensors=tensors.items(), plan=plan)
    loaded = model_of(open_checkpoint(tmp_path))
    assert torch.equal(loaded.model.layers[0].mlp.down_proj.weight, unpack_weight(tensors[name]))


_SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def test_stored_tensors_have_the_dtype_that_their_values_take():
    encoded = PackedWeight(encoded=encode(torch.ones(2, 4).half(), "int8"))
    assert dtype_of([encoded, torch.ones(2)]) == torch.float16
    assert dtype_of([torch.ones(2).bfloat16()]) == torch.bfloat16


def test_a_classifier_is_one_again(tmp_path):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**_SMALL, num_labels=3)).eval()
    plan = saved(model, tmp_path)
    loaded = model_of(open_checkpoint(tmp_path))
    assert loaded.config.num_labels == 3
    with apply_plan(model, plan):
        assert torch.equal(logits(loaded, text()), logits(model, text()))


def test_no_weight_is_drawn_and_the_generator_stays_where_it_was(tmp_path):
    saved(build("llama"), tmp_path)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    model_of(open_checkpoint(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_config_names_class_and_dtype_and_no_place():
    config = config_of(build("llama", torch.bfloat16))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert "_name_or_path" not in config


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model.norm.weight": None}, r"LlamaForCausalLM: model\.norm\.weight is missing\. Conv"),
        ({"extra": torch.zeros(3)}, r"extra is none of the model's tensors"),
        ({"model.norm.weight": torch.zeros(31)},
         r"model\.norm\.weight has shape \(31,\), and the model's has \(32,\)"),
        ({"lm_head.weight": None, "extra": torch.zeros(3)}, r"lm_head.* missing; extra is none"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_model_is_refused(changes, match, tmp_path):
    saved(build("llama"), tmp_path)
    rewrite(tmp_path, changes)
    with pytest.raises(CheckpointError, match=match):
        model_of(open_checkpoint(tmp_path))


def test_a_packed_weight_of_another_shape_is_refused(tmp_path):
    model = build("llama")
    saved(model, tmp_path)
    import json

    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"intermediate_size": 64}))
    signed(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight has shape \(48, 32\), .* \(64, 32"
    ):
        model_of(open_checkpoint(tmp_path))


def test_a_class_that_transformers_does_not_have_is_refused(tmp_path):
    model = build("llama")
    config = config_of(model) | {"architectures": ["LlamaForNothing"]}
    write_checkpoint(
        tmp_path, model_config=config, tensors=model.state_dict().items(), plan=Plan.of({})
    )
    with pytest.raises(CheckpointError, match="holds a LlamaForNothing, and transformers 5"):
        model_of(open_checkpoint(tmp_path))
