"""Models under plans: what changes, what does not, and that everything comes back."""

from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpq.errors import FormatError, ModelError, PlanError
from mpq.kernels.fake_quant import quantize
from mpq.modeling import activations, wrap
from mpq.modeling.loading import fingerprint
from mpq.modeling.sites import places, sites
from mpq.modeling.wrap import WeightCache, apply_plan, tap, uniform_plan
from mpq.plans.plan import Plan
from tests.modeling.families import (
    CAUSAL,
    FAMILIES,
    UNREACHABLE,
    build,
    logits,
    positions,
    text,
)

OPERANDS = {"q", "k", "v", "probs"}


def every_site(model: PreTrainedModel):
    return sites(model, lm_head=True, embeddings=True, bias=True, output=True)


def eager_logits(model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
    """What transformers' own `eager` attention gives."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return logits(model, tokens, **inputs)
    finally:
        model.set_attn_implementation(own)


def all_but_later(model: PreTrainedModel, text_form: str) -> AbstractContextManager[None]:
    """Every weight, input, q, k, v and probs in one format."""
    return apply_plan(model, uniform_plan(model, text_form))


# --- fp32 is eager, bit for bit ---------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_all_fp32_plan_is_bit_equal_to_eager(family):
    model, tokens = build(family), text()
    padded = torch.ones_like(tokens)
    padded[0, -5:] = 0
    with all_but_later(model, "fp32"):
        whole = logits(model, tokens)
        masked = logits(model, tokens, attention_mask=padded)
    assert torch.equal(whole, eager_logits(model, tokens))
    assert torch.equal(masked, eager_logits(model, tokens, attention_mask=padded))


def test_an_all_fp32_plan_is_bit_equal_to_eager_in_bfloat16():
    model, tokens = build("llama", torch.bfloat16), text()
    with all_but_later(model, "fp32"):
        assert torch.equal(logits(model, tokens), eager_logits(model, tokens))


def test_a_plan_without_attention_sites_leaves_the_models_attention_alone():
    model, tokens = build("llama"), text()
    before = logits(model, tokens)
    with apply_plan(model, uniform_plan(model, "fp32", roles=("weight", "input"))):
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(logits(model, tokens), before)


# --- a plan changes what it names, and nothing else --------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_each_site_alone_changes_the_logits_and_no_other_weight(family):
    model, tokens = build(family), text()
    before = {False: logits(model, tokens), True: eager_logits(model, tokens)}
    found = {place.site.name: place for place in places(model)}
    own = {id(p): p.detach().clone() for p in model.parameters()}
    for site in every_site(model):
        with apply_plan(model, Plan.of({site.name: "bfp2"})):
            changed = [p for p in model.parameters() if not torch.equal(p, own[id(p)])]
            after = logits(model, tokens)
        assert not torch.equal(after, before[site.role in OPERANDS]), site.name
        place = found[site.name]
        named = [id(place.parameter)] if site.is_stored else []
        assert [id(p) for p in changed] == named, site.name
        if site.is_stored and place.part is not None:
            with apply_plan(model, Plan.of({site.name: "bfp2"})):
                differs = (place.parameter != own[id(place.parameter)]).flatten(1).any(1)
            assert differs.nonzero().flatten().tolist() == [place.part]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_tensor_of_a_weight_site_is_the_quantised_one(family):
    model = build(family)
    for place in places(model):
        if place.site.role == "weight":
            whole = place.parameter.detach().clone()
            part = whole if place.part is None else whole[place.part]
            with apply_plan(model, Plan.of({place.site.name: "bfp4"})):
                got = place.parameter if place.part is None else place.parameter[place.part]
                assert torch.equal(got, quantize(part, "bfp4", place.site.axis)), place.site.name


@pytest.mark.parametrize("family", FAMILIES)
def test_an_activation_arrives_in_its_format(family):
    model, tokens = build(family), text()
    flowing = [site for site in every_site(model) if not site.is_stored]
    plain: dict[str, Tensor] = {}

    def keep(site, x):
        plain[site.name] = x.clone()
        return x

    for first in flowing[:8]:
        with tap(model, [first], keep):
            logits(model, tokens)
        seen: dict[str, Tensor] = {}
        names = [first.name, *(s.name for s in flowing if s.role in OPERANDS)]
        with (
            apply_plan(model, Plan.of({first.name: "bfp4"})),
            tap(model, names[:1], lambda site, x, seen=seen: seen.setdefault(site.name, x)),
        ):
            logits(model, tokens)
        if first.role != "output":
            assert torch.equal(seen[first.name], quantize(plain[first.name], "bfp4")), first.name


# --- everything comes back ---------------------------------------------------------------------


def state(model: PreTrainedModel):
    """What a context could leave behind."""
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
        for m in model.modules()
    ]
    configs = [getattr(m, "config", None) for m in model.modules()]
    implementations = [
        (c._attn_implementation, c._experts_implementation) for c in configs if c is not None
    ]
    parameters = [(id(p), p.data_ptr(), p.requires_grad) for p in model.parameters()]
    return fingerprint(model), hooks, implementations, parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_restores_the_model_bit_for_bit(family):
    model, tokens = build(family), text()
    everything = Plan.of(
        {site.name: "bfp2" for site in every_site(model) if site.role != "output"}
    )
    before, out = state(model), logits(model, tokens)
    with apply_plan(model, everything):
        assert not torch.equal(logits(model, tokens), out)
    assert state(model) == before
    assert torch.equal(logits(model, tokens), out)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_an_exception_restores_the_model_too(family):
    model = build(family)
    plan, before = uniform_plan(model, "bfp2"), state(model)
    with pytest.raises(RuntimeError, match="on purpose"), apply_plan(model, plan):
        raise RuntimeError("on purpose")
    assert state(model) == before


def test_a_weight_that_is_not_finite_is_named_and_nothing_stays_changed():
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    plan, before = uniform_plan(model, "bfp4"), state(model)
    with (
        pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"),
        apply_plan(model, plan),
    ):
        pass
    assert state(model) == before


def test_a_tied_head_is_quantised_for_both_users():
    model, tokens = build("gemma3"), text()
    (tied,) = [s for s in sites(model, lm_head=True) if s.aliases]
    assert (tied.name, tied.aliases) == ("model.embed_tokens.weight", ("lm_head.weight",))
    outputs = []
    for name in (tied.name, *tied.aliases):
        with apply_plan(model, Plan.of({name: "bfp3"})):
            assert model.lm_head.weight is model.model.embed_tokens.weight
            outputs.append(logits(model, tokens))
    assert torch.equal(*outputs)


def test_weights_are_quantised_in_the_dtype_they_are_stored_in():
    model = build("llama", torch.bfloat16)
    weight = model.model.layers[0].mlp.up_proj.weight
    wanted = quantize(weight.detach(), "int4")
    with apply_plan(model, Plan.of({"model.layers.0.mlp.up_proj.weight": "int4"})):
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, wanted)


# --- what a token may depend on: float64, so that only dependence can show ----------------------
# In float32 the sums of a matmul depend on the batch's shape in the last bit, and one flipped
# rounding is a visible difference. Measured maxima: see each test.

TOLERANCE = 1e-9
LENGTH = 40
FORMATS = {"llama": "int4a-g16", "mistral": "mxfp4", "gemma3": "bfp4", "bert": "nf4-g32"}


def plan_for(model: PreTrainedModel, family: str) -> Plan:
    return uniform_plan(model, FORMATS.get(family, "bfp4"))


def padded(tokens: Tensor, before: tuple[int, ...], total: int) -> tuple[Tensor, Tensor]:
    """Rows of `tokens` after `before[i]` pad tokens, and the mask; [batch, total] each."""
    out = torch.zeros(len(tokens), total, dtype=tokens.dtype)
    mask = torch.zeros_like(out)
    for row, start in enumerate(before):
        out[row, start : start + tokens.shape[1]] = tokens[row]
        mask[row, start : start + tokens.shape[1]] = 1
    return out, mask


@pytest.mark.parametrize("family", CAUSAL)
def test_a_later_token_changes_no_earlier_logit(family):
    # Measured: 0.
    model, tokens = build(family, torch.float64), text(2, LENGTH)
    with apply_plan(model, plan_for(model, family)):
        before = logits(model, tokens)
        for first in (7, 16, 33):
            changed = tokens.clone()
            changed[:, first:] = (changed[:, first:] + 5) % 90 + 3
            after = logits(model, changed)
            assert (after - before)[:, :first].abs().max() <= TOLERANCE
            assert (after - before)[:, first:].abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_batch_composition_change_nothing(family):
    # Measured: 0. With block borders counted from the padded start, left padding gives 3 to 5.
    model, tokens = build(family, torch.float64), text(3, LENGTH)
    shifts = [(0, 0, 0), (1, 1, 1), (16, 16, 16), (21, 21, 21), (0, 3, 5)]
    with apply_plan(model, plan_for(model, family)):
        alone = torch.cat(
            [logits(model, row[None], position_ids=positions(family, row[None])) for row in tokens]
        )
        for before in shifts:
            for after in (0, 7):
                ids, mask = padded(tokens, before, LENGTH + max(before) + after)
                places_ = positions(family, ids, mask)
                got = logits(model, ids, attention_mask=mask, position_ids=places_)
                for row, start in enumerate(before):
                    difference = got[row, start : start + LENGTH] - alone[row]
                    assert difference.abs().max() <= TOLERANCE, (before, after)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("shift", [0, 5])
def test_cached_decoding_equals_prefill(family, shift):
    # Measured: at most 5e-15. Past the sliding window of Mistral and Gemma 3 (6 tokens) the cache
    # has dropped keys; with borders counted from the first key that is left, the difference is 4.
    model, tokens = build(family, torch.float64), text(2, LENGTH)
    ids, mask = padded(tokens, (shift, shift), LENGTH + shift)
    where = positions(family, ids, mask)
    steps, parts, cache, start = (9 + shift, 1, 1, 7, *[1] * (LENGTH - 18)), [], None, 0
    with apply_plan(model, plan_for(model, family)), torch.no_grad():
        whole = logits(model, ids, attention_mask=mask, position_ids=where)
        for step in steps:
            stop = start + step
            out = model(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=where[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            )
            cache, start = out.past_key_values, stop
            parts.append(out.logits)
    difference = torch.cat(parts, dim=1) - whole
    assert difference.shape[1] == LENGTH + shift
    assert difference[:, shift:].abs().max() <= TOLERANCE


# --- one plan at a time, taps among them -------------------------------------------------------


def test_a_second_plan_inside_a_plan_is_refused():
    model = build("llama")
    plan = uniform_plan(model, "bfp4", roles=("weight",))
    with apply_plan(model, plan):
        with (
            pytest.raises(PlanError, match=r"already applied to this LlamaForCausalLM; leave"),
            apply_plan(model, plan),
        ):
            pass
        assert not torch.equal(
            model.model.layers[0].mlp.up_proj.weight,
            build("llama").model.layers[0].mlp.up_proj.weight,
        )
    with apply_plan(model, plan):
        pass


def test_a_tap_changes_nothing_by_looking_and_sees_shapes_as_the_sites_say():
    model, tokens = build("llama"), text(2, 20)
    flowing = [site for site in every_site(model) if not site.is_stored]
    seen = {}

    def look(site, x):
        seen[site.name] = tuple(x.shape)
        return x

    with tap(model, flowing, look):
        assert torch.equal(logits(model, tokens), eager_logits(model, tokens))
    assert seen == {site.name: (2, *site.shape_at(20)) for site in flowing}


def test_gradients_reach_a_tapped_activation_and_a_quantised_weight():
    model, tokens = build("llama"), text()
    kept = {}

    def keep(site, x):
        kept[site.name] = x
        x.retain_grad()
        return x

    names = ["model.layers.0.self_attn.probs", "model.layers.1.mlp.down_proj.input"]
    with apply_plan(model, uniform_plan(model, "bfp4")), tap(model, names, keep):
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in kept.values())
    weights = [model.get_parameter(s.name) for s in sites(model) if s.role == "weight"]
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights)


def test_weights_that_were_kept_in_inference_mode_can_be_trained_through():
    model, tokens, cache = build("llama"), text(), WeightCache(1 << 24)
    plan = uniform_plan(model, "bfp4", roles=("weight",))
    with torch.inference_mode(), apply_plan(model, plan, cache=cache):
        model(input_ids=tokens)
    with apply_plan(model, plan, cache=cache):
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_a_tap_inside_a_plan_sees_what_the_plan_made_of_the_operands():
    model, tokens = build("mistral"), text()
    names = [s.name for s in sites(model) if s.role in OPERANDS]
    got = {}
    with (
        apply_plan(model, uniform_plan(model, "bfp3", roles=("q", "k", "v"))),
        tap(model, names, lambda site, x: got.setdefault(site.name, x)),
    ):
        logits(model, tokens)
        inner = model.config._attn_implementation
    assert inner != model.config._attn_implementation == "sdpa"
    for name, x in got.items():
        assert torch.equal(x, quantize(x, "bfp3")) == (not name.endswith("probs"))


# --- nothing is done twice ---------------------------------------------------------------------


def test_forward_passes_quantise_activations_only_and_shared_inputs_once(monkeypatch):
    model, tokens = build("llama"), text()
    calls = []

    def counted(x, format, *args, **kwargs):
        calls.append(kwargs.get("name"))
        return quantize(x, format, *args, **kwargs)

    monkeypatch.setattr(wrap, "quantize", counted)
    monkeypatch.setattr(activations, "quantize", counted)
    cache, plan = WeightCache(1 << 24), uniform_plan(model, "bfp4")
    num_weights = sum(site.role == "weight" for site in sites(model))
    with apply_plan(model, plan, cache=cache):
        assert len(calls) == num_weights
        calls.clear()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                model(input_ids=tokens)
            # A block's inputs: q/k/v, o, gate/up and down; its operands: q, k, v and probs.
            assert len(calls) == 2 * (4 + 4)
            calls.clear()
    with apply_plan(model, plan, cache=cache):
        assert not calls


# --- uniform plans -----------------------------------------------------------------------------


def test_a_uniform_plan_names_every_weight_input_and_operand():
    model = build("llama")
    assert set(uniform_plan(model, "bfp4").formats) == {s.name for s in sites(model)}
    assert {str(fmt) for fmt in uniform_plan(model, "bfp4").formats.values()} == {"bfp4"}


def test_keywords_narrow_and_widen_a_uniform_plan():
    model = build("llama")
    narrow = uniform_plan(model, "bfp4", roles=("weight",), match="*.layers.1.mlp.*")
    assert set(narrow.formats) == {
        f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    }
    wide = uniform_plan(model, "bfp4", roles=("weight",), lm_head=True, embeddings=True)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(wide.formats)


def test_a_uniform_plan_of_nothing_is_refused():
    with pytest.raises(PlanError, match=r"no site of LlamaForCausalLM .* name like 'nothing'"):
        uniform_plan(build("llama"), "bfp4", match="nothing")


@pytest.mark.parametrize("family", UNREACHABLE)
def test_models_whose_attention_cannot_be_reached_say_so_by_name(family):
    model, tokens = build(family), text()
    name = type(model).__name__
    assert not [site for site in sites(model) if site.role in OPERANDS]
    with pytest.raises(ModelError, match=f"the attention of {name} cannot be reached"):
        uniform_plan(model, "bfp4")
    block = "transformer.h.0.self_attention"
    with (
        pytest.raises(PlanError, match=rf"{block}\.k: the attention of {name} cannot be reached"),
        apply_plan(model, Plan.of({f"{block}.k": "bfp4"})),
    ):
        pass
    before = logits(model, tokens)
    with apply_plan(model, uniform_plan(model, "bfp4", roles=("weight", "input"))):
        assert not torch.equal(logits(model, tokens), before)
    assert torch.equal(logits(model, tokens), before)
