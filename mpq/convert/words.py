"""Codes as rows of 32-bit words without padding between them, as other tools' checkpoints pack.

Code i of a row takes the bits i*width to (i+1)*width - 1, counted from the lowest bit of the
row's first word; 32 codes fill `width` words, so a code of 3, 5, 6 or 7 bits may straddle two.
"""

import math

import torch
from torch import Tensor

WORD = 32
"""Bits of a word; also the codes after which a row of words starts anew."""


def pack_words(codes: Tensor, width: int) -> Tensor:
    """The words that hold each row's codes, int32 [rows, ceil(columns * width / 32)].

    Args:
        codes: Unsigned codes below 2^width, of any integer dtype, [rows, columns].
        width: Bits of a code, 1 to 8.
    """
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes.long(), (0, -columns % WORD)).reshape(-1, WORD)
    words = torch.zeros(padded.shape[0], width, dtype=torch.int64, device=codes.device)
    for place in range(WORD):
        word, offset = divmod(place * width, WORD)
        words[:, word] |= padded[:, place] << offset
        if offset + width > WORD:
            words[:, word + 1] |= padded[:, place] >> (WORD - offset)
    words &= 2**WORD - 1
    signed = (words - (words >> (WORD - 1) << WORD)).to(torch.int32)
    return signed.reshape(rows, -1)[:, : math.ceil(columns * width / WORD)].contiguous()


def unpack_words(words: Tensor, width: int, columns: int) -> Tensor:
    """The codes that `pack_words` put into each row's words, int64 [rows, columns]."""
    rows = words.shape[0]
    padded = torch.nn.functional.pad(words.long() & 2**WORD - 1, (0, -words.shape[1] % width))
    groups = padded.reshape(-1, width)
    codes = torch.empty(groups.shape[0], WORD, dtype=torch.int64, device=words.device)
    for place in range(WORD):
        word, offset = divmod(place * width, WORD)
        code = groups[:, word] >> offset
        if offset + width > WORD:
            code = code | groups[:, word + 1] << (WORD - offset)
        codes[:, place] = code & 2**width - 1
    return codes.reshape(rows, -1)[:, :columns].contiguous()
