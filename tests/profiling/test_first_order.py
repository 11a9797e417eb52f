import copy

import pytest
import torch

from mpq.errors import ModelError
from mpq.kernels.fake_quant import quantize
from mpq.modeling.sites import places, sites
from mpq.profiling.first_order import first_order_damage, is_measured
from tests.profiling.models import (
    candidates,
    classifier_and_examples,
    head_alone,
    sharp,
    windows,
)


def silent(what, done, total):
    pass


def damage_of(model, asked, data, batch_size=4, progress=silent):
    steps = first_order_damage(model, data, asked, batch_size=batch_size, progress=progress)
    return {(site.name, text): value for site, row in steps for text, value in row.items()}


def with_every_weight(model, text, *, head=False):
    """A copy of the model whose weights are replaced by their quantised values, one by one."""
    quantised = copy.deepcopy(model)
    listed = {site.name for site in sites(model, lm_head=head) if site.role == "weight"}
    for place in places(quantised):
        if place.site.name in listed:
            weight = place.parameter.data
            weight = weight if place.part is None else weight[place.part]
            weight.copy_(quantize(weight.clone(), text, place.site.axis))
    return quantised


def autorounds_score(model, quantised, name, batches):
    """Σ over batches of Σ|grad · (W - qdq W)|, by transformers' own loss and plain autograd."""
    (own,), (held,) = (
        [place for place in places(one) if place.site.name == name] for one in (model, quantised)
    )
    total = 0.0
    for tokens in batches:
        loss = quantised(tokens, labels=tokens).loss
        (gradient,) = torch.autograd.grad(loss, held.parameter)
        terms = (gradient * (own.parameter - held.parameter)).abs()
        total += (terms if own.part is None else terms[own.part]).sum().item()
    return total


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.k_proj.weight"),
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight"),  # Conv1D: blocks lie along axis 0
        ("mixtral", "model.layers.0.mlp.experts.1.down_proj.weight"),  # a slice of 3-D weights
    ],
)
def test_the_damage_is_autorounds_score_a_batch(family, name):
    model, data = sharp(family), windows()
    asked = candidates(model, ["bfp3", "int4"], keep=lambda s: s.name == name)
    found = damage_of(model, asked, data)
    for text in ("bfp3", "int4"):
        score = autorounds_score(model, with_every_weight(model, text), name, data.split(4))
        assert score > 0
        assert found[name, text] == pytest.approx(score / 2, rel=1e-3)


def test_a_head_is_held_in_the_format_in_a_pass_of_its_own():
    model, data = sharp("llama"), windows()
    kept = ("lm_head.weight", "model.layers.1.mlp.up_proj.weight")
    asked = candidates(model, ["bfp3"], keep=lambda s: s.name in kept, lm_head=True)
    found = damage_of(model, asked, data)
    for name, head in zip(kept, (True, False), strict=True):
        quantised = with_every_weight(model, "bfp3", head=head)
        score = autorounds_score(model, quantised, name, data.split(4))
        assert found[name, "bfp3"] == pytest.approx(score / 2, rel=1e-3)


def test_the_damage_of_one_linear_layer_is_what_its_softmax_says():
    """Logits are the layer's output, so its gradient is the mean of (p - e_y) hᵀ at Q(W)."""
    model, data = head_alone(), windows(4)
    asked = candidates(model, ["bfp3"], keep=lambda s: s.name == "lm_head.weight", lm_head=True)
    weight = model.lm_head.weight.detach()
    held = quantize(weight, "bfp3").double()
    with torch.no_grad():
        hidden = model.model(data).last_hidden_state[:, :-1].flatten(0, 1).double()
    surprise = (hidden @ held.T).softmax(-1)
    surprise[torch.arange(len(surprise)), data[:, 1:].flatten()] -= 1
    gradient = surprise.T @ hidden / len(hidden)
    expected = float((gradient * (weight.double() - held)).abs().sum())
    found = damage_of(model, asked, data)
    assert found["lm_head.weight", "bfp3"] == pytest.approx(expected, rel=1e-4)


def test_a_damage_does_not_depend_on_what_else_is_asked_for():
    model, data = sharp("llama"), windows()
    every = candidates(model, ["bfp3", "bfp5"], keep=lambda s: s.role == "weight", lm_head=True)
    few = {site: f[:1] for site, f in every.items() if site.name.endswith("up_proj.weight")}
    whole, part = damage_of(model, every, data), damage_of(model, few, data)
    assert len(whole) == 2 * len(every)
    assert part == {pair: pytest.approx(whole[pair], rel=1e-5) for pair in part}


def test_identity_costs_nothing_and_no_pass():
    model, told = sharp("llama"), []
    asked = candidates(model, ["fp32"], keep=lambda s: s.role == "weight")
    found = damage_of(model, asked, windows(2), progress=lambda *step: told.append(step))
    assert set(found.values()) == {0.0}
    assert told == []


def test_progress_counts_the_batches_of_all_formats():
    model, told = sharp("llama"), []
    asked = candidates(model, ["bfp3", "bfp4"], keep=lambda s: s.name.endswith("up_proj.weight"))
    damage_of(model, asked, windows(), progress=lambda *step: told.append(step))
    assert [done for _, done, _ in told] == [0, 1, 2, 2, 3, 4]
    assert {(what, total) for what, _, total in told} == {("backward passes", 4)}


def test_examples_are_measured_by_their_labels():
    model, examples = classifier_and_examples()
    name = "bert.encoder.layer.1.output.dense.weight"
    asked = candidates(model, ["bfp4"], keep=lambda s: s.name == name)
    found = damage_of(model, asked, examples, batch_size=48)[name, "bfp4"]
    quantised = with_every_weight(model, "bfp4")
    output = quantised(
        examples.input_ids, attention_mask=examples.attention_mask, labels=examples.labels
    )
    held = quantised.get_parameter(name)
    (gradient,) = torch.autograd.grad(output.loss, held)
    expected = (gradient * (model.get_parameter(name) - held)).abs().sum().item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_only_weights_that_are_no_lookup_table_are_measured():
    measured = {
        place.site.name: is_measured(place)
        for family in ("llama", "gpt2", "mixtral")
        for place in places(sharp(family))
    }
    assert measured["lm_head.weight"]
    assert measured["model.layers.0.mlp.experts.1.down_proj.weight"]
    assert not measured["transformer.wte.weight"]
    assert not measured["transformer.h.0.mlp.c_fc.bias"]
    assert not measured["model.layers.0.self_attn.q_proj.input"]


def test_the_model_is_left_as_it_was():
    model, data = sharp("llama"), windows(2)
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    trained = model.model.layers[0].mlp.down_proj.weight
    trained.grad = torch.ones_like(trained)
    before = model(data).logits
    damage_of(model, candidates(model, ["bfp4"], keep=lambda s: s.role == "weight"), data)
    assert torch.equal(model(data).logits, before)
    assert not frozen.requires_grad
    assert torch.equal(trained.grad, torch.ones_like(trained))


def test_a_model_without_probabilities_is_refused():
    model = sharp("llama")
    asked = candidates(model, ["bfp4"], keep=lambda s: s.role == "weight")
    model.lm_head.weight.data.mul_(1e38)
    with pytest.raises(ModelError, match="must predict finite probabilities"):
        damage_of(model, asked, windows(2))
