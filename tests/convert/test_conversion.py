"""What is refused of a conversion before any work; more of it in test_walk.py."""

import pytest
import torch

from mpq.convert.block import WalkOptions
from mpq.convert.conversion import prepare
from mpq.errors import ModelError
from mpq.modeling.wrap import uniform_plan
from mpq.plans.plan import Plan
from tests.modeling.families import build, text

CPU = torch.device("cpu")


def prepared(model, plan):
    return prepare(model, plan, text(2, 8), options=WalkOptions(), device=CPU)


def test_sites_are_called_by_their_own_names_and_identities_left_out():
    plan = Plan.of({"lm_head.weight": "int8", "model.layers.0.mlp.up_proj.weight": "fp32"})
    assert list(prepared(build("gemma3"), plan).plan.formats) == ["model.embed_tokens.weight"]


def test_a_tensor_that_two_blocks_share_is_refused():
    model = build("llama")
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    plan = Plan.of({"model.layers.0.mlp.up_proj.weight": "int4"})
    with pytest.raises(ModelError, match=r"shared by several: model\.layers\.0\.mlp\.up_proj"):
        prepared(model, plan)


def test_every_weight_that_is_not_finite_is_named_before_any_work():
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.inf
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = torch.nan
    plan = uniform_plan(model, "int4", roles=("weight",))
    named = r"layers\.0\.mlp\.up_proj\.weight, model\.layers\.1\.self_attn\.o_proj\.weight; repair"
    with pytest.raises(ModelError, match=named):
        prepared(model, plan)


def test_a_weight_outside_of_the_plan_may_be_anything():
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.inf
    prepared(model, Plan.of({"model.layers.1.mlp.up_proj.weight": "int4"}))
