"""The one door to the kernels: quantize, encode, decode."""

from typing import Any

import torch
from torch import Tensor

from mpq.errors import FormatError
from mpq.formats.block import positive_axis
from mpq.formats.format import Format
from mpq.formats.zoo import parse_format
from mpq.kernels.choice import decode_blocks, encode_blocks, fake_quantize
from mpq.kernels.encoded import Encoded

__all__ = ["Encoded", "decode", "encode", "quantize"]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _StraightThrough(torch.autograd.Function):
    """Fake quantisation forwards, identity backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, format: Format, axis: int) -> Tensor:  # noqa: ARG004
        return fake_quantize(x, format, axis).view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        return gradients[0], None, None


def quantize(
    x: Tensor,
    format: Format | str,
    axis: int = -1,
    *,
    check_finite: bool = False,
    name: str | None = None,
) -> Tensor:
    """The values that `x` takes in the format, in the shape and dtype of `x`.

    Rounds to nearest, ties to the even code, saturates; a value that is not finite makes its
    block NaN. The gradient is the identity. Where the format keeps every value (`fp32`), `x`
    itself comes back.

    Args:
        x: A float tensor of any shape. float64 is computed in float64, all else in float32.
        format: A format or its text form, such as "bfp4".
        axis: The axis along which blocks lie: the one that the matmul reduces.
        check_finite: Whether a value that is not finite is an error (weights) instead.
        name: What to call the tensor in messages.

    Raises:
        FormatError: No such format or axis, not a float tensor, or a value that is not finite
            under `check_finite`.
    """
    format = parse_format(format) if isinstance(format, str) else format
    _require_float(x, name)
    positive_axis(tuple(x.shape), axis)
    if check_finite:
        _require_finite(x, format, name)
    if x.numel() == 0 or (format.is_identity and x.dtype != torch.float64):
        return x
    if x.requires_grad and torch.is_grad_enabled():
        quantized: Tensor = _StraightThrough.apply(x, format, axis)  # type: ignore[no-untyped-call]
        return quantized
    return fake_quantize(x, format, axis)


@torch.no_grad()
def encode(x: Tensor, format: Format | str, axis: int = -1, *, name: str | None = None) -> Encoded:
    """The codes and scales that stand for `x`, packed; `decode` gives `quantize(x)` bit for bit.

    Raises:
        FormatError: No such format or axis, not a float tensor, or a value that is not finite.
    """
    format = parse_format(format) if isinstance(format, str) else format
    _require_float(x, name)
    positive_axis(tuple(x.shape), axis)
    _require_finite(x, format, name)
    if x.numel() == 0:
        empty = torch.empty(0, dtype=torch.uint8, device=x.device)
        return Encoded(format=format, axis=axis, shape=tuple(x.shape), dtype=x.dtype, codes=empty)
    return encode_blocks(x, format, axis)


def decode(
    encoded: Encoded, dtype: torch.dtype | None = None, *, out: Tensor | None = None
) -> Tensor:
    """The values that were encoded.

    Args:
        encoded: What `encode` returned.
        dtype: A float dtype; None for that of the encoded tensor.
        out: Where they go, and what comes back: a contiguous tensor of the shape, dtype and
            device. None: a tensor of their own.

    Raises:
        FormatError: The dtype is none that values can take, or `out` is no such tensor.
    """
    dtype = dtype or encoded.dtype
    if out is not None:
        require_room(out, encoded, dtype)
    empty = torch.empty(encoded.shape if 0 in encoded.shape else 0, dtype=dtype)
    _require_float(empty, None)
    if 0 in encoded.shape:
        return empty.to(encoded.codes.device) if out is None else out
    return decode_blocks(encoded, dtype, out)


def require_room(out: Tensor, encoded: Encoded, dtype: torch.dtype) -> None:
    """Nothing comes back.

    Raises:
        FormatError: A tensor is none into which the encoded values are decoded in the dtype: not
            contiguous, or of another shape, dtype or device.
    """
    wanted = (encoded.shape, dtype, encoded.codes.device)
    given = (tuple(out.shape), out.dtype, out.device)
    if given != wanted or not out.is_contiguous():
        raise FormatError(
            f"values of shape {wanted[0]} in {dtype} on {wanted[2]} are decoded into a contiguous "
            f"tensor of just these, not shape {given[0]} in {given[1]} on {given[2]} with strides "
            f"{out.stride()}: give such a tensor, or no `out`"
        )


def _require_float(x: Tensor, name: str | None) -> None:
    if x.dtype not in DTYPES:
        raise FormatError(
            f"{name or 'a tensor'} must be float16, bfloat16, float32 or float64 to take a "
            f"format, not {x.dtype}: convert it first"
        )


def _require_finite(x: Tensor, format: Format, name: str | None) -> None:
    faults = ~x.isfinite()
    count = int(faults.sum())
    if count:
        first = tuple(int(i) for i in faults.nonzero()[0])
        raise FormatError(
            f"{name or 'a tensor'} of shape {tuple(x.shape)} must be finite to be stored in "
            f"{format}, but {count} of its values are not, the first at {first}: repair the "
            f"checkpoint, or leave this tensor out of the plan"
        )
