"""Which tensors the Triton kernels take, and how a kernel is launched on one.

Triton is imported by the first call, not with this module.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mpq.formats.block import TENSOR, WHOLE
from mpq.formats.format import Format
from mpq.formats.scale import SharedExponent
from mpq.kernels.triton_tiles import (
    DTYPE_NAMES,
    LARGEST_BLOCK,
    Grid,
    block_size,
    is_seen,
    is_strided,
)

MOST_BLOCKS = 2**31 - 2**16
"""Blocks, or places along an axis, numbered in 32 bits, a tile beyond the last included."""

LONGEST_STRIDED = 128
"""Values of a row that a program reads at once where they lie apart in memory."""


def covers(format: Format, x: Tensor, axis: int) -> bool:
    """Whether the kernels take a tensor; eager takes the others.

    Those are: float64, which is computed in float64 from end to end; tensors of more than
    `MOST_BLOCKS`, or longer than that; blocks of more values than a program holds, but for whole
    rows and tensors; and of these the rule `mse`, whose errors are summed in an order that pieces
    would not keep.
    """
    shape = tuple(x.shape)
    if x.dtype not in DTYPE_NAMES or max(shape, default=1) >= MOST_BLOCKS:
        return False
    if in_pieces(format, x, axis):
        return x.numel() < MOST_BLOCKS and not _takes_least_error(format)
    rows, columns = block_size(format.block or TENSOR, shape, axis)
    length = shape[axis] if shape else 1
    blocks = x.numel() // length * -(-length // columns)
    return rows * columns <= LARGEST_BLOCK and blocks < MOST_BLOCKS


def seen(x: Tensor, format: Format, at: int) -> Tensor:
    """The tensor as a kernel can read it: itself, or where four strides do not do, a copy."""
    rows = 1 if format.block is None else max(1, format.block.rows)
    return x if is_seen(x, at, rows) and is_seen(x, None) else x.contiguous()


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which kernels run where the tensor lies."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def grid_of(x: Tensor, out: Tensor, format: Format, at: int) -> Grid:
    """The tiles of a tensor and of a result of its shape, whole blocks or pieces of rows."""
    if format.block is None or format.block == TENSOR:
        return Grid.of(x, out, None)
    if in_pieces(format, x, at):
        return Grid.of(x, out, at)
    rows, columns = block_size(format.block, tuple(x.shape), at)
    return Grid.of(x, out, at, rows, columns)


def in_pieces(format: Format, x: Tensor, axis: int) -> bool:
    """Whether tiles hold pieces of rows, whose scale, if there is one, is read from memory."""
    if format.block is None or format.block == TENSOR:
        return True
    if format.block.columns != WHOLE or _takes_least_error(format):
        return False
    _, columns = block_size(format.block, tuple(x.shape), axis)
    return columns > (LONGEST_STRIDED if is_strided(x, axis) else LARGEST_BLOCK)


def _takes_least_error(format: Format) -> bool:
    return isinstance(format.scale, SharedExponent) and format.scale.rule == "mse"


def launch(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    grid: Grid,
    strides: tuple[tuple[int, ...], ...],
    facts: Any,
) -> None:
    """Runs a kernel on tensors: what it reads and writes, with the strides of what it walks."""
    kernel[(grid.programs,)](
        *(_bits(tensor) for tensor in tensors),
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
