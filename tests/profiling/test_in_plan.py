import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.fake_quant import quantize
from mpq.measures import kl_divergence
from mpq.modeling.sites import places
from mpq.modeling.weights import WeightCache
from mpq.modeling.wrap import apply_plan, uniform_plan
from mpq.plans.move import UNTOUCHED
from mpq.plans.plan import Plan
from mpq.profiling.in_plan import moves_in_plan
from tests.profiling.models import sharp, windows


def moves_of(model, plan, data, formats=(), **options):
    asked = {place.site: tuple(map(parse_format, formats)) for place in places(model)}
    return moves_in_plan(model, data, plan, asked, **options)


def damage_of(model, plan, data, **options):
    """What the trapezoid rule says of lifting each weight."""
    found = moves_of(model, plan, data, **options)
    return {name: -0.5 * moves[UNTOUCHED].slope for name, moves in found.items()}


def joint_kl(model, plan, data):
    with torch.no_grad():
        reference = model(data).logits[:, :-1]
        with apply_plan(model, plan):
            return float(kl_divergence(model(data).logits[:, :-1], reference).mean())


def slope(model, plan, place, data, text):
    """gᵀd by plain autograd, over all windows at once, with the model's weights replaced."""
    own = {p: p.data.clone() for p in model.parameters()}
    with torch.no_grad():
        reference = model(data).logits[:, :-1].softmax(-1)
    for other in places(model):
        if other.site.name in plan.formats:
            whole = other.parameter.data.clone()
            part = slice(None) if other.part is None else other.part
            whole[part] = quantize(whole[part], plan.formats[other.site.name], other.site.axis)
            other.parameter.data = whole
    part = slice(None) if place.part is None else place.part
    moved = quantize(own[place.parameter][part], text, place.site.axis)
    change = moved - place.parameter.data[part]
    log_p = model(data).logits[:, :-1].log_softmax(-1)
    loss = -(reference * log_p).sum(-1).mean()
    (gradient,) = torch.autograd.grad(loss, place.parameter)
    for parameter, values in own.items():
        parameter.data = values
    return float((gradient[part] * change).sum())


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.k_proj.weight"),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight"),  # Conv1D: blocks lie along axis 0
        ("mixtral", "model.layers.0.mlp.experts.1.down_proj.weight"),  # a slice of 3-D weights
    ],
)
@pytest.mark.parametrize("text", ["bfp2", "bfp5", UNTOUCHED])
def test_slopes_are_those_of_plain_autograd(family, name, text):
    model, data = sharp(family), windows()
    plan = uniform_plan(model, "bfp3", roles=("weight",))
    (place,) = [place for place in places(model) if place.site.name == name]
    expected = slope(model, plan, place, data, text)
    assert abs(expected) > 1e-6
    found = moves_of(model, plan, data, ["bfp2", "bfp5"])[name]
    assert list(found) == ["bfp2", "bfp5", UNTOUCHED]
    assert found[text].slope == pytest.approx(expected, rel=0.05)  # teachers are bfloat16


def test_formats_are_as_far_apart_as_their_values():
    model, data = sharp("llama"), windows()
    name = "model.layers.0.mlp.up_proj.weight"
    (place,) = [place for place in places(model) if place.site.name == name]
    found = moves_of(model, Plan.of({name: "bfp3"}), data, ["bfp3", "bfp4", "int3-g16"])[name]
    whole = place.parameter.detach()
    now = quantize(whole, "bfp3")
    for text in ("bfp4", "int3-g16"):
        values = quantize(whole, text)
        errors = (values - whole).square().sum() + (now - whole).square().sum()
        expected = (values - now).square().sum() / errors
        assert found[text].apart == pytest.approx(float(expected), rel=1e-4)
    assert found["bfp3"] == (0.0, 0.0)
    assert found[UNTOUCHED].apart == pytest.approx(1.0)


def test_a_tensor_that_loses_nothing_is_not_apart_from_itself():
    model, data = sharp("llama"), windows(8)
    name = "model.layers.0.mlp.up_proj.weight"
    moves = moves_of(model, Plan.of({name: UNTOUCHED}), data)
    assert moves == {name: {UNTOUCHED: (0.0, 0.0)}}


def test_a_cache_changes_nothing():
    model, data = sharp("llama"), windows(8)
    plan = uniform_plan(model, "bfp3", roles=("weight",))
    cache = WeightCache(1 << 30)
    without = moves_of(model, plan, data, ["bfp2", "bfp4"])
    assert moves_of(model, plan, data, ["bfp2", "bfp4"], cache=cache) == without
    assert len(cache) == 3 * len(plan.formats)
    assert moves_of(model, plan, data, ["bfp2", "bfp4"], cache=cache) == without


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tensor_that_is_alone_in_its_plan_costs_the_divergence_itself(family):
    model, data = sharp(family), windows(64)
    for name in uniform_plan(model, "bfp5", roles=("weight",)).formats:
        plan = Plan.of({name: "bfp5"})
        found = damage_of(model, plan, data)
        assert found == {name: pytest.approx(joint_kl(model, plan, data), rel=0.1, abs=1e-7)}


def test_the_shares_of_a_plan_sum_to_its_divergence():
    model, data = sharp("llama"), windows(64)
    plan = uniform_plan(model, "bfp5", roles=("weight",))
    assert sum(damage_of(model, plan, data).values()) == pytest.approx(
        joint_kl(model, plan, data), rel=0.1
    )


@pytest.mark.parametrize("format_name", ["bfp3", "bfp5"])
def test_it_says_what_lifting_a_tensor_gains(format_name):
    model, data = sharp("llama"), windows(64)
    plan = uniform_plan(model, format_name, roles=("weight",))
    found = damage_of(model, plan, data)
    before = joint_kl(model, plan, data)
    gains = {}
    for name in plan.formats:
        lifted = Plan(formats={key: fmt for key, fmt in plan.formats.items() if key != name})
        gains[name] = before - joint_kl(model, lifted, data)
    names = list(gains)
    pair = torch.tensor([[gains[name] for name in names], [found[name] for name in names]])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.95
    assert sum(found.values()) == pytest.approx(sum(gains.values()), rel=0.3)


def test_the_model_is_left_as_it_was_and_only_weights_of_the_plan_are_told():
    model, data = sharp("llama"), windows()
    before = {name: value.clone() for name, value in model.named_parameters()}
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    name = "model.layers.0.mlp.up_proj"
    plan = Plan.of({f"{name}.weight": "bfp3", f"{name}.input": "bfp4"})
    told = []
    found = damage_of(model, plan, data, progress=lambda *args: told.append(args))
    assert set(found) == {f"{name}.weight"}
    assert told[-1] == ("backward passes", 8, 8)
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key])
        assert value.requires_grad == flags[key]
        assert value.grad is None


def test_the_positions_may_be_thinned():
    model, data = sharp("llama"), windows()
    plan = uniform_plan(model, "bfp4", roles=("weight",))
    every, some = damage_of(model, plan, data), damage_of(model, plan, data, judge_every=2)
    pair = torch.tensor([list(every.values()), list(some.values())])
    assert not torch.equal(pair[0], pair[1])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.8
