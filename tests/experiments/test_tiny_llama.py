"""The script that trains the shipped model: one command, the same model every time."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mpq.assets.prose import digest, documents

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "000_tiny_llama" / "train.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_tiny_llama", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def small(script):
    recipe = script.Recipe(
        vocabulary=64, hidden=64, intermediate=96, layers=2, heads=4, key_value_heads=2, window=32
    )
    torch.manual_seed(1)
    return recipe, LlamaForCausalLM(script.configuration(recipe)).eval()


def test_spread_channels_change_no_output_by_a_bit(script):
    recipe, model = small(script)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        before = model(tokens).logits
        script.spread_channels(model, recipe)
        assert torch.equal(model(tokens).logits, before)
    gains = model.model.layers[0].input_layernorm.weight
    assert gains.max() / gains.min() >= 8
    assert torch.equal(gains.log2(), gains.log2().round())


def test_spreading_and_rounding_to_bfloat16_commute(script, tmp_path):
    recipe, model = small(script)
    script.save(model, recipe, tmp_path)
    shipped = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.arange(24)[None]
    rounded = LlamaForCausalLM(model.config).eval()
    rounded.load_state_dict(
        {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    )
    with torch.no_grad():
        assert torch.equal(shipped(tokens).logits, rounded(tokens).logits)


def test_an_epoch_shows_every_window_once_and_starts_with_bos(script):
    recipe = script.Recipe(window=5, batch=2)
    stream = torch.arange(10, 10 + 4 * 6 + 3)
    batches = script.batches(stream, recipe)
    epoch = torch.cat([next(batches) for _ in range(3)])
    assert (epoch[:, 0] == 0).all()
    body = epoch[:, 1:].flatten().tolist()
    assert len(set(body)) == len(body) == 24


def test_the_rate_warms_up_and_decays(script):
    recipe = script.Recipe(warmup=4, steps=20)
    rates = [script.rate(step, recipe) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(0.02)


@pytest.mark.slow
def test_the_command_trains_and_records_what_it_did(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--steps", "2"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["best"]["step"] == 2
    assert facts["heldout_loss"] == pytest.approx(facts["best"]["validation_loss"], rel=0.01)
    assert facts["text_sha256"]["validation"] == digest(documents("validation"))
    shipped = ROOT / "mpq" / "assets" / "tiny_llama"
    known = json.loads((shipped / "training.json").read_text())
    if facts["text_sha256"]["train"] == known["text_sha256"]["train"]:
        made = (tmp_path / "tokenizer.json").read_text()
        assert made == (shipped / "tokenizer.json").read_text()
