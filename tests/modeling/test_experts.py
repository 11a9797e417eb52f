"""Fused experts: their inputs can be reached without changing what they compute."""

import pytest
import torch
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mpq.kernels.fake_quant import quantize
from mpq.modeling.experts import (
    expert_input_through,
    expert_layers,
    is_router,
    projections,
    top_k,
)
from mpq.modeling.sites import sites
from tests.modeling.families import build, logits, text

EXPERTS = "model.layers.0.mlp.experts"


def gpt_oss():
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = GptOssForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("make", [lambda: build("mixtral"), gpt_oss], ids=["mixtral", "gpt_oss"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("projection", ["gate_up_proj", "down_proj"])
def test_reaching_an_input_changes_no_bit_whatever_the_implementation(
    make, implementation, projection
):
    model, tokens = make(), text()
    model.set_experts_implementation(implementation)
    experts = model.get_submodule(EXPERTS)
    before, kept, seen = logits(model, tokens), sorted(vars(experts)), []
    with expert_input_through(experts, projection, lambda x: seen.append(x.shape) or x):
        assert torch.equal(logits(model, tokens), before)
    inner = {"gate_up_proj": 32, "down_proj": experts.down_proj.shape[-1]}[projection]
    if model.config.model_type == "gpt_oss" and projection == "down_proj":
        inner = experts.down_proj.shape[1]
    assert {shape[-1] for shape in seen} == {inner}
    # Every token enters; between the matmuls there is a row for each of its two experts.
    assert sum(shape[0] for shape in seen) == tokens.numel() * (1 + (projection == "down_proj"))
    assert sorted(vars(experts)) == kept
    assert model.config._experts_implementation == implementation
    assert "mpq_experts" not in ALL_EXPERTS_FUNCTIONS


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_what_enters_down_proj_is_what_the_transform_gives(implementation):
    model, tokens = build("mixtral"), text()
    model.set_experts_implementation(implementation)
    experts = model.get_submodule(EXPERTS)
    before = logits(model, tokens)
    rows = []

    def coarse(x):
        rows.append(x)
        return quantize(x, "bfp3")

    with expert_input_through(experts, "down_proj", coarse):
        changed = logits(model, tokens)
    assert not torch.equal(changed, before)
    # The same by hand: experts are linear in what enters down_proj.
    with expert_input_through(experts, "down_proj", lambda x: x * 0):
        without = logits(model, tokens)
    with torch.no_grad():
        experts.down_proj.zero_()
    assert torch.equal(logits(model, tokens), without)


def test_several_blocks_can_be_reached_at_once():
    model, tokens = build("mixtral"), text()
    model.set_experts_implementation("eager")
    before, calls = logits(model, tokens), []
    first, second = (module for _, module in expert_layers(model))
    with (
        expert_input_through(first, "down_proj", lambda x: calls.append(0) or x),
        expert_input_through(second, "down_proj", lambda x: calls.append(1) or x),
    ):
        assert torch.equal(logits(model, tokens), before)
    assert set(calls) == {0, 1}
    assert model.config._experts_implementation == "eager"


def test_experts_are_found_with_their_projections_and_choices():
    model = build("mixtral")
    assert [name for name, _ in expert_layers(model)] == [EXPERTS, EXPERTS.replace("0", "1")]
    assert projections(model.get_submodule(EXPERTS)) == ("gate_up_proj", "down_proj")
    assert top_k(model, EXPERTS) == 2


def test_a_linear_router_beside_experts_is_no_site():
    model = build("mixtral")
    mlp = model.model.layers[0].mlp
    mlp.router = nn.Linear(32, 4)
    assert is_router(model, "model.layers.0.mlp.router")
    assert not is_router(model, "model.layers.0.self_attn.q_proj")
    assert not [site for site in sites(model) if "router" in site.name]
