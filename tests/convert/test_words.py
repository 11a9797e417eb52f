import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32

from mpq.convert.words import pack_words, unpack_words

WIDTHS = range(1, 9)


def codes(width: int, columns: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(width * columns)
    return torch.randint(0, 2**width, (5, columns), generator=draw)


@pytest.mark.parametrize("columns", [32, 33, 96, 7])
@pytest.mark.parametrize("width", WIDTHS)
def test_words_are_those_of_compressed_tensors(width, columns):
    given = codes(width, columns)
    theirs = pack_to_int32((given - 2 ** (width - 1)).to(torch.int8), width)
    ours = pack_words(given, width)
    assert ours.dtype == torch.int32
    assert torch.equal(ours, theirs)
    back = unpack_from_int32(ours, width, given.shape).long() + 2 ** (width - 1)
    assert torch.equal(back, given)


@pytest.mark.parametrize("columns", [32, 33, 96, 7])
@pytest.mark.parametrize("width", WIDTHS)
def test_what_was_packed_comes_back(width, columns):
    given = codes(width, columns)
    assert torch.equal(unpack_words(pack_words(given, width), width, columns), given)


def test_three_bits_straddle_words_as_gptq_straddles_them():
    # GPTQ: value 10 gives two bits to the first word and one to the second, value 21 one and two.
    given = torch.zeros(1, 32, dtype=torch.long)
    given[0, 10] = given[0, 21] = 7
    first, second, third = (word & 0xFFFFFFFF for word in pack_words(given, 3)[0].tolist())
    assert (first, second, third) == (0b11 << 30, 1 | 1 << 31, 0b11)
