"""Other libraries' fake quantisation, in formats that they share with mpq; each loaded late."""

from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[Tensor], Tensor]


def microxcaling(elem_format: str) -> Call:
    """Microsoft's emulation of OCP MX, blocks of 32 along the last axis."""
    from mx.mx_ops import quantize_mx_op
    from mx.specs import finalize_mx_specs

    specs = finalize_mx_specs({"scale_bits": 8, "block_size": 32, "custom_cuda": False})
    return lambda x: quantize_mx_op(x, specs, elem_format=elem_format, axes=[-1])


def qtorch() -> Call:
    """QPyTorch's e4m3 float."""
    from qtorch.quant import float_quantize

    return lambda x: float_quantize(x, exp=4, man=3, rounding="nearest")


def torchao() -> Call:
    """Torchao's MX: to codes and back."""
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    return lambda x: MXTensor.to_mx(x, torch.float8_e4m3fn, 32).dequantize(x.dtype)


def gfloat() -> Call:
    """Gfloat's e4m3, on the values as a numpy array."""
    from gfloat import round_ndarray
    from gfloat.formats import format_info_ocp_e4m3

    return lambda x: torch.from_numpy(
        round_ndarray(format_info_ocp_e4m3, x.cpu().double().numpy(), sat=True)
    )


RIVALS: tuple[tuple[str, str, Callable[[], Call]], ...] = (
    ("microxcaling", "mxfp8-e4m3", lambda: microxcaling("fp8_e4m3")),
    ("microxcaling", "mxfp4", lambda: microxcaling("fp4_e2m1")),
    ("microxcaling", "mxint8", lambda: microxcaling("int8")),
    ("qtorch", "minifloat-e4m3", qtorch),
    ("torchao", "mxfp8-e4m3", torchao),
    ("gfloat", "fp8-e4m3", gfloat),
)
"""Library, format as mpq names it, and what loads the call."""
