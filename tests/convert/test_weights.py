"""Weights and biases one by one."""

import pytest
import torch
from torch import nn

from mpq.convert.hessian import HessianSum
from mpq.convert.options import SolverOptions
from mpq.convert.weights import (
    NEVER_REACHED,
    UNSEEN,
    corrected_bias,
    give_bias,
    pack_bias,
    round_stored,
    solve_all,
)
from mpq.errors import ModelError
from mpq.kernels.fake_quant import quantize
from mpq.modeling.capture import readers_of
from mpq.modeling.packed import unpack_weight
from mpq.modeling.sites import places
from mpq.plans.plan import Plan
from tests.modeling.families import build

NAME = "model.layers.0.mlp.up_proj.weight"
GPTQ, RTN = SolverOptions(), SolverOptions(method="rtn")


def place_of(model, name):
    return next(place for place in places(model) if place.site.name == name)


def test_without_tokens_a_weight_is_rounded_and_the_reason_is_kept():
    model = build("llama")
    place, plan = place_of(model, NAME), Plan.of({NAME: "bfp3"})
    (reader,) = readers_of([place], {})
    for seen, reason in ((None, UNSEEN), (HessianSum(32), NEVER_REACHED)):
        (made,) = solve_all(reader, seen, plan, GPTQ)
        assert made.report.reason == reason
        assert made.report.method == "rtn"
        assert torch.equal(made.values, quantize(place.parameter.detach(), "bfp3"))


def test_rounding_on_request_needs_no_reason():
    place, plan = place_of(build("llama"), NAME), Plan.of({NAME: "bfp3"})
    assert round_stored(place, plan, RTN, "never told").report.reason == ""


def test_a_corrected_bias_takes_up_the_mean_error():
    model = build("opt")
    place = place_of(model, "model.decoder.layers.0.fc1.weight")
    x = torch.randn(50, 32, dtype=torch.float64) + 1
    weight = place.parameter.detach()
    rounded = quantize(weight, "int2")
    bias = corrected_bias(place, rounded, x.mean(dim=0))
    exact = x @ weight.double().T + place.module.bias.detach().double()
    error = x @ rounded.double().T + bias.double() - exact
    assert float(error.mean(dim=0).abs().max()) < 1e-6


def test_a_convolutions_weight_lies_the_other_way_round():
    model = build("gpt2")
    place = place_of(model, "transformer.h.0.mlp.c_fc.weight")
    x = torch.randn(50, 32, dtype=torch.float64) + 1
    weight = place.parameter.detach()
    rounded = quantize(weight, "int2", 0)
    bias = corrected_bias(place, rounded, x.mean(dim=0))
    error = x @ (rounded - weight).double() + (bias - place.module.bias.detach()).double()
    assert float(error.mean(dim=0).abs().max()) < 1e-6


def test_an_experts_bias_cannot_be_corrected():
    place = next(p for p in places(build("mixtral")) if p.part is not None)
    with pytest.raises(ModelError, match="this is one of a module's fused experts"):
        corrected_bias(place, place.parameter.detach()[0], torch.zeros(32, dtype=torch.float64))


def test_a_bias_is_given_and_taken_away():
    layer = nn.Linear(3, 2, bias=False)
    give_bias(layer, torch.ones(2))
    assert torch.equal(layer(torch.zeros(3)), torch.ones(2))
    give_bias(layer, torch.zeros(2))
    assert not layer(torch.zeros(3)).any()
    give_bias(layer, None)
    assert layer.bias is None
    assert list(layer.state_dict()) == ["weight"]


def test_a_bias_is_packed_as_it_stands():
    name = "model.decoder.layers.0.fc1.bias"
    model = build("opt")
    made = pack_bias(place_of(model, name), Plan.of({name: "int8"}))
    bias = model.get_submodule("model.decoder.layers.0.fc1").bias.detach()
    assert torch.equal(unpack_weight(made.packed), quantize(bias, "int8"))
    assert made.report.loss == made.report.rtn_loss
