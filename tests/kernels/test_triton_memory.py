"""Tiles read and write every value once, in every dtype."""

import pytest
import torch

from mpq.kernels.triton_tiles import Grid
from tests.kernels.test_triton import DEVICE, pytestmark  # noqa: F401

triton = pytest.importorskip("triton", reason="the wheel is an extra: pip install 'mpq[triton]'")
import triton.language as tl  # noqa: E402

from mpq.kernels import triton_memory  # noqa: E402


@triton.jit
def copy_kernel(x, out, count, extents, strides, out_strides, tile: tl.constexpr):
    outer, inner, row, column, is_there, _, _, _ = triton_memory.place(count, extents, tile)
    at = triton_memory.offsets(outer, inner, row, column, strides)
    values = triton_memory.read(x, at, is_there, tile.dtype)
    at = triton_memory.offsets(outer, inner, row, column, out_strides)
    triton_memory.write(out, at, is_there, values, tile.dtype)


def copied(x: torch.Tensor, axis: int, rows: int, columns: int) -> torch.Tensor:
    x = x.to(DEVICE)
    out = torch.full(x.shape, -1.0, dtype=x.dtype, device=DEVICE)
    grid = Grid.of(x, out, axis, rows, columns)
    raw = [t.view(torch.int16) if t.dtype == torch.bfloat16 else t for t in (x, out)]
    copy_kernel[(grid.programs,)](
        *raw, grid.count, grid.extents, grid.strides, grid.out_strides, tile=grid.tile
    )
    return out.cpu()


@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (1, 7), (1, 0), (3, 5), (4, 16)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_value_is_copied(rows, columns, axis):
    x = torch.arange(3 * 7 * 19.0).reshape(3, 7, 19)
    assert torch.equal(copied(x, axis, rows, columns), x)
    assert torch.equal(copied(x.transpose(0, 2), axis, rows, columns), x.transpose(0, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_16_bits_keeps_its_bits(dtype):
    x = torch.arange(-(2**15), 2**15).short().view(dtype)
    got = copied(x, 0, 1, 0)
    assert torch.equal(got[~x.isnan()].view(torch.int16), x[~x.isnan()].view(torch.int16))
    assert got[x.isnan()].isnan().all()
