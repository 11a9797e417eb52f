"""mpq's attention: eager's arithmetic, positions of keys, and registries that forget."""

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    StaticCache,
)

from mpq.errors import ModelError
from mpq.modeling.attention import Keys, reach_attention
from mpq.modeling.wrap import apply_plan, tap, uniform_plan
from tests.modeling.families import build, logits, text

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def untouched(module, role, x, keys):
    return x


def test_keys_count_from_the_first_unmasked_token():
    padding = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)
    assert Keys(0, padding).starts == (0, 2)
    assert Keys(0, padding).phases(4) == (0, 2)
    assert Keys(5, padding).phases(4) == (1, 3)
    assert Keys(5, None).phases(4) == (1,)


def test_a_softcap_and_sinks_are_eagers_bit_for_bit():
    torch.manual_seed(0)
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6}
    models = [
        Gemma2ForCausalLM(Gemma2Config(**SIZES, attn_logit_softcapping=0.5, sliding_window=6)),
        GptOssForCausalLM(GptOssConfig(**SIZES, **experts)),
    ]
    for model in models:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.eval().set_attn_implementation("eager")
        before = logits(model, text())
        with reach_attention(model, untouched):
            assert torch.equal(logits(model, text()), before), type(model).__name__
    # Both matter: the sinks are parameters, the cap is far below the scores.
    models[1].model.layers[0].self_attn.sinks.data += 3
    assert not torch.equal(logits(models[1], text()), before)


def test_dropout_in_training_draws_what_eager_draws():
    model, tokens = build("bert").train(), text()
    model.set_attn_implementation("eager")
    torch.manual_seed(3)
    before = logits(model, tokens)
    with reach_attention(model, untouched):
        torch.manual_seed(3)
        assert torch.equal(logits(model, tokens), before)


def test_probabilities_are_returned_to_who_asks_for_them():
    model, tokens = build("llama"), text()
    with torch.no_grad(), reach_attention(model, untouched):
        attentions = model(input_ids=tokens, output_attentions=True).attentions
    assert len(attentions) == 2
    assert torch.allclose(attentions[0].sum(-1), torch.ones(2, 4, 20))


def test_a_mask_made_by_hand_is_numbered_from_its_first_visible_key():
    model, tokens = build("mistral", torch.float64), text(1, 12)
    smallest = torch.finfo(torch.float64).min
    causal = torch.full((12, 12), smallest, dtype=torch.float64).triu(1)
    seen = []

    def note(module, role, x, keys):
        seen.append((keys.offset, keys.starts))
        return x

    with reach_attention(model, note):
        for hidden in (0, 3):
            mask = causal.clone()
            mask[:, :hidden] = smallest
            logits(model, tokens, attention_mask=mask[None, None])
            assert set(seen) == {(0, (hidden,))}
            logits(model, tokens, attention_mask=(mask > smallest)[None, None])
            assert set(seen) == {(0, (hidden,))}
            seen.clear()


def test_a_mask_made_by_hand_beside_a_cache_is_refused():
    model, tokens = build("llama"), text(1, 8)
    plan = uniform_plan(model, "bfp4", roles=("probs",))
    with apply_plan(model, plan), torch.no_grad():
        cache = model(input_ids=tokens, use_cache=True).past_key_values
        with pytest.raises(ModelError, match=r"hand-made mask .*\(1 queries, 9 keys\)"):
            model(
                input_ids=tokens[:, :1],
                past_key_values=cache,
                attention_mask=torch.zeros(1, 1, 1, 9),
            )


def test_masks_of_two_kinds_and_one_length_are_told_apart():
    # Gemma 3 makes a full and a sliding mask; while the text is short both have the same length.
    model, tokens = build("gemma3"), text(2, 5)
    offsets = []

    def note(module, role, x, keys):
        offsets.append(keys.offset)
        return x

    with torch.no_grad(), reach_attention(model, note):
        cache = model(input_ids=tokens, use_cache=True).past_key_values
        assert set(offsets) == {0}
        for _ in range(6):
            offsets.clear()
            model(input_ids=tokens[:, :1], past_key_values=cache)
    # 11 tokens: the sliding layer (a window of 6) has dropped 5, the full layer none.
    assert offsets == [5] * 4 + [0] * 4


def test_a_static_cache_decodes_what_prefill_gives():
    model, tokens = build("mistral", torch.float64), text(1, 20)
    with apply_plan(model, uniform_plan(model, "bfp4")), torch.no_grad():
        whole = logits(model, tokens)
        cache = StaticCache(config=model.config, max_cache_len=32)
        parts = [
            model(
                input_ids=tokens[:, start:stop],
                past_key_values=cache,
                position_ids=torch.arange(start, stop)[None],
            ).logits
            for start, stop in [(0, 4), *((i, i + 1) for i in range(4, 20))]
        ]
    # Measured: 2e-15.
    assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-9


def test_generation_runs_inside_a_plan():
    model, tokens = build("gemma3"), text(2, 8)
    with apply_plan(model, uniform_plan(model, "bfp4")):
        out = model.generate(tokens, max_new_tokens=12, do_sample=False)
        again = tokens
        for _ in range(12):
            best = logits(model, again)[:, -1].argmax(-1, keepdim=True)
            again = torch.cat([again, best], dim=1)
    assert out.shape[1] <= 20
    assert torch.equal(out, again[:, : out.shape[1]])


def test_the_registries_and_configs_forget_a_context_also_after_an_error():
    model = build("llama")
    names = (set(AttentionInterface()), set(AttentionMaskInterface()))
    with reach_attention(model, untouched):
        assert model.config._attn_implementation in set(AttentionInterface())

    def fail(module, role, x, keys):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), reach_attention(model, fail):
        logits(model, text())
    assert (set(AttentionInterface()), set(AttentionMaskInterface())) == names
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_hooks


def test_contexts_inside_each_other_chain_their_transforms_from_the_outer_to_the_inner():
    model, tokens = build("llama"), text()
    order = []

    def log(name):
        def transform(module, role, x, keys):
            order.append((name, role))
            return x

        return transform

    with reach_attention(model, log("outer")):
        with reach_attention(model, log("inner")):
            logits(model, tokens)
        pairs = [(name, role) for role in ("q", "k", "v", "probs") for name in ("outer", "inner")]
        assert order == pairs * 2
        order.clear()
        logits(model, tokens)
        assert {name for name, _ in order} == {"outer"}


def test_two_models_under_two_plans_do_not_mix():
    first, second = build("llama"), build("llama", seed=1)
    tokens = text()
    plans = [uniform_plan(model, "bfp4", roles=("probs",)) for model in (first, second)]
    with apply_plan(second, plans[1]):
        alone = logits(second, tokens)
    with apply_plan(first, plans[0]), apply_plan(second, plans[1]):
        assert torch.equal(logits(second, tokens), alone)
    with tap(first, ["model.layers.0.self_attn.q"], lambda _, x: x * 0):
        assert torch.equal(logits(second, tokens), logits(build("llama", seed=1), tokens))
