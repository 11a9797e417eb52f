"""What a Triton kernel is given beside a tensor: facts, and scales that no tile can find alone."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mpq.formats.block import TENSOR
from mpq.formats.element import ExponentElement, TableElement
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale
from mpq.kernels.scaling import calibrated_unit, scale_above
from mpq.kernels.triton_launch import in_pieces, launch
from mpq.kernels.triton_scales import (
    Alone,
    FloatScales,
    Peaks,
    SharedPowers,
    Source,
    alone_facts,
    float_scale_facts,
    shared_power_facts,
)
from mpq.kernels.triton_tiles import Grid


class Given(NamedTuple):
    """What kernels of one kind of scale are given.

    Attributes:
        kind: The kind of scale, which is the last word of the kernels' names.
        facts: What they are compiled for.
        found: What they read beside the tensor; the tensor itself where that is nothing.
    """

    kind: Literal["alone", "powers", "floats", "asymmetric"]
    facts: Alone | SharedPowers | FloatScales
    found: Tensor


def given(x: Tensor, format: Format, at: int) -> Given:
    """What the kernels of a format are given for a tensor whose blocks lie along axis `at`."""
    match format.scale:
        case SharedExponent() if not isinstance(format.element, TableElement):
            return _given_powers(x, format, format.element, format.scale, at)
        case FloatScale():
            return _given_floats(x, format, format.scale, at)
        case NestedScale():
            found, per_row = _scales_above(x, format.scale, at), int(format.scale.per_row)
            facts = float_scale_facts(format.element, format.scale, x.dtype, "nested", per_row)
            return Given("floats", facts, found)
        case StaticScale() | None:
            return Given("alone", alone_facts(format.element, format.scale, x.dtype), x)
    raise TypeError(f"{format} has no kernel")


def _given_powers(
    x: Tensor, format: Format, element: ExponentElement, scale: SharedExponent, at: int
) -> Given:
    found, per_row = x, None
    if in_pieces(format, x, at):
        per_row = int(format.block != TENSOR)
        found = _peaks(x, at if per_row else None, Peaks())[0]
    return Given("powers", shared_power_facts(element, scale, x.dtype, per_row), found)


def _given_floats(x: Tensor, format: Format, scale: FloatScale, at: int) -> Given:
    source: Source = "block"
    found, per_row = x, int(format.block != TENSOR)
    if scale.absmax is not None:
        source = "unit"
        found = calibrated_unit(format.element, scale, torch.empty(0, device=x.device))
    elif in_pieces(format, x, at):
        source = "row"
        has_ends = scale.zero_point or format.has_signed_scale
        peaks = _peaks(x, at if per_row else None, Peaks(extremes=has_ends))
        found = torch.stack(peaks, dim=1)
    facts = float_scale_facts(format.element, scale, x.dtype, source, per_row)
    return Given("asymmetric" if scale.zero_point else "floats", facts, found)


def _scales_above(x: Tensor, scale: NestedScale, at: int) -> Tensor:
    """The float32 above the block scales: one for all, or one for each row."""
    if scale.absmax is not None:
        return scale_above(torch.zeros(1, device=x.device), scale)
    peaks = _peaks(x, at if scale.per_row else None, Peaks(finite=True))[0]
    return scale_above(peaks.view(torch.float32), scale)


def _peaks(x: Tensor, at: int | None, facts: Peaks) -> list[Tensor]:
    """The bits of the peak of each row, or of all; with `extremes`, of the ends of its range."""
    from mpq.kernels.triton_blocks import find_peaks

    grid = Grid.of(x, x, at)
    kinds = 3 if facts.extremes else 1
    size = (kinds, grid.rows_in_all, grid.extents[0])
    found = torch.empty(size, dtype=torch.int32, device=x.device)
    launch(find_peaks, (x, found), grid, (grid.strides,), facts)
    peaks = found if at is not None else found.flatten(1)[:, None]
    if not facts.extremes:
        return [peaks[0].amax(1)]
    low, high = peaks[1].view(torch.float32).amin(1), peaks[2].view(torch.float32).amax(1)
    return [peaks[0].amax(1), low.view(torch.int32), high.view(torch.int32)]
