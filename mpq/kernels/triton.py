"""Fake quantisation on CUDA by Triton kernels.

Triton is imported by the first call, not with this module. With TRITON_INTERPRET=1 set before
that, the same kernels run in Triton's interpreter, on a CPU.
"""

import torch
from torch import Tensor

from mpq.formats.block import positive_axis
from mpq.formats.format import Format
from mpq.kernels.triton_given import given
from mpq.kernels.triton_launch import covers, grid_of, launch, on_device, seen

__all__ = ["covers", "fake_quantize"]


def fake_quantize(x: Tensor, format: Format, axis: int) -> Tensor:
    """The values of `x` in the format, bit for bit those of eager, in its shape and dtype.

    Args:
        x: A tensor that is not empty and that `covers` accepts, on a CUDA device (on any where
            Triton interprets).
        format: A format.
        axis: The axis along which blocks lie.
    """
    if format.is_identity:
        return x
    from mpq.kernels import triton_blocks

    at = positive_axis(tuple(x.shape), axis)
    x = seen(x, format, at)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with on_device(x):
        kind, facts, found = given(x, format, at)
        grid = grid_of(x, out, format, at)
        beside = () if kind == "alone" else (found,)
        kernel = getattr(triton_blocks, f"quantize_{kind}")
        launch(kernel, (x, out, *beside), grid, (grid.strides, grid.out_strides), facts)
    return out
