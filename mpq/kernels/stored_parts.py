"""What an encoded tensor stores beside its codes, counted before compiled code reads it."""

import math

import torch
from torch import Tensor

from mpq.errors import FormatError
from mpq.formats.block import positive_axis
from mpq.formats.format import Format
from mpq.formats.packing import require_bytes
from mpq.formats.scale import FloatScale, NestedScale
from mpq.kernels.encoded import Encoded, part_of
from mpq.kernels.scaling import SCALE_TORCH_DTYPES, calibrated_unit, scale_above


def stored_codes(encoded: Encoded) -> Tensor:
    """The packed codes, uint8.

    Raises:
        FormatError: They are not as many bytes as the shape takes.
    """
    codes = encoded.codes.contiguous()
    require_bytes(codes.numel(), encoded.format.element.width, math.prod(encoded.shape))
    return codes


def stored_scales(encoded: Encoded) -> Tensor:
    """The scales of blocks as they are stored, or the calibrated one of all, float32 [1, 1].

    Raises:
        FormatError: There are not as many as blocks, or in another dtype than the format's.
        TypeError: They are missing.
    """
    format = encoded.format
    if isinstance(format.scale, FloatScale) and format.scale.absmax is not None:
        like = torch.empty(0, device=encoded.codes.device)
        return calibrated_unit(format.element, format.scale, like)
    scales = part_of(encoded, "scales")
    if isinstance(format.scale, FloatScale):
        _require(scales, encoded.num_blocks, SCALE_TORCH_DTYPES[format.scale.dtype], format)
    else:
        require_bytes(scales.numel(), format.block_bits, encoded.num_blocks)
    return scales.contiguous()


def stored_zero_points(encoded: Encoded) -> Tensor:
    """The packed zero points of blocks, uint8.

    Raises:
        FormatError: They are not as many bytes as the blocks take.
        TypeError: They are missing.
    """
    zero_points = part_of(encoded, "zero_points")
    require_bytes(zero_points.numel(), encoded.format.element.width, encoded.num_blocks)
    return zero_points.contiguous()


def stored_above(encoded: Encoded, scale: NestedScale) -> Tensor:
    """The float32 scales above those of blocks: of each row, or one.

    Raises:
        FormatError: There are not as many as rows, or they are no float32.
        TypeError: They are missing.
    """
    if scale.absmax is not None:
        return scale_above(torch.zeros(1, device=encoded.codes.device), scale)
    above = part_of(encoded, "tensor_scales")
    shape = encoded.shape or (1,)
    width = shape[positive_axis(shape, encoded.axis)]
    _require(
        above, math.prod(shape) // width if scale.per_row else 1, torch.float32, encoded.format
    )
    return above.contiguous()


def _require(scales: Tensor, count: int, dtype: torch.dtype, format: Format) -> None:
    if scales.numel() != count or scales.dtype != dtype:
        raise FormatError(
            f"{format} of this shape stores {count} scales of {dtype}, not {scales.numel()} of "
            f"{scales.dtype}: decode what encode returned"
        )
