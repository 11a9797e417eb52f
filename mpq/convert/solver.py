"""The solver: one weight and the Hessian of its layer's inputs to codes, scales and a loss."""

import logging
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mpq.convert.factor import MAX_DAMPING, Factor, factorize
from mpq.convert.grid import (
    Grid,
    choose_grids,
    group_size,
    joined_scales,
    tensor_scales,
    value_dtype,
)
from mpq.convert.sweep import Grids, sweep
from mpq.errors import ConfigError, ModelError
from mpq.formats.format import Format
from mpq.kernels.eager import round_blocks
from mpq.kernels.encoded import Encoded, computing_dtype, encode_values
from mpq.kernels.fake_quant import DTYPES, decode, encode, quantize
from mpq.kernels.layout import Layout
from mpq.modeling.packed import PackedWeight

Method = Literal["gptq", "rtn"]
GroupMode = Literal["static", "stale", "exact"]
GridSearch = Literal["absmax", "mse"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverOptions:
    """How weights are rounded.

    Attributes:
        method: `gptq`, or `rtn`: each value to the nearest.
        act_order: Whether columns are rounded in the order of descending diag H.
        groups: When a block's grid is chosen: before the sweep from the original weight
            (`static`); when the sweep reaches it, from the weight without (`stale`) or with
            (`exact`) the updates of the running batch of columns. With `act_order` the latter two
            form blocks in the order of the sweep, and the order is stored. Where all columns
            share their scales, or nothing is shared, there is one group, which the sweep reaches
            before any update: the modes are the same. A tensor-wide scale above block scales is
            always the original weight's.
        grid: The format's own rule (`absmax`), or of shrunk ranges the one with the least squared
            error, weighted by diag H (`mse`). Formats whose scales no value chooses (static,
            calibrated, none) have one grid only, which both name.
        damping: The share of mean(diag H) added to the diagonal; tenfold on failure up to
            `MAX_DAMPING`, then the weight is rounded to nearest, with a reason.
        batch_columns: After how many columns all later ones are updated.

    Raises:
        ConfigError: An unknown word, an impossible number, or a setting of GPTQ under `rtn`.
    """

    method: Method = "gptq"
    act_order: bool = False
    groups: GroupMode = "static"
    grid: GridSearch = "absmax"
    damping: float = 0.01
    batch_columns: int = 128

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be one of {', '.join(words)}, not {getattr(self, name)!r}"
            for name, words in (
                ("method", get_args(Method)),
                ("groups", get_args(GroupMode)),
                ("grid", get_args(GridSearch)),
            )
            if getattr(self, name) not in words
        ]
        if not 0 <= self.damping <= MAX_DAMPING:
            faults.append(f"damping must be from 0 to {MAX_DAMPING}, not {self.damping}")
        if self.batch_columns < 1:
            faults.append(f"batch_columns must be at least 1, not {self.batch_columns}")
        if self.method == "rtn" and (self.act_order or self.groups != "static"):
            faults.append(
                "act_order and groups say how GPTQ goes through the columns, and method rtn does "
                "not: leave them out, or use method gptq"
            )
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """A weight rounded into a format.

    Attributes:
        packed: Its codes and scales.
        values: The weight as it reads back, in its shape and dtype: `unpack_weight(packed)`.
        loss: 1/2 tr(dW H dW^T) with the H given, undamped; for a mean over n tokens
            (`HessianSum`), the mean squared error of the layer's output, summed over outputs.
        rtn_loss: The same of `mpq.quantize(weight)`: round-to-nearest under the format's own rule.
        damping: The share of mean(diag H) that was added in the end; 0.0 for round-to-nearest.
        reason: Why the weight was rounded to nearest under method `gptq`; empty otherwise.
    """

    packed: PackedWeight
    values: Tensor
    loss: float
    rtn_loss: float
    damping: float
    reason: str


@torch.no_grad()
def solve(
    weight: Tensor,
    hessian: Tensor | None,
    format: Format,
    *,
    axis: int = -1,
    options: SolverOptions = SolverOptions(),
    name: str = "",
) -> Solution:
    """The codes and scales of a weight that lose little of its layer's output.

    Dead columns (diag H is 0) are rounded to nearest. The weight is rounded to nearest altogether
    where no column is live, or the Hessian resists every damping up to `MAX_DAMPING`.

    Args:
        weight: [out, in] with axis -1, [in, out] with axis 0 (Conv1D, transposed experts).
        hessian: float64 [K, K] along the axis (`HessianSum`); None, which stands for the identity,
            with method `rtn` only.
        format: Any format of the zoo.
        axis: The axis that the matmul reduces, along which blocks lie.
        options: How to solve.
        name: What to call the weight in messages.

    Raises:
        ModelError: The weight or the Hessian is not finite or has not the shape or dtype it must
            have.
    """
    _require_weight(weight, axis, name)
    rows = weight.movedim(axis, -1)
    if hessian is None and options.method == "gptq":
        raise ModelError(
            f"{name or 'the weight'} needs the Hessian of its inputs for method gptq: calibrate "
            f"it with HessianSum, or use method rtn"
        )
    if hessian is not None:
        hessian = _checked_hessian(hessian, rows, name)
    nearest = quantize(weight, format, axis)
    rtn_loss = _loss(rows, nearest.movedim(axis, -1), hessian)
    found: _Found | None = None
    reason = ""
    if options.method == "gptq" and hessian is not None:
        found, reason = _gptq(rows, hessian, format, options)
    if reason:
        _log.warning("%s is rounded to nearest: %s", name or "a weight", reason)
    if found is None:
        packed, values = _rounded(weight, hessian, format, axis, options, name)
        loss = _loss(rows, values.movedim(axis, -1), hessian)
        return Solution(
            packed=packed, values=values, loss=loss, rtn_loss=rtn_loss, damping=0.0, reason=reason
        )
    return Solution(
        packed=_packed(found, weight, format, axis),
        values=_restored(found.quantized, axis),
        loss=found.loss,
        rtn_loss=rtn_loss,
        damping=found.damping,
        reason="",
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What GPTQ found.

    Attributes:
        values: In units of the element, [K, rows], columns in the order in which they are stored.
        quantized: What they read back as, [K, rows], columns in their places.
        grids: Of the groups of columns, in the stored order.
        order: The stored order; None: as they are.
        loss: 1/2 tr(dW H dW^T), undamped.
        damping: The share of mean(diag H) that was added.
    """

    values: Tensor
    quantized: Tensor
    grids: tuple[Grid, ...]
    order: Tensor | None
    loss: float
    damping: float


def _gptq(
    rows: Tensor, hessian: Tensor, format: Format, options: SolverOptions
) -> tuple[_Found | None, str]:
    """What GPTQ makes of a weight [rows, K], or None and the reason why it makes nothing."""
    live = hessian.diagonal() != 0
    if rows.numel() == 0 or not bool(live.any()):
        return None, "no token reached it in calibration" if rows.numel() else "it is empty"
    order = _order(hessian, options)
    factor = factorize(hessian if order is None else hessian[order][:, order], options.damping)
    if factor is None:
        return None, (
            f"its Hessian is not positive definite, not even with {MAX_DAMPING} of its mean "
            f"diagonal added"
        )
    columns = rows if order is None else rows[:, order]
    grids, is_stored = _grids(rows, hessian, order, format, options)
    swept = sweep(
        columns.T.contiguous(),
        factor,
        grids,
        batch_columns=options.batch_columns,
        value_dtype=value_dtype(format, rows.dtype),
    )
    places = None if order is None else torch.argsort(order)
    quantized = swept.quantized if places is None else swept.quantized[places]
    loss = swept.loss - _damped_share(rows.T, quantized, live, factor)
    if not math.isfinite(swept.loss):
        return None, "errors that were passed on to later columns left the range of numbers"
    return _Found(
        values=swept.values if places is None or is_stored else swept.values[places],
        quantized=quantized,
        grids=swept.grids,
        order=order if is_stored else None,
        loss=max(loss, 0.0),
        damping=factor.damping,
    ), ""


def _order(hessian: Tensor, options: SolverOptions) -> Tensor | None:
    if not options.act_order:
        return None
    return torch.argsort(hessian.diagonal(), descending=True, stable=True)


def _damped_share(columns: Tensor, quantized: Tensor, live: Tensor, factor: Factor) -> float:
    """What the damping adds to the loss: added/2 |dW|^2 over live columns."""
    squares = (columns.double() - quantized.double()).square_().sum(dim=1)
    return factor.added / 2 * float(squares[live].sum())


def _grids(
    rows: Tensor,
    hessian: Tensor,
    order: Tensor | None,
    format: Format,
    options: SolverOptions,
) -> tuple[Grids, bool]:
    """The grids of a sweep in this order, and whether groups lie in this order too."""
    count, size = rows.shape[1], group_size(format, rows.shape[1])
    above = tensor_scales(rows, format)
    importance = hessian.diagonal()
    is_searched = options.grid == "mse"
    if options.groups == "static" or size == count:
        given = choose_grids(
            rows,
            format,
            rows.dtype,
            above=above,
            is_searched=is_searched,
            importance=importance,
        )
        group_of = torch.arange(count) if order is None else order.cpu()
        return Grids(given=tuple(given), group_of=tuple((group_of // size).tolist())), False
    ordered = importance if order is None else importance[order]

    def choose(columns: Tensor, places: slice) -> Grid:
        (grid,) = choose_grids(
            columns,
            format,
            rows.dtype,
            above=above,
            is_searched=is_searched,
            importance=ordered[places],
        )
        return grid

    group_of = torch.arange(count) // size
    grids = Grids(
        given=(),
        group_of=tuple(group_of.tolist()),
        choose=choose,
        is_exact=options.groups == "exact",
    )
    return grids, order is not None


def _packed(found: _Found, weight: Tensor, format: Format, axis: int) -> PackedWeight:
    rows = weight.movedim(axis, -1)
    encoded = encode_values(
        _restored(found.values, axis),
        format,
        axis,
        weight.dtype,
        scales=joined_scales(found.grids),
        above=_above_blocks(rows, format),
    )
    return PackedWeight(encoded=encoded, order=found.order)


def _above_blocks(rows: Tensor, format: Format) -> Tensor | None:
    above = tensor_scales(rows, format)
    if above is None or format.block is None:
        return None
    layout = Layout.of(tuple(rows.shape), -1, format.block)
    return above.repeat_interleave(layout.blocks_per_row, dim=0)


def _restored(columns: Tensor, axis: int) -> Tensor:
    """[K, rows] as the weight lies."""
    return columns.movedim(0, axis).contiguous()


def _rounded(
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
        values, format, axis, weight.dtype, scales=scales, above=_above_blocks(rows, format)
    )


def _loss(rows: Tensor, quantized: Tensor, hessian: Tensor | None) -> float:
    """1/2 tr(dW H dW^T) of a weight [rows, K], in float64; H is the identity if None."""
    change = rows.double() - quantized.double()
    moved = change if hessian is None else change @ hessian
    return float((moved * change).sum()) / 2


def _require_weight(weight: Tensor, axis: int, name: str) -> None:
    what = name or "the weight"
    if weight.dim() != 2 or axis not in (-2, -1, 0, 1) or weight.dtype not in DTYPES:
        raise ModelError(
            f"{what} must have two axes of floats, reduced along one of them, not shape "
            f"{tuple(weight.shape)} of {weight.dtype} along axis {axis}: give one matrix of the "
            f"layer (of stacked experts, one at a time)"
        )
    count = int((~weight.isfinite()).sum())
    if count:
        raise ModelError(
            f"{what} must be finite, but {count} of its {weight.numel()} values are not: repair "
            f"the checkpoint, or leave it out of the plan"
        )


def _checked_hessian(hessian: Tensor, rows: Tensor, name: str) -> Tensor:
    """The Hessian in float64 on the weight's device.

    Raises:
        ModelError: It has another shape, is not finite, or not symmetric.
    """
    what, size = name or "the weight", rows.shape[1]
    fault = ""
    if hessian.shape != (size, size):
        fault = f"have shape ({size}, {size}), not {tuple(hessian.shape)}"
    elif not bool(hessian.isfinite().all()):
        fault = "be finite, and is not"
    elif not torch.allclose(hessian, hessian.T):
        fault = "be symmetric, and is not"
    if fault:
        raise ModelError(
            f"the Hessian of the inputs of {what} must {fault}: sum it with HessianSum over the "
            f"inputs of this layer"
        )
    return hessian.to(device=rows.device, dtype=torch.float64)
