"""Models by name, and those that are refused."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from mpq.errors import ModelError
from mpq.modeling import loading
from mpq.modeling.loading import fingerprint, load_model, refuse_quantized, stored_dtype
from tests.data.tokenizers import byte_tokenizer
from tests.modeling.families import build, logits, text


@pytest.fixture
def directory(tmp_path):
    """A saved Llama with a tokenizer."""
    build("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_directory_is_loaded_as_it_was_saved(directory):
    loaded = load_model(str(directory))
    assert torch.equal(logits(loaded.model, text()), logits(build("llama"), text()))
    assert loaded.fingerprint == fingerprint(build("llama"))
    assert loaded.id == str(directory)
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer.decode(loaded.tokenizer("to be")["input_ids"]) == "to be"


def test_the_dtype_is_the_one_asked_for(directory):
    assert load_model(str(directory), dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_shipped_model_is_found_by_its_name(directory, monkeypatch):
    monkeypatch.setitem(loading.SHIPPED_MODELS, "mpq/other", directory)
    assert load_model("mpq/other").fingerprint == fingerprint(build("llama"))


def test_the_shipped_model_lies_inside_the_package():
    path = loading.SHIPPED_MODELS["mpq/tiny-llama"]
    assert path.parts[-3:] == ("mpq", "assets", "tiny_llama")


def test_a_classifier_needs_a_head_of_its_own(directory, tmp_path):
    with pytest.raises(ModelError, match=r"has no weights for score\.weight, .* at random"):
        load_model(str(directory), task="classification")
    config = LlamaConfig.from_pretrained(directory, num_labels=3)
    LlamaForSequenceClassification(config).save_pretrained(directory)
    loaded = load_model(str(directory), task="classification")
    assert loaded.model.config.num_labels == 3


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"task": "translation"}, "task must be one of causal-lm, classification; 'translation'"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16; 'int8'"),
        ({"device": "moon"}, "device must be auto, cpu, cuda or cuda:<n>; 'moon'"),
    ],
)
def test_settings_that_do_not_exist_are_named(directory, keywords, match):
    with pytest.raises(ModelError, match=match):
        load_model(str(directory), **keywords)


def test_a_device_that_is_not_there_is_refused(directory, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees no cuda; use auto or cpu"):
        load_model(str(directory), device="cuda")
    assert load_model(str(directory), device="auto").model.device.type == "cpu"


def test_an_id_without_a_model_says_what_to_give(tmp_path):
    with pytest.raises(ModelError, match=r"no model can be loaded from .* mpq/tiny-llama, which"):
        load_model(str(tmp_path / "nothing"))


def test_weights_that_were_cut_off_are_an_error_of_ours(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"no model can be loaded from"):
        load_model(str(directory))


def test_a_model_that_is_already_quantised_is_refused_by_name(directory):
    edit_config(directory, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=rf"'{directory}' is already quantised \(gptq\)"):
        load_model(str(directory))


def test_a_compressed_tensors_checkpoint_is_refused_too(directory):
    scheme = {"weights": {"num_bits": 4, "type": "int", "symmetric": True}, "targets": ["Linear"]}
    edit_config(
        directory,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": scheme},
        },
    )
    with pytest.raises(ModelError, match=r"is already quantised \(compressed-tensors\)"):
        load_model(str(directory))


def test_a_quantised_part_is_found_in_a_sub_config():
    class Part:
        quantization_config = type("Config", (), {"quant_method": "awq"})()

    class Whole:
        sub_configs = {"text_config": Part}  # noqa: RUF012
        text_config = Part()

    with pytest.raises(ModelError, match=r"'x' is already quantised \(awq\)"):
        refuse_quantized(Whole(), "x")


def test_a_fingerprint_tells_one_bit_one_dtype_and_one_class_apart():
    model = build("llama")
    before = fingerprint(model)
    assert fingerprint(build("llama")) == before
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    changed = fingerprint(model)
    assert changed != before
    assert fingerprint(model.to(torch.bfloat16)) not in {before, changed}
    assert fingerprint(build("mistral")) != before


def test_the_dtype_of_a_models_files(tmp_path):
    assert stored_dtype("mpq/tiny-llama") == "bfloat16"
    build("llama").save_pretrained(tmp_path)
    assert stored_dtype(str(tmp_path)) == "float32"
    with pytest.raises(ModelError, match="no model has the id"):
        stored_dtype(str(tmp_path / "nowhere"))
