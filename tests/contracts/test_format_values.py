"""Contract: on any tensor, in any layout and dtype, the result is the scalar oracle's."""

import pytest
import torch

from mpq.kernels.fake_quant import quantize
from tests.contracts.tensors import adversarial, assert_same, normal, to_numpy
from tests.contracts.zoo import ALL
from tests.oracles import scalar

TENSORS = adversarial()
LOW = [torch.float16, torch.bfloat16]
TWO_DIMENSIONAL = ["bfp6(exponent=5,block=4x16)", "bfp4(block=2x8)", "mxfp4(block=8x8)"]


def check(x: torch.Tensor, text: str, axis: int = -1, told: str = "") -> None:
    got = quantize(x, text, axis)
    assert got.dtype == x.dtype
    assert_same(got, scalar.quantize(to_numpy(x), text, axis), f"{text} {told} {x.dtype}")


@pytest.mark.parametrize("text", ALL)
def test_float32_is_the_oracles(text):
    for told, x in TENSORS.items():
        check(x, text, told=told)


@pytest.mark.parametrize("text", ALL)
def test_a_tensor_of_any_magnitude_is_the_oracles(text):
    # One by one: where the scales of a tensor leave float32, all of it is computed elsewhere.
    x = torch.exp2(normal(1, 11)) * torch.sign(normal(1, 11, seed=1))
    for power in range(-149, 127, 4):
        check((x.double() * 2.0**power).float(), text, told=f"2^{power}")


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("text", ALL)
def test_sixteen_bits_are_the_oracles(text, dtype):
    limit = torch.finfo(dtype).max
    for told, x in TENSORS.items():
        check(x[:2].clamp(-limit, limit).to(dtype), text, told=told)


@pytest.mark.parametrize("text", ALL)
def test_every_axis_of_every_rank_is_the_oracles(text):
    for shape in [(37,), (1,), (5, 19), (2, 3, 18), (2, 3, 2, 17)]:
        x = normal(*shape)
        for axis in range(-len(shape), len(shape)):
            check(x, text, axis, told=f"{shape} axis {axis}")


@pytest.mark.parametrize("text", ALL)
def test_layout_does_not_matter(text):
    x = normal(6, 40)
    want = quantize(x, text)
    assert_same(quantize(x.T, text, axis=0).T, want, text)
    assert_same(quantize(x.T.contiguous().T, text), want, text)
    padded = torch.full((6, 80), 7.0)
    padded[:, ::2] = x
    assert_same(quantize(padded[:, ::2], text), want, text)
    assert_same(quantize(x[:1].expand(6, 40), text), quantize(x[:1].repeat(6, 1), text), text)


@pytest.mark.parametrize("text", TWO_DIMENSIONAL)
def test_two_dimensional_blocks_are_the_oracles(text):
    for told, x in TENSORS.items():
        check(x, text, told=told)
    check(normal(11, 37) * 0.1, text, told="tails both ways")
    check(normal(2, 11, 37) * 0.1, text, told="a batch of matrices")
    check(normal(37, 11) * 0.1, text, axis=0, told="axis 0")


@pytest.mark.parametrize("text", ALL)
def test_the_input_is_left_alone(text):
    x = normal(4, 33)
    before = x.clone()
    quantize(x, text)
    assert_same(x, before, text)


@pytest.mark.parametrize("text", ALL)
def test_float64_stays_float64_and_agrees_with_float32(text):
    x = normal(4, 33)
    got = quantize(x.double(), text)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.float(), quantize(x, text), rtol=1e-6, atol=0)


def test_fp32_is_the_tensor_itself():
    for x in TENSORS.values():
        assert_same(quantize(x, "fp32"), x)


@pytest.mark.parametrize("text", ALL)
def test_the_gradient_is_the_identity(text):
    x = (normal(3, 20) * 100).requires_grad_()
    weights = normal(3, 20, seed=1)
    (quantize(x, text) * weights).sum().backward()
    assert_same(x.grad, weights, text)
