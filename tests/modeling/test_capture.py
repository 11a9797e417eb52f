"""What enters weights is what the layers multiply, told in the order in which they are reached."""

import pytest
import torch

from mpq.modeling.block_calls import enter_blocks, run_block
from mpq.modeling.blockwise import blocks
from mpq.modeling.capture import in_order_of_calls, inputs_seen, readers_of
from mpq.modeling.linear import features, input_through
from mpq.modeling.sites import places
from tests.modeling.families import FAMILIES, build, text


def first_block(family):
    model = build(family)
    entrance = enter_blocks(model, text(2, 12))
    block = blocks(model)[0][1]
    weights = [
        place for place in places(model) if place.site.block == 0 and place.site.role == "weight"
    ]

    def forward():
        with torch.no_grad():
            return run_block(block, entrance.hidden.clone(), entrance.calls[0])

    return block, weights, forward


def test_stages_follow_the_pass_and_join_what_reads_one_tensor():
    _, weights, forward = first_block("llama")
    stages = in_order_of_calls(readers_of(weights, {}), forward)
    kinds = [[[p.site.kind for p in r.places] for r in stage] for stage in stages]
    assert kinds == [
        [["q_proj", "k_proj", "v_proj"]],
        [["o_proj"]],
        [["gate_proj", "up_proj"]],
        [["down_proj"]],
    ]


def test_inputs_of_two_formats_are_two_tensors():
    _, weights, _ = first_block("llama")
    name = "model.layers.0.self_attn.k_proj.input"
    kinds = [[p.site.kind for p in r.places] for r in readers_of(weights, {name: "int8-token"})]
    assert kinds[:2] == [["q_proj", "v_proj"], ["k_proj"]]


def test_experts_are_readers_of_their_own_and_a_projection_is_a_stage():
    _, weights, forward = first_block("mixtral")
    stages = in_order_of_calls(readers_of(weights, {}), forward)
    experts = [stage for stage in stages if stage[0].is_expert]
    assert [stage[0].places[0].tensor for stage in experts] == ["gate_up_proj", "down_proj"]
    assert {len(reader.places) for stage in experts for reader in stage} == {1}
    assert all(reader.can_be_seen for stage in experts for reader in stage)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_seen_is_what_a_layer_reads(family):
    _, weights, forward = first_block(family)
    readers = [reader for reader in readers_of(weights, {}) if not reader.is_expert]
    seen = {}
    with inputs_seen(readers, lambda reader, x: seen.update({reader.name: x.clone()})) as run:
        run(forward)
    assert seen.keys() == {reader.name for reader in readers}
    for reader in readers:
        for place in reader.places:
            read = []

            def keep(x, read=read):
                read.append(x.clone())
                return x

            with input_through(place.module, keep):
                forward()
            assert torch.equal(read[0], seen[reader.name])
            assert read[0].shape[-1] == features(place.module)[0]


def test_every_token_enters_as_many_experts_as_it_is_sent_to():
    _, weights, forward = first_block("mixtral")
    readers = [reader for reader in readers_of(weights, {}) if reader.is_expert]
    counts = {"gate_up_proj": 0, "down_proj": 0}

    def count(reader, x):
        counts[reader.places[0].tensor] += len(x)

    before = forward()
    with inputs_seen(readers, count) as run:
        run(forward)
    top_k = 2
    assert counts == {"gate_up_proj": 24 * top_k, "down_proj": 24 * top_k}
    assert torch.equal(forward(), before)


def test_a_pass_ends_when_all_is_seen():
    block, weights, forward = first_block("llama")
    queries = [reader for reader in readers_of(weights, {}) if "q_proj" in reader.name]
    called = []
    handle = block.mlp.register_forward_hook(lambda *_: called.append(1))
    with inputs_seen(queries, lambda *_: None) as run:
        run(forward)
    assert not called
    forward()
    assert called
    handle.remove()
