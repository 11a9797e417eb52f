"""Forward passes that begin at a block give the logits of whole ones, bit for bit."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
)

from mpq.errors import ModelError
from mpq.modeling.blockwise import blocks, capture_block_inputs, restart, run
from mpq.modeling.probe import probe
from mpq.modeling.sites import sites
from mpq.modeling.wrap import apply_plan, uniform_plan
from mpq.plans.plan import Plan
from tests.modeling.families import FAMILIES, UNREACHABLE, build, text


def batch_of(family):
    tokens = text(2, 12)
    mask = torch.ones_like(tokens)
    mask[1, -4:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def whole(model, batch):
    with torch.no_grad():
        return run(model, batch).logits


@pytest.mark.parametrize("family", [*FAMILIES, *UNREACHABLE])
def test_a_restart_gives_the_logits_of_the_whole_pass(family):
    model, batch = build(family), batch_of(family)
    before = whole(model, batch)
    hidden = capture_block_inputs(model, batch)
    assert len(hidden) == len(blocks(model)) == 2
    for index, states in enumerate(hidden):
        with restart(model, index, states):
            assert torch.equal(whole(model, batch), before)
            assert torch.equal(whole(model, batch), before)  # and again: passes are independent
    assert torch.equal(whole(model, batch), before)
    assert not [m for m in model.modules() if m._forward_pre_hooks or "forward" in vars(m)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_restart_inside_a_plan_gives_what_the_plan_gives(family):
    model, batch = build(family), batch_of(family)
    plan = uniform_plan(model, "bfp4")
    in_last = {site.name for site in sites(model) if site.block == 1}
    later = Plan.of({name: fmt for name, fmt in plan.formats.items() if name in in_last})
    with apply_plan(model, Plan.of(dict.fromkeys(plan.formats, "fp32"))):
        hidden = capture_block_inputs(model, batch)
    with apply_plan(model, later):
        wanted = whole(model, batch)
    zero = torch.zeros_like(hidden[1])
    with apply_plan(model, later), restart(model, 1, hidden[1]):
        assert torch.equal(whole(model, batch), wanted)
    with apply_plan(model, later), restart(model, 1, zero):
        assert not torch.equal(whole(model, batch), wanted)


def test_blocks_before_the_restart_are_not_run():
    model = build("llama")
    batch = batch_of("llama")
    hidden = capture_block_inputs(model, batch)
    probe(model)  # which runs the model, once
    called = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: called.append(0))
    model.model.layers[1].mlp.register_forward_hook(lambda *_: called.append(1))
    with restart(model, 1, hidden[1]):
        whole(model, batch)
    assert called == [1]


def test_captured_states_are_safe_from_later_changes_in_place():
    model, batch = build("llama"), batch_of("llama")
    wanted = [h.clone() for h in capture_block_inputs(model, batch)]

    def spoil(_, args):
        args[0].mul_(0)

    model.model.layers[0].input_layernorm.register_forward_pre_hook(spoil)
    first, second = capture_block_inputs(model, batch)
    assert torch.equal(first, wanted[0])
    assert not torch.equal(second, wanted[1])


def test_blocks_are_named_in_order():
    assert [name for name, _ in blocks(build("gpt2"))] == ["transformer.h.0", "transformer.h.1"]
    assert [name for name, _ in blocks(build("bert"))] == [
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
    ]


def test_a_model_without_attention_has_blocks_too():
    model = MambaForCausalLM(
        MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    )
    assert [name for name, _ in blocks(model)] == ["backbone.layers.0", "backbone.layers.1"]


def test_a_block_that_is_shared_by_layers_restarts_at_its_first_call():
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=96,
        embedding_size=16,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=32,
        num_hidden_layers=3,
    )
    model = AlbertForMaskedLM(config).eval()
    batch = batch_of("albert")
    before = whole(model, batch)
    (hidden,) = capture_block_inputs(model, batch)
    with restart(model, 0, hidden):
        assert torch.equal(whole(model, batch), before)
        assert torch.equal(whole(model, batch), before)


def test_a_block_that_does_not_exist_is_refused():
    model = build("llama")
    with (
        pytest.raises(ModelError, match=r"LlamaForCausalLM has blocks 0 to 1; .* no block 2"),
        restart(model, 2, torch.zeros(1, 1, 32)),
    ):
        pass


def test_two_stacks_of_blocks_are_refused():
    sizes = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartForConditionalGeneration(BartConfig(vocab_size=32, d_model=16, **sizes, **heads))
    with pytest.raises(ModelError, match="BartForConditionalGeneration has two stacks of blocks"):
        capture_block_inputs(model, torch.zeros(1, 2, dtype=torch.long))


def test_blocks_called_out_of_order_are_refused():
    model = build("llama")
    layers = model.model.layers
    layers[1].register_forward_hook(lambda *_: layers[0](torch.zeros(1, 1, 32), **rotary))
    rotary = {"position_embeddings": (torch.ones(1, 1, 8), torch.zeros(1, 1, 8))}
    with pytest.raises(ModelError, match=r"must call its 2 blocks in order .* \[0, 1, 0\]"):
        capture_block_inputs(model, text(1, 4))


def test_blocks_called_without_hidden_states_are_refused(monkeypatch):
    model = build("llama")
    block = model.model.layers[0]
    call = type(block).__call__

    def named_otherwise(self, hidden_states, **kwargs):
        return call(self, x=hidden_states, **kwargs)

    monkeypatch.setattr(type(block), "__call__", named_otherwise)
    with pytest.raises(ModelError, match="calls its blocks without hidden states"):
        capture_block_inputs(model, text(1, 4))
