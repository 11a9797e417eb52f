"""How a Triton kernel finds, reads and writes the values of its tile."""

import triton
import triton.language as tl

from mpq.kernels.triton_rounding import round_bfloat16


@triton.jit
def place(count, extents, tile: tl.constexpr):
    """Outer, inner, row and column of each value of a tile, which exist, and its blocks' rows."""
    block = tl.program_id(0) * tile.blocks + tl.arange(0, tile.blocks)
    if tile.along_columns:
        line, across = block // extents[0], block % extents[0]
    else:
        lines = count // extents[0]
        line, across = block % lines, block // lines
    plane = line // extents[1]
    value = tl.arange(0, tile.values)
    row = (line % extents[1])[:, None] * tile.rows + (value // tile.columns)[None, :]
    column = across[:, None] * tile.columns + (value % tile.columns)[None, :]
    is_block = (block < count)[:, None]
    is_value = (value < tile.rows * tile.columns)[None, :]
    is_there = is_block & is_value & (row < extents[3]) & (column < extents[4])
    outer, inner = (plane // extents[2])[:, None], (plane % extents[2])[:, None]
    return outer, inner, row, column, is_there, line[:, None], across[:, None], is_block


@triton.jit
def offsets(outer, inner, row, column, strides):
    """How far from a tensor's first value its values lie."""
    start = outer.to(tl.int64) * strides[0] + inner.to(tl.int64) * strides[1]
    return start + row.to(tl.int64) * strides[2] + column.to(tl.int64) * strides[3]


@triton.jit
def number(line, across, extents, shared: tl.constexpr):
    """Which of the stored scales is that of each block of a tile, or of its row, or of all."""
    if shared == "block":
        return line.to(tl.int64) * extents[0] + across
    elif shared == "row":
        return line.to(tl.int64)
    else:
        return line.to(tl.int64) * 0


@triton.jit
def read(x, at, is_there, dtype: tl.constexpr):
    """Values as float32; 0 where none is. bfloat16 comes as int16, the upper half of float32."""
    raw = tl.load(x + at, mask=is_there, other=0)
    if dtype == "bf16":
        return (raw.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return raw.to(tl.float32)


@triton.jit
def write(out, at, is_there, values, dtype: tl.constexpr):
    """Stores values, rounded to float32 and then to the dtype."""
    values = values.to(tl.float32)
    if dtype == "bf16":
        bits = round_bfloat16(values).to(tl.int32, bitcast=True)
        bits = tl.where(values == values, bits, 0x7FC00000)  # noqa: PLR0124 (NaN differs)
        tl.store(out + at, (bits >> 16).to(tl.int16), mask=is_there)
    elif dtype == "fp16":
        tl.store(out + at, values.to(tl.float16), mask=is_there)
    else:
        tl.store(out + at, values, mask=is_there)
