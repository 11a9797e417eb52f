import pytest
import torch

from mpq.errors import FormatError
from mpq.kernels.fake_quant import quantize
from mpq.modeling.sites import places
from mpq.profiling.squared_error import is_measured, squared_error_damage
from tests.profiling.models import candidates, head_alone, sharp


def damage_of(model, asked, progress=lambda *_: None):
    steps = squared_error_damage(model, asked, progress=progress)
    return {(site.name, text): value for site, row in steps for text, value in row.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_every_stored_tensors_damage_is_the_sum_of_its_squared_errors(family):
    model = sharp(family)
    options = {"lm_head": True, "embeddings": True, "bias": True}
    asked = candidates(model, ["bfp3", "int4"], keep=lambda s: s.is_stored, **options)
    found = damage_of(model, asked)
    assert len(found) == 2 * len(asked)
    for place in places(model):
        if place.site in asked:
            tensor = place.parameter.detach()
            tensor = tensor if place.part is None else tensor[place.part]
            for text in ("bfp3", "int4"):
                error = quantize(tensor, text, place.site.axis).double() - tensor.double()
                expected = float((error**2).sum())
                assert found[place.site.name, text] == pytest.approx(expected, rel=1e-5)


def test_a_known_error_by_hand():
    """A row of 1 and 0.1 sixteen times: int2 has the codes -1, 0, 1 at a scale of 1."""
    model = head_alone()
    row = torch.full((32,), 0.1)
    row[0] = 1.0
    model.lm_head.weight.data = row.repeat(model.lm_head.weight.shape[0], 1)
    asked = candidates(model, ["int2"], keep=lambda s: s.name == "lm_head.weight", lm_head=True)
    expected = model.lm_head.weight.shape[0] * 31 * 0.1**2
    assert damage_of(model, asked)["lm_head.weight", "int2"] == pytest.approx(expected, rel=1e-5)


def test_identity_costs_nothing_and_sites_are_counted():
    model, told = head_alone(), []
    asked = candidates(model, ["fp32"], keep=lambda s: s.is_stored, lm_head=True)
    found = damage_of(model, asked, lambda *step: told.append(step))
    assert set(found.values()) == {0.0}
    assert told == [("sites", 0, 1), ("sites", 1, 1)]


def test_activations_are_not_measured():
    measured = {place.site.name: is_measured(place) for place in places(sharp("llama"))}
    assert measured["model.embed_tokens.weight"]
    assert not measured["model.layers.0.self_attn.q_proj.input"]
    assert not measured["model.layers.0.self_attn.k"]


def test_a_weight_that_is_not_finite_is_named():
    model = head_alone()
    model.lm_head.weight.data[0, 0] = torch.inf
    asked = candidates(model, ["bfp4"], keep=lambda s: s.name == "lm_head.weight", lm_head=True)
    with pytest.raises(FormatError, match=r"lm_head\.weight"):
        damage_of(model, asked)
