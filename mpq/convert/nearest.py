"""Round-to-nearest for one weight, under the format's own grids or searched ones."""

from torch import Tensor

from mpq.convert.grid import above_blocks, choose_grids, joined_scales, tensor_scales
from mpq.convert.options import SolverOptions
from mpq.formats.format import Format
from mpq.kernels.eager import round_blocks
from mpq.kernels.encoded import Encoded, computing_dtype, encode_values
from mpq.kernels.fake_quant import decode, encode
from mpq.kernels.layout import Layout
from mpq.modeling.packed import PackedWeight


def round_to_nearest(
    weight: Tensor,
    hessian: Tensor | None,
    format: Format,
    axis: int,
    options: SolverOptions,
    name: str,
) -> tuple[PackedWeight, Tensor]:
    """The weight rounded to nearest, and what it reads back as."""
    if options.grid == "absmax" or format.block is None or weight.numel() == 0:
        encoded = encode(weight, format, axis, name=name)
    else:
        encoded = _rounded_to_searched_grids(weight, hessian, format, axis)
    return PackedWeight(encoded=encoded), decode(encoded)


def _rounded_to_searched_grids(
    weight: Tensor, hessian: Tensor | None, format: Format, axis: int
) -> Encoded:
    rows = weight.movedim(axis, -1)
    block = format.block
    if block is None:
        raise TypeError(f"{format} has no blocks whose grids could be searched")
    above = tensor_scales(rows, format)
    importance = None if hessian is None else hessian.diagonal()
    scales = joined_scales(
        choose_grids(
            rows,
            format,
            weight.dtype,
            above=above,
            is_searched=True,
            importance=importance,
        )
    )
    if scales is None:
        raise TypeError(f"{format} has blocks, and they have scales")
    layout = Layout.of(tuple(weight.shape), axis, block)
    blocks = layout.split(weight).to(computing_dtype(format, weight.dtype))
    values = layout.join(round_blocks(blocks, format.element, scales), tuple(weight.shape))
    return encode_values(
        values, format, axis, weight.dtype, scales=scales, above=above_blocks(rows, format)
    )
