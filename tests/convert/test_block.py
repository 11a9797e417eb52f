"""One block: stages, sums, and what its tensors become; more of it in test_walk.py."""

from dataclasses import replace

import pytest
import torch

from mpq.convert import block as converting
from mpq.convert.block import (
    BlockWork,
    WalkOptions,
    convert_block,
    hessian_room,
    in_portions,
    sums_seen,
)
from mpq.convert.options import SolverOptions
from mpq.convert.streams import passes, start_stream
from mpq.errors import ModelError
from mpq.modeling.blockwise import blocks
from mpq.modeling.capture import readers_of
from mpq.modeling.packed import unpack_weight
from mpq.modeling.residence import on_device
from mpq.modeling.sites import places
from mpq.modeling.wrap import uniform_plan
from tests.modeling.families import build, text

CPU = torch.device("cpu")


def prepared(family="llama", method="gptq"):
    model = build(family)
    stream = start_stream(model, torch.split(text(6, 12), 2))
    block = blocks(model)[0][1]
    weights = tuple(p for p in places(model) if p.site.block == 0 and p.site.role == "weight")
    plan = uniform_plan(model, "int3-g16", roles=("weight",))
    work = BlockWork(
        places=weights,
        plan=plan,
        options=WalkOptions(solver=SolverOptions(method=method)),
        passes=tuple(passes(stream, block, 0, CPU)) if method == "gptq" else (),
        device=CPU,
    )
    return block, work


def test_the_block_holds_what_it_was_converted_to():
    block, work = prepared()
    with on_device([block], CPU):
        made = convert_block(work)
        assert made.packed.keys() == {place.site.name for place in work.places}
        for place in work.places:
            values = unpack_weight(made.packed[place.site.name])
            assert torch.equal(place.parameter.detach(), values)


def test_sums_count_the_tokens_of_all_passes():
    _, work = prepared()
    sums = sums_seen(readers_of(work.places, {}), work.passes, CPU)
    assert {found.num_tokens for found in sums.values()} == {6 * 12}
    assert sums_seen(readers_of(work.places, {}), (), CPU) == {}


def test_experts_share_the_tokens():
    _, work = prepared("mixtral")
    readers = [r for r in readers_of(work.places, {}) if r.is_expert]
    sums = sums_seen(readers, work.passes, CPU)
    first = [s.num_tokens for name, s in sums.items() if "gate_up" in name]
    assert sum(first) == 2 * 6 * 12  # two experts a token


def test_nothing_is_looked_at_for_rounding():
    block, work = prepared(method="rtn")
    with on_device([block], CPU):
        made = convert_block(work)
    assert {report.num_tokens for report in made.reports} == {0}


def test_an_input_that_is_not_finite_is_named():
    block, work = prepared()
    with torch.no_grad():
        block.input_layernorm.weight[2] = torch.nan
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj\.weight must be finite"):
        convert_block(work)


def test_portions_keep_the_order_and_the_limit():
    _, work = prepared()
    readers = readers_of(work.places, {})
    sizes = [8 * r.places[0].site.shape[1] ** 2 for r in readers]
    assert in_portions(readers, sum(sizes)) == [readers]
    assert in_portions(readers, 1) == [[reader] for reader in readers]
    two = in_portions(readers, sizes[0] + sizes[1])
    assert two[0] == readers[:2]
    assert [reader for portion in two for reader in portion] == readers
    assert in_portions([], 1) == []


def test_a_device_gives_a_share_of_what_it_has_free(monkeypatch):
    assert hessian_room(CPU) == converting.HESSIAN_BYTES
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (400, 1000))
    assert hessian_room(torch.device("cuda")) == 100
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**40, 2**40))
    assert hessian_room(torch.device("cuda")) == converting.HESSIAN_BYTES


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_block_comes_out_the_same_however_its_sums_are_portioned(family, monkeypatch):
    found = []
    for limit in (converting.HESSIAN_BYTES, 1):
        monkeypatch.setattr(converting, "HESSIAN_BYTES", limit)
        block, work = prepared(family)
        options = WalkOptions(
            solver=work.options.solver, true_sequential=False, bias_correction=family == "llama"
        )
        with on_device([block], CPU):
            found.append(convert_block(replace(work, options=options)))
    whole, portioned = found
    for name, packed in whole.packed.items():
        assert torch.equal(packed.encoded.codes, portioned.packed[name].encoded.codes)
    assert all(torch.equal(bias, portioned.biases[name]) for name, bias in whole.biases.items())
    assert whole.reports == portioned.reports
