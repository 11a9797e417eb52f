"""Fake quantisation on CUDA: which tensors the Triton kernels take, and how they are launched.

Triton is imported by the first call, not with this module. With TRITON_INTERPRET=1 set before
that, the same kernels run in Triton's interpreter, on a CPU.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from mpq.formats.block import TENSOR, WHOLE, positive_axis
from mpq.formats.element import ExponentElement, TableElement
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale
from mpq.kernels.scaling import calibrated_unit, scale_above
from mpq.kernels.triton_scales import (
    Peaks,
    Source,
    alone_facts,
    float_scale_facts,
    shared_power_facts,
)
from mpq.kernels.triton_tiles import (
    DTYPE_NAMES,
    LARGEST_BLOCK,
    Grid,
    block_size,
    is_seen,
    is_strided,
)

MOST_BLOCKS = 2**31 - 2**16
"""Blocks that are numbered in 32 bits, a tile beyond the last included."""

LONGEST_STRIDED = 128
"""Values of a row that a program reads at once where they lie apart in memory."""


def covers(format: Format, x: Tensor, axis: int) -> bool:
    """Whether the kernels take a tensor; eager takes the others.

    Those are: float64, which is computed in float64 from end to end; tensors of more than
    `MOST_BLOCKS`; blocks of more values than a program holds, but for whole rows and tensors; and
    of these the rule `mse`, whose errors are summed in an order that pieces would not keep.
    """
    if x.dtype not in DTYPE_NAMES:
        return False
    if _in_pieces(format, x, axis):
        return x.numel() < MOST_BLOCKS and not _takes_least_error(format)
    rows, columns = block_size(format.block or TENSOR, tuple(x.shape), axis)
    return rows * columns <= LARGEST_BLOCK and x.numel() // columns < MOST_BLOCKS


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
    at = positive_axis(tuple(x.shape), axis)
    rows = 1 if format.block is None else max(1, format.block.rows)
    if not (is_seen(x, at, rows) and is_seen(x, None)):
        x = x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        match format.scale:
            case SharedExponent() if not isinstance(format.element, TableElement):
                _quantize_powers(x, out, format, format.element, format.scale, at)
            case FloatScale() | NestedScale():
                _quantize_floats(x, out, format, format.scale, at)
            case StaticScale() | None:
                facts = alone_facts(format.element, format.scale, x.dtype)
                _launch("quantize_alone", x, (out,), _grid(x, out, format, at), facts)
    return out


def _quantize_powers(
    x: Tensor,
    out: Tensor,
    format: Format,
    element: ExponentElement,
    scale: SharedExponent,
    at: int,
) -> None:
    given, per_row = out, None
    if _in_pieces(format, x, at):
        per_row = int(format.block != TENSOR)
        given = _peaks(x, at if per_row else None, Peaks())[0]
    facts = shared_power_facts(element, scale, x.dtype, per_row)
    _launch("quantize_powers", x, (out, given), _grid(x, out, format, at), facts)


def _quantize_floats(
    x: Tensor, out: Tensor, format: Format, scale: FloatScale | NestedScale, at: int
) -> None:
    source: Source = "block"
    given, per_row = out, int(format.block != TENSOR)
    if isinstance(scale, NestedScale):
        source, per_row = "nested", int(scale.per_row)
        given = _scales_above(x, scale, at)
    elif scale.absmax is not None:
        source = "unit"
        given = calibrated_unit(format.element, scale, torch.empty(0, device=x.device))
    elif _in_pieces(format, x, at):
        source = "row"
        found = _peaks(x, at if per_row else None, Peaks(extremes=scale.zero_point))
        given = torch.stack(found, dim=1)
    facts = float_scale_facts(format.element, scale, x.dtype, source, per_row)
    has_zero_point = isinstance(scale, FloatScale) and scale.zero_point
    kernel = "quantize_asymmetric" if has_zero_point else "quantize_floats"
    _launch(kernel, x, (out, given), _grid(x, out, format, at), facts)


def _scales_above(x: Tensor, scale: NestedScale, at: int) -> Tensor:
    if scale.absmax is not None:
        return scale_above(torch.zeros(1, device=x.device), scale)
    peaks = _peaks(x, at if scale.per_row else None, Peaks(finite=True))[0]
    return scale_above(peaks.view(torch.float32), scale)


def _peaks(x: Tensor, at: int | None, facts: Peaks) -> list[Tensor]:
    """The bits of the peak of each row, or of all; with `extremes`, of the ends of its range."""
    grid = Grid.of(x, x, at)
    kinds = 3 if facts.extremes else 1
    found = torch.empty(kinds, grid.rows_in_all, grid.extents[0], dtype=torch.int32).to(x.device)
    _launch("find_peaks", x, (found,), grid, facts)
    peaks = found if at is not None else found.flatten(1)[:, None]
    if not facts.extremes:
        return [peaks[0].amax(1)]
    low, high = peaks[1].view(torch.float32).amin(1), peaks[2].view(torch.float32).amax(1)
    return [peaks[0].amax(1), low.view(torch.int32), high.view(torch.int32)]


def _in_pieces(format: Format, x: Tensor, axis: int) -> bool:
    """Whether tiles hold pieces of rows, whose scale, if there is one, is read from memory."""
    if format.block is None or format.block == TENSOR:
        return True
    if format.block.columns != WHOLE or _takes_least_error(format):
        return False
    _, columns = block_size(format.block, tuple(x.shape), axis)
    return columns > (LONGEST_STRIDED if is_strided(x, axis) else LARGEST_BLOCK)


def _takes_least_error(format: Format) -> bool:
    return isinstance(format.scale, SharedExponent) and format.scale.rule == "mse"


def _grid(x: Tensor, out: Tensor, format: Format, at: int) -> Grid:
    if format.block is None or format.block == TENSOR:
        return Grid.of(x, out, None)
    if _in_pieces(format, x, at):
        return Grid.of(x, out, at)
    rows, columns = block_size(format.block, tuple(x.shape), at)
    return Grid.of(x, out, at, rows, columns)


def _launch(kernel: str, x: Tensor, others: tuple[Tensor, ...], grid: Grid, facts: Any) -> None:
    """Runs a kernel on the tensor and those that it writes or reads beside it."""
    from mpq.kernels import triton_blocks

    strides = (grid.strides,) if kernel == "find_peaks" else (grid.strides, grid.out_strides)
    getattr(triton_blocks, kernel)[(grid.programs,)](
        *(_bits(tensor) for tensor in (x, *others)),
        grid.count,
        grid.extents,
        *strides,
        facts=facts,
        tile=grid.tile,
        num_warps=grid.warps,
        enable_fp_fusion=False,
    )


def _bits(x: Tensor) -> Tensor:
    """bfloat16 as int16: the interpreter would truncate where hardware rounds."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x
