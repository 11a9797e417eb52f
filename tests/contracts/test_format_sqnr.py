"""Contract: the signal-to-noise that the design promises, beside what the ancestor measured."""

import itertools

import pytest
import torch

from mpq.kernels.fake_quant import quantize
from tests.contracts.tensors import normal


def sqnr_db(x: torch.Tensor, text: str) -> float:
    noise = (x.double() - quantize(x, text).double()).square().sum()
    return float(10 * torch.log10(x.double().square().sum() / noise))


@pytest.fixture(scope="module")
def unit() -> torch.Tensor:
    return normal(4096, 4096)


@pytest.mark.parametrize(
    ("text", "spread", "at_least"),
    [
        ("bmf8-e4m3", 0.02, 30.0),  # the ancestor: 0.0 dB
        ("bfp8", 0.02, 42.0),
        ("minifloat-e4m3", 1.0, 31.5),  # the ancestor: 31.05 dB
    ],
)
def test_sqnr_on_normal_weights(unit, text, spread, at_least):
    assert sqnr_db(unit * spread, text) >= at_least


@pytest.mark.parametrize("text", ["bfp6", "bmf8-e4m3", "bl8", "mxfp8-e4m3", "int8-g32", "nvfp4"])
def test_sqnr_does_not_depend_on_the_magnitude(text):
    x = normal(64, 512)
    want = sqnr_db(x, text)
    for power in (-60, -27, 0, 40):
        assert sqnr_db(x * 2.0**power, text) == pytest.approx(want, abs=1e-6)


def test_a_bit_more_buys_about_six_decibels():
    x = normal(256, 512)
    measured = [sqnr_db(x, f"bfp{width}") for width in range(3, 9)]
    steps = [wider - narrower for narrower, wider in itertools.pairwise(measured)]
    assert all(5 < step < 7 for step in steps), measured
