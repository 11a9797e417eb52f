"""The shipped model: small, whole, documented truly, and good enough that formats matter.

The margins hold on the prose of Python 3.11 to 3.13, which differs a little.
"""

import contextlib
import csv
import json
import platform
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import mpq
from mpq import quantize
from mpq.assets.prose import PARTS, digest, documents
from mpq.data.windows import load_splits
from mpq.measures import kl_divergence

HOME = Path(mpq.__file__).parent / "assets" / "tiny_llama"
FACTS = json.loads((HOME / "training.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(HOME, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    found = AutoModelForCausalLM.from_pretrained(HOME, local_files_only=True, dtype=torch.float32)
    return found.eval()


@pytest.fixture(scope="module")
def heldout(tokenizer):
    return load_splits(tokenizer=tokenizer, heldout_tokens=8192).heldout.tokens


def weights(model):
    """The quantisable weights: of every Linear but the tied head."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


@contextlib.contextmanager
def quantized(tensors, text):
    kept = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(quantize(tensor.detach(), text))
        yield
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)


@torch.no_grad()
def logits_of(model, tokens):
    return torch.cat([model(input_ids=part).logits for part in tokens.split(16)])


def loss_of(model, tokens):
    logits = logits_of(model, tokens)[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


# --- what ships ---------------------------------------------------------------------------------


def test_it_is_at_most_12_megabytes():
    assert sum(path.stat().st_size for path in HOME.iterdir()) <= 12e6


def test_it_is_a_llama_with_grouped_queries_whose_shapes_blocks_divide(model):
    config = model.config
    assert config.model_type == "llama"
    assert config.num_hidden_layers >= 6
    assert config.num_key_value_heads < config.num_attention_heads
    assert all(tensor.shape[1] % 128 == 0 for tensor in weights(model).values())
    assert sum(parameter.numel() for parameter in model.parameters()) == FACTS["parameters"]


def test_its_tokenizer_gives_every_text_back(tokenizer, model):
    text = 'Ünïcode, tabs\t"quotes"\n\n    and  spaces 🙂'
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == model.config.vocab_size
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        model.config.bos_token_id,
        model.config.eos_token_id,
    )


def test_its_records_are_true():
    with (HOME / "training.csv").open() as file:
        curve = [
            {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)
        ]
    best = min(curve, key=lambda row: row["validation_loss"])
    assert FACTS["best"] == pytest.approx(best)
    assert FACTS["cpu_minutes"] <= 60
    assert FACTS["heldout_loss"] == pytest.approx(best["validation_loss"], rel=0.005)
    readme = (HOME / "README.md").read_text()
    assert f"**{FACTS['heldout_loss']:.3f}**" in readme
    assert f"{FACTS['cpu_minutes']} minutes" in readme
    for row in curve:
        assert (
            f"| {row['step']:.0f} | {row['train_loss']:.4f} | {row['validation_loss']:.4f}"
            in readme
        )
    for part in PARTS:
        assert FACTS["text_sha256"][part] in readme


def test_its_text_is_this_interpreters_where_the_version_is_the_same():
    if platform.python_version() != FACTS["python"]:
        pytest.skip(f"trained on the prose of Python {FACTS['python']}")
    for part in ("validation", "calibration"):
        assert digest(documents(part)) == FACTS["text_sha256"][part]


# --- formats matter -----------------------------------------------------------------------------


def test_it_has_learnt_the_text(model, heldout):
    # ln 2048 = 7.62 nats is a guess; the unigram frequencies reach about 6.3.
    assert loss_of(model, heldout) == pytest.approx(FACTS["heldout_loss"], rel=0.08)


def test_bfp8_is_nearly_free_and_bfp3_is_not(model, heldout):
    reference = loss_of(model, heldout)
    with quantized(list(weights(model).values()), "bfp8"):
        assert loss_of(model, heldout) == pytest.approx(reference, rel=0.005)
    with quantized(list(weights(model).values()), "bfp3"):
        assert loss_of(model, heldout) > 1.05 * reference
    assert loss_of(model, heldout) == reference


def test_sites_differ_in_damage_by_ten_times_and_more(model, heldout):
    tokens = heldout[:8]
    reference = logits_of(model, tokens)
    damage = {}
    for name, tensor in weights(model).items():
        with quantized([tensor], "bfp3"):
            damage[name] = kl_divergence(logits_of(model, tokens), reference).mean().item()
    assert max(damage.values()) > 10 * min(damage.values()) > 0
