import math

import pytest
import torch

from mpq.errors import ModelError
from mpq.modeling.scoring import Scorer
from mpq.modeling.wrap import apply_plan
from mpq.plans.plan import Plan
from mpq.profiling import direct
from mpq.profiling.direct import kl_damage
from tests.profiling.models import candidates, sharp, windows


def silent(what, done, total):
    pass


def damage_of(model, asked, data, progress=silent):
    steps = kl_damage(model, data, asked, batch_size=3, progress=progress)
    return {(site.name, text): value for site, row in steps for text, value in row.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "bloom"])
def test_restarted_passes_give_the_kl_of_whole_passes(family):
    model, data = sharp(family), windows(7)
    asked = candidates(model, ["bfp3"], lm_head=True)
    found = damage_of(model, asked, data)
    scorer = Scorer(model, data, batch_size=3)
    for site in asked:
        plan = Plan.of({site.name: "bfp3"})
        expected = float(scorer.score(lambda plan=plan: apply_plan(model, plan)).kl.mean())
        assert found[site.name, "bfp3"] == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert expected > 0


def test_the_blocks_before_a_site_run_once_a_batch():
    model, data = sharp("llama"), windows(6)
    asked = candidates(model, ["bfp3", "bfp4"], keep=lambda s: s.block == 1)
    calls = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    damage_of(model, asked, data)
    handle.remove()
    assert len(calls) == 2  # two batches; 20 pairs


def test_a_model_that_cannot_be_restarted_is_measured_by_whole_passes(monkeypatch, caplog):
    def refuse(model, inputs):
        raise ModelError("it calls its blocks twice")

    model, data = sharp("llama"), windows(4)
    asked = candidates(model, ["bfp3"], keep=lambda s: s.name.endswith("1.mlp.up_proj.weight"))
    expected = damage_of(model, asked, data)
    monkeypatch.setattr(direct, "capture_block_inputs", refuse)
    assert damage_of(model, asked, data) == pytest.approx(expected, rel=1e-5)
    assert "each runs whole: it calls its blocks twice" in caplog.text


def test_progress_counts_pairs_and_identity_costs_nothing():
    model = sharp("llama")
    asked = candidates(model, ["fp32", "bfp4"], keep=lambda s: s.name.endswith("0.self_attn.q"))
    told = []
    found = damage_of(model, asked, windows(2), lambda *step: told.append(step))
    assert told == [("forward passes", done, 2) for done in (0, 1, 2)]
    assert found["model.layers.0.self_attn.q", "fp32"] == 0.0
    assert found["model.layers.0.self_attn.q", "bfp4"] > 0


def test_a_model_that_breaks_down_has_infinite_damage():
    model = sharp("llama")
    asked = candidates(model, ["bfp4"], keep=lambda s: s.name.endswith("0.self_attn.q"))
    model.model.norm.weight.data[0] = math.nan
    assert list(damage_of(model, asked, windows(2)).values()) == [math.inf]


def test_the_model_is_left_as_it_was():
    model, data = sharp("llama"), windows(2)
    before = model(data).logits
    damage_of(model, candidates(model, ["bfp3"]), data)
    assert torch.equal(model(data).logits, before)
