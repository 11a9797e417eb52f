import math

import pytest
import torch

from mpq.measures import kl_divergence
from mpq.modeling.wrap import apply_plan
from mpq.plans.move import UNTOUCHED
from mpq.plans.plan import Plan
from mpq.profiling import shares
from mpq.profiling.in_plan import moves_in_plan
from mpq.profiling.shares import share_damage
from tests.profiling.models import candidates, sharp, windows


def silent(what, done, total):
    pass


def damage_of(model, asked, data, *, judge_every=1, progress=silent):
    steps = share_damage(model, data, asked, judge_every=judge_every, progress=progress)
    return {(site.name, text): value for site, row in steps for text, value in row.items()}


def joint_kl(model, plan, data):
    with torch.no_grad():
        reference = model(data).logits[:, :-1]
        with apply_plan(model, plan):
            return float(kl_divergence(model(data).logits[:, :-1], reference).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_weights_have_their_share_in_the_uniform_plan(family):
    model, data = sharp(family), windows()
    asked = candidates(model, ["bfp4"], keep=lambda s: s.role == "weight")
    plan = Plan.of(dict.fromkeys((site.name for site in asked), "bfp4"))
    moves = moves_in_plan(model, data, plan, asked)
    found = damage_of(model, asked, data)
    assert len(found) == len(asked)
    for name, to in moves.items():
        expected = max(0.0, -0.5 * to[UNTOUCHED].slope)
        assert found[name, "bfp4"] == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shares_of_weights_and_activations_sum_to_the_plans_divergence(family):
    model, data = sharp(family), windows(64)
    asked = candidates(model, ["bfp6"], keep=lambda s: s.role in ("weight", "input", "v"))
    assert {site.role for site in asked} == {"weight", "input", "v"}
    plan = Plan.of(dict.fromkeys((site.name for site in asked), "bfp6"))
    found = damage_of(model, asked, data)
    assert sum(found.values()) == pytest.approx(joint_kl(model, plan, data), rel=0.15)


def test_an_activation_that_is_alone_does_the_damage_itself():
    model, data = sharp("llama"), windows(64)
    for site, formats in candidates(
        model, ["bfp5"], keep=lambda s: s.block == 0 and not s.is_stored
    ).items():
        found = damage_of(model, {site: formats}, data)
        expected = joint_kl(model, Plan.of({site.name: "bfp5"}), data)
        assert found == {(site.name, "bfp5"): pytest.approx(expected, rel=0.25, abs=1e-7)}


def test_where_a_format_breaks_the_model_smaller_errors_are_measured(monkeypatch):
    model, data = sharp("llama"), windows(32)
    asked = candidates(model, ["bfp6"], keep=lambda s: s.role in ("weight", "input"))
    whole = damage_of(model, asked, data)
    plan = Plan.of(dict.fromkeys((site.name for site in asked), "bfp6"))
    guessing = math.log(model.config.vocab_size)
    monkeypatch.setattr(shares, "BROKEN", joint_kl(model, plan, data) / 2 / guessing)
    parts = damage_of(model, asked, data)
    assert parts != whole
    # The errors of bfp6 are small: half of them do a quarter of the damage.
    assert sum(parts.values()) == pytest.approx(sum(whole.values()), rel=0.15)
    pair = torch.tensor([list(whole.values()), list(parts.values())])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.98


def test_a_model_that_breaks_whatever_is_held_is_still_measured(monkeypatch):
    model, data = sharp("llama"), windows(2)
    asked = candidates(model, ["bfp3"], keep=lambda s: s.role == "weight")
    monkeypatch.setattr(shares, "BROKEN", 0.0)
    assert all(value >= 0 for value in damage_of(model, asked, data).values())


def test_formats_come_one_after_another_and_identity_costs_nothing():
    model = sharp("llama")
    asked = candidates(model, ["fp32", "bfp4", "bfp5"], keep=lambda s: s.kind == "self_attn")
    told = []
    found = damage_of(model, asked, windows(2), progress=lambda *step: told.append(step))
    assert told[0] == ("backward passes", 0, 4)
    assert told[-1] == ("backward passes", 4, 4)
    assert {value for (_, text), value in found.items() if text == "fp32"} == {0.0}
    assert sum(v for (_, t), v in found.items() if t == "bfp4") > sum(
        v for (_, t), v in found.items() if t == "bfp5"
    )


def test_the_model_is_left_as_it_was():
    model, data = sharp("llama"), windows(2)
    before = model(data).logits
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    damage_of(model, candidates(model, ["bfp3"]), data)
    assert torch.equal(model(data).logits, before)
    for name, value in model.named_parameters():
        assert value.requires_grad == flags[name]
        assert value.grad is None
