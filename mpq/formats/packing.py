"""Codes of any width packed into bytes without padding between them, and back.

Value i takes the bits i*width to (i+1)*width - 1, counted from the lowest bit of byte 0; only the
last byte is padded, with zeros.
"""

import numpy as np
from numpy.typing import NDArray

from mpq.errors import FormatError

MAX_CODE_WIDTH = 32


def pack(codes: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """The bytes that hold the codes, `width` bits each.

    Args:
        codes: Unsigned codes below 2^width, of any shape; taken in row-major order.
        width: Bits of a code, 1 to 32.

    Raises:
        FormatError: The width is impossible or a code does not fit in it.
    """
    _require_width(width)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= 2**width):
        raise FormatError(
            f"codes of {width} bits lie from 0 to {2**width - 1}, but these reach from "
            f"{int(flat.min())} to {int(flat.max())}: give a larger width"
        )
    if width <= 8:
        return _pack_by_eights(flat, width)
    as_bytes = flat.astype("<u4").view(np.uint8).reshape(-1, 4)
    bits = np.unpackbits(as_bytes, axis=1, bitorder="little")[:, :width]
    return np.packbits(bits.reshape(-1), bitorder="little")


def unpack(packed: NDArray[np.uint8], width: int, count: int) -> NDArray[np.uint32]:
    """The `count` codes that `pack` put into these bytes, in one dimension.

    Raises:
        FormatError: The width is impossible, or there are not just the bytes that it takes.
    """
    require_bytes(packed.size, width, count)
    if width <= 8:
        return _unpack_by_eights(packed, width, count)
    bits = np.unpackbits(packed, count=width * count, bitorder="little").reshape(count, width)
    wide = np.zeros((count, MAX_CODE_WIDTH), dtype=np.uint8)
    wide[:, :width] = bits
    return np.packbits(wide, axis=1, bitorder="little").view("<u4").reshape(-1).astype(np.uint32)


def _pack_by_eights(flat: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """The bytes of codes of at most 8 bits: eight codes fill `width` bytes of one 64-bit word."""
    rows = np.zeros((-(-flat.size // 8), 8), dtype="<u8")
    rows.reshape(-1)[: flat.size] = flat
    words = np.bitwise_or.reduce(rows << _shifts(width), axis=1)
    every = words.view(np.uint8).reshape(-1, 8)[:, :width]
    return np.ascontiguousarray(every).reshape(-1)[: packed_bytes(width, flat.size)]


def _unpack_by_eights(packed: NDArray[np.uint8], width: int, count: int) -> NDArray[np.uint32]:
    rows = np.zeros((-(-count // 8), width), dtype=np.uint8)
    rows.reshape(-1)[: packed.size] = packed
    words = np.zeros((len(rows), 8), dtype=np.uint8)
    words[:, :width] = rows
    codes = words.view("<u8") >> _shifts(width) & np.uint64(2**width - 1)
    return codes.astype(np.uint32).reshape(-1)[:count]


def _shifts(width: int) -> NDArray[np.uint64]:
    """How far each of eight codes lies from the lowest bit of their word."""
    return np.arange(0, 8 * width, width, dtype="<u8")


def packed_bytes(width: int, count: int) -> int:
    """The number of bytes that `count` codes of `width` bits take."""
    return (width * count + 7) // 8


def require_bytes(size: int, width: int, count: int) -> None:
    """Nothing, where `size` bytes are just those that `count` codes take.

    Raises:
        FormatError: They are not, or the width is impossible.
    """
    _require_width(width)
    if size != packed_bytes(width, count):
        raise FormatError(
            f"{count} codes of {width} bits take {packed_bytes(width, count)} bytes, not "
            f"{size}: give the width and the count with which they were packed"
        )


def _require_width(width: int) -> None:
    if not 1 <= width <= MAX_CODE_WIDTH:
        raise FormatError(f"a packed code has 1 to {MAX_CODE_WIDTH} bits, not {width}")
