"""`mpq.load`: a model, its tokenizer, and a plan that stays in force."""

import gc
import weakref

import pytest
import torch
from transformers import AttentionInterface

import mpq
from mpq import Plan, apply_plan, uniform_plan
from mpq.errors import CheckpointError, ModelError, PlanError
from mpq.modeling.checkpoint import model_of, open_checkpoint
from tests.data.tokenizers import byte_tokenizer
from tests.modeling.checkpoints import saved
from tests.modeling.families import build, logits, text


@pytest.fixture
def path(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    saved(build("llama"), tmp_path)
    return tmp_path


def test_a_checkpoint_is_loaded_with_its_tokenizer(path):
    loaded = mpq.load(path)
    model = build("llama")
    with apply_plan(model, uniform_plan(model, "int4-g16", roles=("weight",))):
        assert torch.equal(logits(loaded.model, text()), logits(model, text()))
    assert loaded.id == str(path)
    assert loaded.tokenizer.decode(loaded.tokenizer("to be")["input_ids"]) == "to be"
    assert loaded.model.config._attn_implementation == "sdpa"


def test_the_fingerprint_is_that_of_the_files(path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    byte_tokenizer().save_pretrained(other)
    saved(build("llama", seed=1), other)
    assert mpq.load(path).fingerprint == mpq.load(path, offload=True).fingerprint
    assert mpq.load(path).fingerprint != mpq.load(other).fingerprint


def test_a_checkpoint_without_a_tokenizer_says_so(path):
    for file in path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        mpq.load(path)


def test_a_device_that_does_not_exist_is_refused(path):
    with pytest.raises(ModelError, match="device must be auto, cpu, cuda or cuda:<n>; 'moon'"):
        mpq.load(path, device="moon")


def test_the_generation_config_is_the_checkpoints(path):
    config = build("llama").generation_config
    config.max_new_tokens = 3
    config.save_pretrained(path)
    loaded = mpq.load(path)
    with torch.no_grad():
        assert loaded.model.generate(text(1, 4)).shape == (1, 7)


ACTIVATIONS = {
    "llama": ("input", "q", "k", "v", "probs", "output"),
    "gpt2": ("input", "q", "k", "v", "probs"),
    "mixtral": ("input", "q", "k", "v"),
    "gemma3": ("input", "k", "v", "probs"),
    "falcon": ("input",),
}


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("family", ACTIVATIONS)
def test_activations_have_the_plans_formats(family, offload, tmp_path):
    model = build(family)
    roles = ("weight", *(r for r in ACTIVATIONS[family] if r != "output"))
    plan = uniform_plan(model, "bfp4", roles=roles)
    saved(model, tmp_path, plan)
    loaded = model_of(open_checkpoint(tmp_path), offload=offload)
    with apply_plan(model, plan):
        wanted = logits(model, text())
    weights_only = plan.replace({n: None for n in plan.formats if not n.endswith("weight")})
    with apply_plan(model, weights_only):
        assert not torch.equal(logits(model, text()), wanted)
    for _ in range(2):  # in force for as long as the model lives
        assert torch.equal(logits(loaded, text()), wanted)


def test_two_loaded_models_do_not_disturb_each_other(tmp_path):
    model = build("llama")
    plans = [uniform_plan(model, text_, roles=("weight", "q", "k")) for text_ in ("bfp4", "bfp6")]
    for plan, name in zip(plans, "ab", strict=True):
        saved(model, tmp_path / name, plan)
    loaded = [model_of(open_checkpoint(tmp_path / name)) for name in "ab"]
    for plan, one in zip(plans, loaded, strict=True):
        with apply_plan(model, plan):
            wanted = logits(model, text())
        assert torch.equal(logits(one, text()), wanted)


def test_a_loaded_model_takes_no_second_plan_over_one_in_force(tmp_path):
    model = build("llama")
    saved(model, tmp_path, uniform_plan(model, "bfp4", roles=("weight", "input")))
    loaded = model_of(open_checkpoint(tmp_path))
    plan = Plan.of({"model.layers.0.self_attn.q": "bfp4"})
    with pytest.raises(PlanError, match="a plan is already applied"), apply_plan(loaded, plan):
        pass


@pytest.mark.parametrize("offload", [False, True])
def test_a_model_that_is_let_go_is_freed_with_what_it_registered(offload, tmp_path):
    model = build("llama")
    saved(model, tmp_path, uniform_plan(model, "bfp4", roles=("weight", "input", "q", "probs")))
    gc.collect()  # models of earlier tests go now, with what they registered
    gc.collect()
    registered = len(AttentionInterface._global_mapping)
    loaded = model_of(open_checkpoint(tmp_path), offload=offload)
    logits(loaded, text())
    assert len(AttentionInterface._global_mapping) == registered + 1
    weight = weakref.ref(loaded.model.layers[0].mlp.up_proj.weight)
    del loaded
    gc.collect()
    gc.collect()  # what the first one finalised is freed by the second
    assert weight() is None
    assert len(AttentionInterface._global_mapping) == registered
