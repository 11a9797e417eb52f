"""What a probe forward finds, and that it leaves no trace."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from mpq.modeling import probe as module
from mpq.modeling.probe import AttentionShape, probe
from tests.modeling.families import FAMILIES, UNREACHABLE, build


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_module_is_reached_with_its_sizes(family):
    model = build(family)
    found = probe(model)
    grouped = FAMILIES[family]().config
    kv_heads = getattr(grouped, "num_key_value_heads", None) or 4
    assert not found.unreachable
    assert len(found.attention) == 2
    assert set(found.attention.values()) == {
        AttentionShape(heads=4, kv_heads=kv_heads, head_dim=8, value_dim=8)
    }


@pytest.mark.parametrize("family", UNREACHABLE)
def test_models_that_never_call_are_named(family):
    model = build(family)
    found = probe(model)
    assert found.unreachable == (
        f"{type(model).__name__} never calls a registered attention implementation"
    )
    assert not found.attention
    assert set(found.num_outputs.values()) == {2}


def test_attention_with_position_biases_of_its_own_is_not_taken_for_reachable():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=4,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert "gives other outputs than its own eager attention" in probe(model).unreachable


def test_a_model_that_cannot_run_says_why(monkeypatch):
    model = build("llama")

    def broken(*_):
        raise RuntimeError("no kernel for this device\nsecond line")

    monkeypatch.setattr(module, "_forward", broken)
    assert probe(model).unreachable == "its probe forward failed: no kernel for this device"


def test_the_probe_runs_once_and_leaves_modes_hooks_and_generators_alone(monkeypatch):
    model = build("llama").train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    generator = torch.get_rng_state()
    runs = []
    forward = module._forward
    monkeypatch.setattr(module, "_forward", lambda m: runs.append(m.training) or forward(m))
    probe(model)
    probe(model)
    assert runs == [False, False]  # once with ours, once with eager
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert model.config._attn_implementation == "sdpa"
