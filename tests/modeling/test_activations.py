"""Blocks of probabilities by key position, and inputs that several layers share."""

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.fake_quant import quantize
from mpq.modeling import activations
from mpq.modeling.activations import Repeats, quantize_probs
from mpq.modeling.attention import Keys


def probs(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 5, 40, generator=generator).softmax(-1)


@pytest.mark.parametrize("text", ["bfp4", "mxfp4", "int4a-g16", "nf4-g64", "int4", "nvfp4-token"])
@pytest.mark.parametrize("dropped", [1, 16, 17, 33])
def test_dropped_keys_of_no_weight_change_nothing(text, dropped):
    fmt, x = parse_format(text), probs()
    x[..., :dropped] = 0  # what a sliding window has masked
    whole = quantize_probs(x, fmt, Keys(0, None))
    assert torch.equal(whole, quantize(x, fmt))
    rest = quantize_probs(x[..., dropped:], fmt, Keys(dropped, None))
    assert torch.equal(rest, whole[..., dropped:])


def test_every_sequence_counts_from_its_own_first_token():
    fmt, x = parse_format("bfp4"), probs()
    padding = torch.ones(2, 40, dtype=torch.bool)
    padding[1, :7] = False
    x[1, ..., :7] = 0
    got = quantize_probs(x, fmt, Keys(0, padding))
    assert torch.equal(got[0], quantize(x[0], fmt))
    assert torch.equal(got[1, ..., 7:], quantize(x[1, ..., 7:], fmt))
    assert not torch.equal(got[1], quantize(x[1], fmt))  # else the test could not fail


def test_gradients_pass_as_through_the_identity():
    x = probs().requires_grad_()
    quantize_probs(x, parse_format("bfp3"), Keys(5, None)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_layers_of_a_group_share_one_answer(mode, monkeypatch):
    calls = []
    monkeypatch.setattr(activations, "quantize", lambda x, f: calls.append(f) or quantize(x, f))
    repeats, fmt, other = Repeats(), parse_format("bfp4"), parse_format("bfp3")
    with mode():
        x = torch.randn(4, 32)
        first = repeats.quantize(x, fmt, "qkv")
        assert repeats.quantize(x, fmt, "qkv") is first
        assert len(calls) == 1
        assert torch.equal(repeats.quantize(x, other, "qkv"), quantize(x, other))
        repeats.quantize(x, other, "gate_up")
        assert len(calls) == 3
        assert torch.equal(repeats.quantize(x.clone(), other, "gate_up"), quantize(x, other))
        assert len(calls) == 4


def test_a_tensor_that_changed_in_place_is_quantised_anew():
    repeats, fmt, x = Repeats(), parse_format("bfp4"), torch.randn(4, 32)
    repeats.quantize(x, fmt, "qkv")
    x.mul_(3)
    assert torch.equal(repeats.quantize(x, fmt, "qkv"), quantize(x, fmt))
