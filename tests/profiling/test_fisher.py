import pytest
import torch

from mpq.errors import ModelError
from mpq.kernels.fake_quant import quantize
from mpq.modeling.scoring import make_batches
from mpq.modeling.sites import places
from mpq.profiling.direct import kl_damage
from mpq.profiling.fisher import fisher_damage, parts_within
from mpq.profiling.gradients import sampled_loss
from tests.profiling.models import candidates, sharp, windows


def silent(what, done, total):
    pass


def damage_of(model, asked, data, seed=0):
    steps = fisher_damage(model, data, asked, seed=seed, progress=silent)
    return {(site.name, text): value for site, row in steps for text, value in row.items()}


def squared_gradients(model, parameter, data, seed=0):
    """Σ over windows of (∂ log-likelihood / ∂ parameter)², by plain autograd."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(parameter)
    for batch in make_batches(data, 1):
        (gradient,) = torch.autograd.grad(sampled_loss(model, batch, generator), parameter)
        total += gradient.detach() ** 2
    return total


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.k_proj.weight"),
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight"),  # Conv1D: blocks lie along axis 0
        ("gpt2", "transformer.wte.weight"),  # tied: lookup and head are one tensor
        ("mixtral", "model.layers.0.mlp.experts.1.down_proj.weight"),  # a slice of 3-D weights
    ],
)
def test_a_weights_damage_is_half_the_fisher_times_the_squared_error(family, name):
    model, data = sharp(family), windows()
    asked = candidates(
        model, ["bfp3", "int4"], keep=lambda s: s.name == name, lm_head=True, embeddings=True
    )
    found = damage_of(model, asked, data)
    (place,) = [place for place in places(model) if place.site.name == name]
    fisher = squared_gradients(model, place.parameter, data)
    weight = place.parameter.detach()
    if place.part is not None:
        fisher, weight = fisher[place.part], weight[place.part]
    for text in ("bfp3", "int4"):
        error = quantize(weight, text, place.site.axis) - weight
        expected = 0.5 * float((fisher * error**2).sum()) / (8 * 11)
        assert expected > 0
        assert found[name, text] == pytest.approx(expected, rel=1e-4)


def test_an_inputs_damage_is_half_the_squared_products_of_its_tokens():
    model, data = sharp("llama"), windows()
    asked = candidates(model, ["bfp3"], keep=lambda s: s.name.endswith("0.mlp.down_proj.input"))
    found = damage_of(model, asked, data)
    layer, seen = model.model.layers[0].mlp.down_proj, []

    def keep(_, args):
        args[0].retain_grad()
        seen.append(args[0])

    handle = layer.register_forward_pre_hook(keep)
    generator = torch.Generator().manual_seed(0)
    expected = 0.0
    for batch in make_batches(data, 1):
        sampled_loss(model, batch, generator).backward()
        x, gradient = seen[-1].detach(), seen[-1].grad
        products = ((quantize(x, "bfp3") - x) * gradient).sum(-1)
        expected += 0.5 * float((products**2).sum()) / (8 * 11)
    handle.remove()
    assert found["model.layers.0.mlp.down_proj.input", "bfp3"] == pytest.approx(expected, rel=1e-4)


def test_the_estimate_follows_the_divergence_that_it_stands_for():
    model, data = sharp("llama"), windows(64)
    texts = ["bfp5", "bfp7"]  # small errors: the expansion is of second order
    asked = candidates(model, texts, keep=lambda s: s.block == 1)
    estimate = damage_of(model, asked, data)
    direct = {
        (site.name, text): value
        for site, row in kl_damage(model, data, asked, batch_size=16, progress=silent)
        for text, value in row.items()
    }
    assert len({name.rpartition(".")[2] for name, _ in direct}) == 6  # all roles
    ratios = torch.tensor([estimate[pair] / direct[pair] for pair in direct])
    assert 0.85 < ratios.log().mean().exp() < 1.15
    assert ratios.log().std() < 0.35


def test_labels_depend_on_the_seed_and_on_nothing_else():
    model, data = sharp("llama"), windows()
    every = candidates(model, ["bfp4"])
    few = {
        site: formats for site, formats in every.items() if site.name.endswith("up_proj.weight")
    }
    whole = damage_of(model, every, data)
    part = damage_of(model, few, data)
    assert all(whole[pair] == pytest.approx(part[pair], rel=1e-3) for pair in part)
    assert damage_of(model, few, data) == part
    assert damage_of(model, few, data, seed=1) != part


def test_the_model_is_left_as_it_was():
    model, data = sharp("llama"), windows(2)
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    trained = model.model.layers[0].mlp.down_proj.weight
    trained.grad = torch.ones_like(trained)
    before = model(data).logits
    damage_of(model, candidates(model, ["bfp4"]), data)
    assert torch.equal(model(data).logits, before)
    assert not frozen.requires_grad
    assert trained.requires_grad
    assert torch.equal(trained.grad, torch.ones_like(trained))
    model(data).logits.sum().backward()  # a hook that stayed would free this gradient
    assert model.model.layers[1].mlp.down_proj.weight.grad is not None


def test_identity_costs_nothing():
    model = sharp("llama")
    asked = candidates(model, ["fp32"], keep=lambda s: s.block == 0)
    assert set(damage_of(model, asked, windows(2)).values()) == {0.0}


def test_a_weight_that_is_not_finite_is_named():
    model = sharp("llama")
    asked = candidates(model, ["bfp4"], keep=lambda s: s.name.endswith("1.mlp.up_proj.weight"))
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"not finite: model\.layers\.1\.mlp\.up_proj\.weight;"):
        damage_of(model, asked, windows(2))


def test_an_activation_that_overflows_is_told_apart():
    model = sharp("llama")
    asked = candidates(model, ["bfp4"], keep=lambda s: s.name.endswith("1.mlp.up_proj.weight"))
    model.lm_head.weight.data.mul_(1e38)
    with pytest.raises(ModelError, match=r'an activation overflows; load it with dtype = "float'):
        damage_of(model, asked, windows(2))


def test_parts_hold_no_more_than_asked_for():
    model = sharp("llama")
    asked = candidates(model, ["bfp4"])
    weights = {site: 4 * torch.Size(site.shape).numel() for site in asked if site.is_stored}
    cap = 3 * max(weights.values())
    parts = parts_within(asked, cap)
    assert [site for part in parts for site in part] == list(asked)
    assert len(parts) > 1
    assert all(sum(weights.get(site, 0) for site in part) <= cap for part in parts)
    assert parts_within(asked, 1 << 40) == [asked]
    single = parts_within(dict.fromkeys(weights, ()), 1)
    assert [len(part) for part in single] == [1] * len(weights)
