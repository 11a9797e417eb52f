"""Packed codes: there and back, in as few bytes as there can be."""

import numpy as np
import pytest

from mpq.errors import FormatError
from mpq.formats.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("width", range(1, 33))
@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_there_and_back(width, count):
    codes = np.random.default_rng(0).integers(0, 2**width, count, dtype=np.int64)
    packed = pack(codes, width)
    assert packed.dtype == np.uint8
    assert packed.size == packed_bytes(width, count) == -(-width * count // 8)
    assert (unpack(packed, width, count) == codes).all()


def test_the_first_code_lies_in_the_lowest_bits():
    assert pack(np.array([1, 2, 3, 0]), 2).tolist() == [0b00_11_10_01]
    assert pack(np.array([0b101, 0b011, 0b110]), 3).tolist() == [0b10_011_101, 0b1]


def test_codes_that_do_not_fit():
    with pytest.raises(FormatError, match="lie from 0 to 15, but these reach from 3 to 16"):
        pack(np.array([3, 16]), 4)
    with pytest.raises(FormatError, match="reach from -1 to 3"):
        pack(np.array([3, -1]), 4)


def test_other_bytes_than_the_codes_take():
    with pytest.raises(FormatError, match="3 codes of 4 bits take 2 bytes, not 1"):
        unpack(np.zeros(1, dtype=np.uint8), 4, 3)
    with pytest.raises(FormatError, match="1 to 32 bits, not 33"):
        unpack(np.zeros(1, dtype=np.uint8), 33, 1)
    with pytest.raises(FormatError, match="1 to 32 bits, not 0"):
        pack(np.zeros(1, dtype=np.uint8), 0)
