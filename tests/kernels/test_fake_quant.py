"""The door: what quantize, encode and decode take, refuse and promise. Values: tests/contracts."""

import pytest
import torch

from mpq.errors import FormatError
from mpq.formats.zoo import examples, parse_format
from mpq.kernels.fake_quant import Encoded, decode, encode, quantize

NAN, INF = float("nan"), float("inf")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("bfp4", [1.0, 0.3, -0.12, 0.0], [1.0, 0.25, -0.0, 0.0]),  # step 2^(0 + 2 - 4)
        ("bfp4", [1.99, 0.125, 0.375], [1.75, 0.0, 0.5]),  # saturates; ties to even
        ("bfp4(scale_rule=ceil)", [1.99, 0.125, 0.3], [2.0, 0.0, 0.5]),
        ("bfp2", [1.0, 0.5, -0.51], [1.0, 0.0, -1.0]),
        ("int4-sf32", [7.0, 3.5, -2.5, -0.2], [7.0, 4.0, -2.0, 0.0]),
        ("int4f-sf32", [8.0, 3.5, -2.5, -0.2, -7.9], [8.0, 4.0, -2.0, 0.0, -7.0]),
        ("int4f-sf32", [-8.0, 3.5, -0.0, 7.9], [-8.0, 4.0, 0.0, 7.0]),
        ("int2f-sf32", [0.5, -1.0, 1.0, 0.25], [0.5, -1.0, 0.5, 0.0]),  # ties to even codes
        ("fixed4.1", [10.0, -10.0, 0.25, 0.75], [3.5, -4.0, 0.0, 1.0]),
        ("fixed8.-2", [9.0, 10.0, 14.0], [8.0, 8.0, 16.0]),
        ("log4", [1.45, 1.5, 3.0, 0.0, 0.1], [1.0, 2.0, 2.0, 0.0, 0.0]),
        ("log4(zero=false)", [0.0, -0.0, 100.0], [0.125, -0.125, 16.0]),
        ("bl4", [1.5, 1.6, -0.0], [1.0, 2.0, -0.0]),
        ("minifloat-e4m3", [1.99, 500.0, -0.0], [2.0, 480.0, -0.0]),
        ("fp8-e4m3", [1.99, 500.0, -0.0], [2.0, 448.0, -0.0]),
        ("dmf-e4m3", [1.0, 0.5, 4.0, 300.0], [1.0, 0.5, 4.0, 224.0]),
        ("mxfp4", [6.0, 5.0, 3.5, 0.25], [6.0, 4.0, 4.0, 0.0]),
        ("bmf4-e2m1", [6.0, 5.0, 3.5, 0.25], [6.0, 4.0, 4.0, 0.0]),
        ("int2a-sf32", [0.0, 3.0, 1.5, 0.5], [0.0, 3.0, 2.0, 0.0]),
        ("bf16", [1.0 + 2**-9, 3.4e38], [1.0, 3.3895313892515355e38]),
    ],
)
def test_worked_examples(text, values, expected):
    got = quantize(torch.tensor(values), text)
    assert got.tolist() == expected
    assert torch.signbit(got).tolist() == torch.signbit(torch.tensor(expected)).tolist()


def test_text_and_format_are_the_same():
    x = normal(3, 40)
    assert torch.equal(quantize(x, "bfp4"), quantize(x, parse_format("bfp4")))


@pytest.mark.parametrize("text", examples())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_decoding_gives_what_quantize_gives(text, dtype):
    for scale in (0.0, 1e-40, 1.0, 3e38):
        limit = torch.finfo(dtype).max
        x = (normal(5, 3, 37).double() * scale).clamp(-limit, limit).to(dtype)
        for axis in (-1, 1):
            encoded = encode(x, text, axis)
            decoded, direct = decode(encoded), quantize(x, text, axis)
            assert torch.equal(decoded, direct)
            assert torch.equal(torch.signbit(decoded), torch.signbit(direct))
            assert encoded.num_bits == parse_format(text).bits((5, 3, 37), axis)
            assert direct.isfinite().all()


@pytest.mark.parametrize("text", ["bfp4", "int4-g16", "int4a-g16", "nvfp4", "fixed8.4", "fp32"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 16)])
def test_empty_tensors_come_back_empty(text, shape):
    x = torch.empty(shape, dtype=torch.bfloat16)
    assert quantize(x, text).shape == decode(encode(x, text)).shape == shape
    assert decode(encode(x, text)).dtype == torch.bfloat16
    assert encode(x, text).num_bits == 0


@pytest.mark.parametrize("text", ["bfp4", "int4", "nvfp4", "minifloat-e4m3", "log8"])
def test_a_tensor_without_axes_is_a_block_of_one(text):
    x = torch.tensor(0.3)
    assert quantize(x, text).shape == ()
    assert torch.equal(quantize(x, text), quantize(x.reshape(1), text)[0])
    assert torch.equal(decode(encode(x, text)), quantize(x, text))


def test_decode_to_another_dtype_saturates():
    encoded = encode(torch.tensor([1e30, -1e30, 1.0]), "bf16")
    largest = 65280.0  # of bf16, in what float16 holds
    assert decode(encoded, torch.float16).tolist() == [largest, -largest, 1.0]
    wide = encode(torch.tensor([1e6, -1e6, 3e4]), "bfp4")
    assert decode(wide, torch.float16).tolist() == [0.0, -0.0, 0.0]
    assert decode(wide, torch.float64).tolist() == [917504.0, -917504.0, 0.0]


@pytest.mark.parametrize("text", [*examples(), "bl4(zero=false)", "fp8-e4m3-tensor"])
@pytest.mark.parametrize("fault", [NAN, INF, -INF])
def test_a_fault_poisons_its_own_block_only(text, fault):
    named = parse_format(text)
    x = normal(8, 512)
    hurt = x.clone()
    hurt[3, 70] = fault
    got, clean = quantize(hurt, text), quantize(x, text)
    poisoned = ~got.isfinite()
    if named.is_identity:
        assert int(poisoned.sum()) == 1
        return
    assert got[3, 70].isnan()
    if text.startswith("nvfp4"):
        clean = got  # the tensor's scale no longer covers the poisoned value
    assert torch.equal(got[~poisoned], clean[~poisoned])
    block = named.block
    if block is None or text in ("int8-tensor(absmax=3.5)", "int8f-tensor(absmax=3.5)"):
        assert int(poisoned.sum()) == 1
    elif block.rows == 0:
        assert poisoned.all()
    else:
        assert int(poisoned.sum()) == (block.columns or 512) * block.rows


def test_a_fault_in_half_precision():
    x = torch.tensor([[1.0, INF] + [1.0] * 30], dtype=torch.float16)
    assert quantize(x, "bfp4").isnan()[0, :16].all()
    assert quantize(x, "bfp4")[0, 16:].tolist() == [1.0] * 16


@pytest.mark.parametrize("fault", [NAN, INF])
def test_a_weight_with_faults_is_named(fault):
    x = normal(4, 16)
    x[2, 5] = fault
    with pytest.raises(FormatError, match=r"layers\.0\.weight .* 1 of .* first at \(2, 5\)"):
        quantize(x, "bfp4", check_finite=True, name="layers.0.weight")
    with pytest.raises(FormatError, match=r"must be finite to be stored in bfp4"):
        encode(x, "bfp4")


def test_what_is_refused():
    with pytest.raises(FormatError, match=r"from -2 to 1 for a tensor of shape \(2, 3\), not 2"):
        quantize(torch.ones(2, 3), "bfp4", axis=2)
    with pytest.raises(FormatError, match="not 1: give the axis"):
        encode(torch.ones(3), "fp32", axis=1)
    with pytest.raises(FormatError, match=r"k_proj must be float16, .* not torch.int64"):
        quantize(torch.ones(2, 3, dtype=torch.long), "bfp4", name="k_proj")
    with pytest.raises(FormatError, match="nearest are bfp4"):
        quantize(torch.ones(2, 3), "bpf4")
    with pytest.raises(FormatError, match=r"not torch.int8: convert it first"):
        decode(encode(torch.ones(2), "bfp4"), torch.int8)


def test_the_gradient_is_the_identity():
    x = (normal(3, 20) * 100).requires_grad_()
    out = quantize(x, "fixed4.2")
    assert out.requires_grad
    (out * 3).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3.0))
    with torch.no_grad():
        assert not quantize(x, "bfp4").requires_grad


def test_an_encoded_tensor_is_as_small_as_it_says():
    encoded = encode(normal(5, 37), "int4a-g16")
    assert isinstance(encoded, Encoded)
    assert encoded.codes.numel() == -(-5 * 37 * 4 // 8)
    assert encoded.scales.dtype == torch.bfloat16
    assert encoded.scales.numel() == encoded.num_blocks == 15
    assert encoded.zero_points.numel() == -(-15 * 4 // 8)
    assert encode(normal(5, 37), "nvfp4-token").tensor_scales.numel() == 5
    assert encode(normal(5, 37), "int8-tensor(absmax=2.0)").scales is None


@pytest.mark.parametrize(
    ("text", "deviation", "decibels"),
    [("bmf8-e4m3", 0.02, 30.0), ("bfp8", 0.02, 42.0), ("minifloat-e4m3", 1.0, 31.45)],
)
def test_signal_to_noise_of_normal_values(text, deviation, decibels):
    x = normal(256, 4096) * deviation
    noise = (quantize(x, text) - x).double().square().sum()
    assert 10 * torch.log10(x.double().square().sum() / noise) > decibels


@pytest.mark.parametrize("path", ["", "eager"])
@pytest.mark.parametrize("text", ["bfp4", "int4a-g16", "log8"])
def test_values_are_decoded_into_memory_that_is_given(text, path, monkeypatch):
    encoded = encode(torch.randn(3, 40), text)
    monkeypatch.setenv("MPQ_KERNEL", path)
    out = torch.empty(3, 40)
    assert decode(encoded, out=out) is out
    assert torch.equal(out, decode(encoded))
    empty = encode(torch.empty(0, 4), text)
    nothing = torch.empty(0, 4)
    assert decode(empty, out=nothing) is nothing


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(40, 3),
        torch.empty(3, 40, dtype=torch.bfloat16),
        torch.empty(3, 40, device="meta"),
        torch.empty(40, 3).T,
    ],
)
def test_memory_that_does_not_fit_the_values_is_refused(out):
    encoded = encode(torch.randn(3, 40), "bfp4")
    told = r"values of shape \(3, 40\) in torch.float32 on cpu are decoded into a contiguous"
    with pytest.raises(FormatError, match=told):
        decode(encoded, out=out)
