"""Plans that are refused, each with its reason and a way out."""

import pytest
import torch

from mpq.errors import PlanError
from mpq.modeling.sites import places
from mpq.modeling.validity import check_plan
from mpq.modeling.wrap import apply_plan, tap
from mpq.plans.plan import Plan
from tests.modeling.families import build

ATTENTION = "model.layers.0.self_attn"


def refused(model, formats, match):
    plan = Plan.of(formats)
    with pytest.raises(PlanError, match=match), apply_plan(model, plan):
        pass


def test_an_unknown_site_is_named_with_the_nearest():
    refused(
        build("llama"),
        {"model.layers.0.self_attn.q_prj.weight": "bfp4"},
        r"q_prj\.weight: no site of LlamaForCausalLM; nearest: .*self_attn\.q_proj\.weight",
    )


@pytest.mark.parametrize("role", ["q_proj.input", "o_proj.output", "q", "k", "v", "probs"])
@pytest.mark.parametrize("text", ["int8-tensor", "nvfp4"])
def test_a_tensor_wide_scale_read_off_an_activation_is_refused(role, text):
    model = build("llama")
    refused(model, {f"{ATTENTION}.{role}": text}, r"depend on later ones; take the -token form")
    for way_out in (f"{text}(absmax=3.5)", text.replace("-tensor", "") + "-token"):
        with apply_plan(model, Plan.of({f"{ATTENTION}.{role}": way_out})):
            pass


@pytest.mark.parametrize("role", ["q_proj.input", "k", "v", "probs"])
def test_a_block_over_several_tokens_is_refused(role):
    refused(
        build("llama"),
        {f"{ATTENTION}.{role}": "bfp4(block=4x16)"},
        r"spans several tokens, .* take a block of one row",
    )


def test_weights_may_have_both():
    model = build("llama")
    formats = {
        f"{ATTENTION}.q_proj.weight": "bfp4(block=4x16)",
        f"{ATTENTION}.k_proj.weight": "nvfp4",
    }
    with apply_plan(model, Plan.of(formats)):
        pass


def test_probabilities_need_a_zero():
    model = build("llama")
    refused(model, {f"{ATTENTION}.probs": "log8(zero=false)"}, "masked keys would be attended to")
    with apply_plan(model, Plan.of({f"{ATTENTION}.k": "log8(zero=false)"})):
        pass


@pytest.mark.parametrize(
    ("family", "output", "operand"),
    [
        ("llama", f"{ATTENTION}.k_proj.output", f"{ATTENTION}.k"),
        ("llama", f"{ATTENTION}.v_proj.output", f"{ATTENTION}.v"),
        ("phi3", f"{ATTENTION}.qkv_proj.output", f"{ATTENTION}.v"),
        ("gpt2", "transformer.h.0.attn.c_attn.output", "transformer.h.0.attn.k"),
    ],
)
def test_what_the_cache_stores_is_quantised_once(family, output, operand):
    model = build(family)
    refused(model, {output: "bfp4", operand: "bfp4"}, "both quantise what the cache stores")
    for formats in ({output: "bfp4", operand: "fp32"}, {output: "bfp4"}, {operand: "bfp4"}):
        with apply_plan(model, Plan.of(formats)):
            pass
    with apply_plan(model, Plan.of({output: "bfp4", operand.replace(".0.", ".1."): "bfp4"})):
        pass


def test_one_tensor_has_one_format():
    model = build("gemma3")
    refused(
        model,
        {"lm_head.weight": "bfp4", "model.embed_tokens.weight": "bfp3"},
        r"embed_tokens\.weight \(bfp3\) and lm_head\.weight \(bfp4\) are one tensor; name one",
    )
    same = {"lm_head.weight": "bfp4", "model.embed_tokens.weight": "bfp4"}
    with apply_plan(model, Plan.of(same)):
        pass


def test_all_faults_come_at_once():
    model = build("llama")
    formats = {
        "nowhere": "bfp4",
        f"{ATTENTION}.probs": "int8-tensor",
        f"{ATTENTION}.q": "bfp4(block=2x16)",
        f"{ATTENTION}.k": "bfp4",
        f"{ATTENTION}.k_proj.output": "bfp4",
    }
    with pytest.raises(PlanError) as caught:
        check_plan(model, Plan.of(formats).formats, places(model))
    assert len(str(caught.value).splitlines()) == 4


def test_a_refused_plan_has_touched_nothing():
    model = build("llama")
    weight = model.get_parameter(f"{ATTENTION}.q_proj.weight")
    before, address = weight.detach().clone(), weight.data_ptr()
    refused(model, {f"{ATTENTION}.q_proj.weight": "bfp2", "nowhere": "bfp4"}, "nowhere")
    assert torch.equal(weight.detach(), before)
    assert weight.data_ptr() == address


def test_only_activations_are_tapped():
    model = build("llama")
    names = [f"{ATTENTION}.q_proj.weight", "nowhere"]
    with (
        pytest.raises(PlanError, match=r"(?s)q_proj\.weight: a stored tensor.*nowhere: no site"),
        tap(model, names, lambda _, x: x),
    ):
        pass
