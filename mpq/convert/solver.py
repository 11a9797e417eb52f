"""The solver: one weight and the Hessian of its layer's inputs to codes, scales and a loss."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq.convert.gptq import SolvedColumns, gptq
from mpq.convert.grid import above_blocks, joined_scales
from mpq.convert.nearest import round_to_nearest
from mpq.convert.options import GridSearch, GroupMode, Method, SolverOptions
from mpq.errors import ModelError
from mpq.formats.format import Format
from mpq.kernels.encoded import encode_values
from mpq.kernels.fake_quant import DTYPES, quantize
from mpq.modeling.packed import PackedWeight

__all__ = ["GridSearch", "GroupMode", "Method", "Solution", "SolverOptions", "solve"]

DEFAULTS = SolverOptions()

ASYMMETRY = 1e-5
"""The largest difference between a Hessian and its transpose, as a share of its largest entry:
rounding of sums in float32 stays below."""

_log = logging.getLogger(__name__)

ROUNDED = SolverOptions(method="rtn")
ALIKE = 1e-9
"""Losses that differ by less than this share are alike: both are sums in float64."""


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
    options: SolverOptions = DEFAULTS,
    name: str = "",
) -> Solution:
    """The codes and scales of a weight that lose little of its layer's output.

    Dead columns (diag H is 0) are rounded to nearest. The weight is rounded to nearest altogether
    where no column is live, the Hessian resists every damping up to `MAX_DAMPING`, or the sweep
    ends above rounding (weights far off a fixed grid).

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
    found: SolvedColumns | None = None
    reason = ""
    if options.method == "gptq" and hessian is not None:
        found, reason = gptq(rows, hessian, format, options)
    if found is not None and found.loss > rtn_loss * (1 + ALIKE):
        reason = f"GPTQ loses {found.loss:.4g}, rounding to nearest {rtn_loss:.4g}"
        found, options = None, ROUNDED
    if reason:
        _log.warning("%s is rounded to nearest: %s", name or "a weight", reason)
    if found is None:
        packed, values = round_to_nearest(weight, hessian, format, axis, options, name)
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


def _packed(found: SolvedColumns, weight: Tensor, format: Format, axis: int) -> PackedWeight:
    rows = weight.movedim(axis, -1)
    encoded = encode_values(
        _restored(found.values, axis),
        format,
        axis,
        weight.dtype,
        scales=joined_scales(found.grids),
        above=above_blocks(rows, format),
    )
    return PackedWeight(encoded=encoded, order=found.order)


def _restored(columns: Tensor, axis: int) -> Tensor:
    """[K, rows] as the weight lies."""
    return columns.movedim(0, axis).contiguous()


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
    elif float((hessian - hessian.T).abs().amax()) > ASYMMETRY * float(hessian.abs().amax()):
        fault = "be symmetric, and is not"
    if fault:
        raise ModelError(
            f"the Hessian of the inputs of {what} must {fault}: sum it with HessianSum over the "
            f"inputs of this layer"
        )
    return hessian.to(device=rows.device, dtype=torch.float64)
