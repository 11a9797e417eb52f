"""Modules worked on elsewhere hold afterwards what they held before, down to the storage."""

import pytest
import torch

from mpq.modeling.blockwise import blocks
from mpq.modeling.residence import on_device, outside_of_blocks, part_of, put
from mpq.modeling.sites import places
from tests.modeling.families import build


def pointers(module):
    return [p.data_ptr() for p in module.parameters()]


def test_what_is_put_into_a_module_is_gone_with_the_context():
    model = build("llama")
    block = blocks(model)[0][1]
    place = next(p for p in places(model) if p.site.name.endswith("layers.0.mlp.up_proj.weight"))
    before, held = pointers(block), place.parameter.detach().clone()
    with on_device([block], torch.device("cpu")):
        put([(place, torch.zeros_like(held))])
        assert not place.parameter.any()
    assert pointers(block) == before
    assert torch.equal(place.parameter, held)


def test_it_is_undone_after_an_exception_too():
    model = build("llama")
    block = blocks(model)[0][1]
    place = next(p for p in places(model) if p.site.name.endswith("layers.0.mlp.up_proj.weight"))
    before = pointers(block)

    def fail():
        with on_device([block], torch.device("cpu")):
            put([(place, torch.zeros_like(place.parameter))])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert pointers(block) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_module_lies_on_the_device_within():
    model = build("llama")
    block = blocks(model)[0][1]
    with on_device([block], torch.device("cuda")):
        assert all(p.is_cuda for p in block.parameters())
        assert not model.lm_head.weight.is_cuda
    assert not any(p.is_cuda for p in block.parameters())


def test_experts_are_put_by_part_and_the_others_stay():
    model = build("mixtral")
    expert = next(p for p in places(model) if p.part == 1 and p.site.role == "weight")
    block = blocks(model)[0][1]
    others = expert.parameter.detach()[0].clone()
    storage = expert.parameter.data_ptr()
    with on_device([block], torch.device("cpu")):
        put([(expert, torch.ones_like(part_of(expert)))])
        assert bool((part_of(expert) == 1).all())
        assert torch.equal(expert.parameter[0], others)
        assert expert.parameter.data_ptr() != storage  # the file's own memory is not written
    assert expert.parameter.data_ptr() == storage


def test_outside_of_the_blocks_lie_embeddings_norm_and_head():
    model = build("llama")
    outside = outside_of_blocks(model)
    assert model.model.embed_tokens in outside
    assert model.model.norm in outside
    assert model.lm_head in outside
    inside = {id(m) for _, block in blocks(model) for m in block.modules()}
    assert not inside & {id(module) for module in outside}
