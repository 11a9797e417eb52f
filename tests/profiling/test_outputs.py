import copy

import pytest
import torch

from mpq.errors import ModelError
from mpq.kernels.fake_quant import quantize
from mpq.modeling.scoring import make_batches
from mpq.modeling.sites import places
from mpq.profiling.gradients import true_loss
from mpq.profiling.outputs import is_measured, output_damage
from tests.profiling.models import (
    candidates,
    classifier_and_examples,
    head_alone,
    sharp,
    windows,
)


def damage_of(model, asked, data, batch_size=3):
    steps = output_damage(model, data, asked, batch_size=batch_size, progress=lambda *_: None)
    return {(site.name, text): value for site, row in steps for text, value in row.items()}


def score_of_replay(model, name, data, replay):
    """Model Optimizer's score with the mean loss: Σ (dL/dY)² (replay - Y)²."""
    layer, seen = model.get_submodule(name), []

    def keep(_, args, output):
        output.retain_grad()
        seen.append((args[0].detach(), output))

    handle = layer.register_forward_hook(keep)
    model(data, labels=data).loss.backward()
    handle.remove()
    ((x, y),) = seen
    with torch.no_grad():
        difference = replay(copy.deepcopy(layer), x) - y
    return float((y.grad.float() ** 2 * difference.float() ** 2).sum())


def with_weight(text, axis):
    def replay(layer, x):
        layer.weight.data = quantize(layer.weight.data, text, axis)
        return layer(x)

    return replay


def with_input(text):
    return lambda layer, x: layer(quantize(x, text))


@pytest.mark.parametrize(
    ("family", "name", "axis"),
    [
        ("llama", "model.layers.0.self_attn.k_proj", -1),
        ("llama", "model.layers.1.mlp.down_proj", -1),
        ("llama", "lm_head", -1),
        ("gpt2", "transformer.h.0.mlp.c_fc", 0),  # Conv1D: weights lie [in, out], with a bias
    ],
)
def test_the_damage_is_model_optimizers_score_in_nats_per_token(family, name, axis):
    model, data = sharp(family), windows()
    asked = candidates(
        model,
        ["bfp3", "int4"],
        keep=lambda s: s.name in (f"{name}.weight", f"{name}.input"),
        lm_head=True,
    )
    found = damage_of(model, asked, data)
    assert len(found) == 4
    positions = 8 * 11
    for text in ("bfp3", "int4"):
        for role, replay in (("weight", with_weight(text, axis)), ("input", with_input(text))):
            score = score_of_replay(model, name, data, replay)
            # Its loss is a mean over positions, and it has no ½: a constant, (½ n²) / n.
            expected = score * positions / 2
            assert expected > 0
            assert found[f"{name}.{role}", text] == pytest.approx(expected, rel=1e-3)


def test_the_damage_of_one_linear_layer_is_what_its_softmax_says():
    """Logits are the layer's output, so the gradient is p - e_y, without autograd."""
    model, data = head_alone(), windows(4)
    asked = candidates(model, ["bfp3"], keep=lambda s: s.name == "lm_head.weight", lm_head=True)
    weight = model.lm_head.weight.detach().double()
    with torch.no_grad():
        hidden = model.model(data).last_hidden_state[:, :-1].flatten(0, 1).double()
    gradient = (hidden @ weight.T).softmax(-1)
    gradient[torch.arange(len(gradient)), data[:, 1:].flatten()] -= 1
    change = hidden @ (quantize(model.lm_head.weight.detach(), "bfp3").double() - weight).T
    expected = 0.5 * (gradient**2 * change**2).sum() / (4 * 11)
    found = damage_of(model, asked, data)
    assert found["lm_head.weight", "bfp3"] == pytest.approx(float(expected), rel=1e-4)


def test_the_damage_does_not_depend_on_the_batch_nor_on_what_else_is_asked():
    model, data = sharp("llama"), windows()
    every = candidates(model, ["bfp3", "fp32"], keep=lambda s: s.role in ("weight", "input"))
    few = {site: f for site, f in every.items() if site.name.endswith("up_proj.weight")}
    whole = damage_of(model, every, data, batch_size=8)
    for part in (damage_of(model, few, data, 8), damage_of(model, few, data, 1)):
        assert part == {pair: pytest.approx(whole[pair], rel=1e-3) for pair in part}
    assert {value for (_, text), value in whole.items() if text == "fp32"} == {0.0}
    assert all(value > 0 for (_, text), value in whole.items() if text == "bfp3")


def test_examples_are_measured_by_their_labels():
    model, examples = classifier_and_examples()
    name = "bert.encoder.layer.1.output.dense.weight"
    asked = candidates(model, ["bfp4"], keep=lambda s: s.name == name)
    found = damage_of(model, asked, examples, batch_size=16)[name, "bfp4"]
    layer = model.get_submodule(name.removesuffix(".weight"))
    error = quantize(layer.weight.detach(), "bfp4") - layer.weight.detach()
    expected = 0.0
    for batch in make_batches(examples, 1):
        seen = []

        def keep(_, args, output, seen=seen):
            output.retain_grad()
            seen.append((args[0].detach(), output))

        handle = layer.register_forward_hook(keep)
        true_loss(model, batch).backward()
        handle.remove()
        ((x, y),) = seen
        expected += 0.5 * float((y.grad**2 * (x @ error.T) ** 2).sum()) / 48
    assert found == pytest.approx(expected, rel=1e-3)


def test_what_has_no_output_of_its_own_is_told_apart():
    measured = {
        place.site.name: is_measured(place)
        for family in ("llama", "gpt2", "mixtral")
        for place in places(sharp(family))
    }
    assert measured["lm_head.weight"]
    assert measured["model.layers.0.self_attn.q_proj.input"]
    assert not measured["transformer.wte.weight"]  # the head is tied to it
    assert not measured["transformer.h.0.mlp.c_fc.bias"]
    assert not measured["model.layers.0.self_attn.q_proj.output"]
    assert not measured["model.layers.0.self_attn.k"]
    assert not measured["model.layers.0.mlp.experts.1.down_proj.weight"]


def test_the_model_is_left_as_it_was():
    model, data = sharp("llama"), windows(2)
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = model(data).logits
    damage_of(model, candidates(model, ["bfp4"], keep=lambda s: s.role == "weight"), data)
    assert torch.equal(model(data).logits, before)
    assert not frozen.requires_grad
    assert model.lm_head.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_without_probabilities_is_refused():
    model = sharp("llama")
    asked = candidates(model, ["bfp4"], keep=lambda s: s.role == "weight")
    model.lm_head.weight.data.mul_(1e38)
    with pytest.raises(ModelError, match="must predict finite probabilities"):
        damage_of(model, asked, windows(2))
