"""Which sites a model has: names, shapes, axes, groups, blocks and ties."""

import gc
import weakref

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
)

from mpq.modeling import sites as module
from mpq.modeling.sites import places, sites
from mpq.plans.site import TOKENS
from tests.modeling.families import FAMILIES, build

OPERANDS = {"q", "k", "v", "probs"}
BLOCK = "model.layers.0"


def by_name(model, **keywords):
    return {site.name: site for site in sites(model, **keywords)}


def test_a_llama_block_has_these_sites_in_this_order():
    names = [s.name.removeprefix(f"{BLOCK}.") for s in sites(build("llama")) if s.block == 0]
    assert names == [
        *(f"self_attn.{role}" for role in ("q", "k", "v", "probs")),
        *(f"self_attn.{x}_proj.{r}" for x in "qkvo" for r in ("weight", "input")),
        *(f"mlp.{x}_proj.{r}" for x in ("gate", "up", "down") for r in ("weight", "input")),
    ]


def test_shapes_are_those_of_one_sequence():
    found = by_name(build("llama"), output=True)
    attention = f"{BLOCK}.self_attn"
    assert found[f"{attention}.q"].shape == (4, TOKENS, 8)
    assert found[f"{attention}.k"].shape == found[f"{attention}.v"].shape == (2, TOKENS, 8)
    assert found[f"{attention}.probs"].shape == (4, TOKENS, TOKENS)
    assert found[f"{attention}.k_proj.weight"].shape == (16, 32)
    assert found[f"{attention}.k_proj.input"].shape == (TOKENS, 32)
    assert found[f"{attention}.k_proj.output"].shape == (TOKENS, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_shapes_axes_and_bits_are_the_parameters(family):
    model = build(family, torch.bfloat16)
    for place in places(model):
        if place.site.is_stored:
            whole = place.parameter
            stored = whole if place.part is None else whole[place.part]
            assert place.site.shape == tuple(stored.shape)
        assert place.site.stored_bits == 16


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_has_its_block_and_a_name_of_its_own(family):
    found = sites(build(family), lm_head=True, embeddings=True, bias=True, output=True)
    assert len({site.name for site in found}) == len(found)
    assert {site.block for site in found} == {-1, 0, 1}
    for site in found:
        inside = any(f".{part}.0." in f".{site.name}" for part in ("layers", "layer", "h"))
        assert (site.block == 0) == inside, site.name


def test_layers_that_an_engine_fuses_share_a_group_and_others_do_not():
    found = by_name(build("llama"))
    attention, mlp = f"{BLOCK}.self_attn", f"{BLOCK}.mlp"
    for role in ("weight", "input"):
        groups = {found[f"{attention}.{x}_proj.{role}"].group for x in "qkv"}
        assert groups == {f"{attention}.q_proj+k_proj+v_proj.{role}"}
        groups = {found[f"{mlp}.{x}_proj.{role}"].group for x in ("gate", "up")}
        assert groups == {f"{mlp}.gate_proj+up_proj.{role}"}
    alone = [
        f"{attention}.o_proj.weight",
        f"{mlp}.down_proj.input",
        *(f"{attention}.{r}" for r in OPERANDS),
    ]
    assert all(found[name].group == name for name in alone)


def test_bert_fuses_its_query_key_and_value():
    found = by_name(build("bert"))
    attention = "bert.encoder.layer.1.attention.self"
    groups = {found[f"{attention}.{x}.weight"].group for x in ("query", "key", "value")}
    assert groups == {f"{attention}.query+key+value.weight"}
    assert found[f"{attention}.k"].kind == "self"


def test_projections_that_are_already_fused_have_groups_of_their_own():
    for family, names in (("phi3", ("qkv_proj", "gate_up_proj")), ("gpt2", ("c_attn",))):
        for site in sites(build(family)):
            if site.kind in names:
                assert site.group == site.name


def test_keys_and_values_of_cross_attention_fuse_without_the_query():
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
        )
    ).eval()
    found = by_name(model)
    cross = "model.decoder.layers.0.encoder_attn"
    assert found[f"{cross}.q_proj.input"].group == f"{cross}.q_proj.input"
    assert found[f"{cross}.k_proj.input"].group == f"{cross}.k_proj+v_proj.input"
    assert found[f"{cross}.k_proj.input"].block == 1  # the encoder's blocks come first
    assert f"{cross}.probs" in found


def test_conv1d_reduces_over_its_first_axis():
    weights = [site for site in sites(build("gpt2")) if site.role == "weight"]
    assert {site.axis for site in weights} == {0}
    assert weights[0].shape == (32, 96)


def test_heads_embeddings_biases_and_outputs_come_on_request():
    model = build("llama")
    assert all(site.role in {"weight", "input", *OPERANDS} for site in sites(model))
    assert not [site for site in sites(model) if site.block == -1]
    extra = {s.name for s in sites(model, lm_head=True)} - {s.name for s in sites(model)}
    assert extra == {"lm_head.weight", "lm_head.input"}
    extra = {s.name for s in sites(model, embeddings=True)} - {s.name for s in sites(model)}
    assert extra == {"model.embed_tokens.weight"}
    biases = [s for s in sites(build("opt"), bias=True) if s.role == "bias"]
    assert {s.kind for s in biases} == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    outputs = [s for s in sites(model, output=True) if s.role == "output"]
    assert len(outputs) == 2 * 7


@pytest.mark.parametrize("keyword", ["lm_head", "embeddings"])
def test_a_tied_head_is_one_site_with_two_names(keyword):
    found = sites(build("gemma3"), **{keyword: True})
    tied = [site for site in found if site.role == "weight" and site.block == -1]
    assert [(s.name, s.aliases) for s in tied] == [
        ("model.embed_tokens.weight", ("lm_head.weight",))
    ]


def test_every_expert_has_names_of_its_own_and_a_block_one_group():
    found = by_name(build("mixtral"))
    experts = f"{BLOCK}.mlp.experts"
    for expert in range(4):
        up = found[f"{experts}.{expert}.gate_up_proj.weight"]
        down = found[f"{experts}.{expert}.down_proj.weight"]
        assert (up.shape, up.axis, down.shape) == ((96, 32), -1, (32, 48))
        assert up.group == down.group == f"{experts}.weight"
    # Two experts a token: what enters them is one tensor, what they compute inside is two.
    assert found[f"{experts}.gate_up_proj.input"].shape == (TOKENS, 32)
    assert found[f"{experts}.down_proj.input"].shape == (2, TOKENS, 48)
    assert not [name for name in found if "gate." in name]


def test_experts_stored_transposed_reduce_over_their_first_axis():
    model = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            pad_token_id=0,
            eos_token_id=1,
        )
    ).eval()
    found = by_name(model, bias=True)
    up = found[f"{BLOCK}.mlp.experts.3.gate_up_proj.weight"]
    assert (up.shape, up.axis) == ((32, 96), 0)
    assert found[f"{BLOCK}.mlp.experts.3.gate_up_proj.bias"].shape == (96,)
    assert found[f"{BLOCK}.mlp.experts.down_proj.input"].shape == (2, TOKENS, 48)
    assert f"{BLOCK}.self_attn.probs" in found  # with its sinks, as eager computes them


def test_experts_outside_of_the_interface_have_weight_sites_only():
    model = Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            intermediate_size_mlp=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    found = by_name(model)
    experts = f"{BLOCK}.feed_forward.experts"
    up, down = (found[f"{experts}.1.{name}.weight"] for name in ("gate_up_proj", "down_proj"))
    assert (up.shape, up.axis, down.shape, down.axis) == ((32, 96), 0, (48, 32), 0)
    assert not [name for name in found if name.startswith(experts) and name.endswith("input")]


def test_sites_are_found_once_and_again_when_the_dtype_changes(monkeypatch):
    model, calls = build("llama"), []
    find = module._find_places
    monkeypatch.setattr(module, "_find_places", lambda m: calls.append(m) or find(m))
    first = sites(model)
    assert sites(model) == first
    assert len(calls) == 1
    model.to(torch.float16)
    assert {site.stored_bits for site in sites(model)} == {16}
    assert len(calls) == 2


def test_what_is_kept_of_a_model_does_not_keep_it_alive():
    model = build("llama")
    sites(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
