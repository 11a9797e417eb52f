"""GPTQ for one weight: the order of its columns, their grids, the sweep."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq.convert.factor import MAX_DAMPING, Factor, factorize
from mpq.convert.grid import (
    Grid,
    choose_grids,
    group_size,
    tensor_scales,
    value_dtype,
)
from mpq.convert.options import SolverOptions
from mpq.convert.sweep import Grids, sweep
from mpq.formats.format import Format


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolvedColumns:
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


def gptq(
    rows: Tensor, hessian: Tensor, format: Format, options: SolverOptions
) -> tuple[SolvedColumns | None, str]:
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
    return SolvedColumns(
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
