"""Weights that read one tensor, solved: codes, report, and what their biases become."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mpq.convert.hessian import HessianSum
from mpq.convert.report import TensorReport
from mpq.convert.solver import SolverOptions, solve
from mpq.errors import ModelError
from mpq.kernels.fake_quant import encode
from mpq.modeling.capture import Reader
from mpq.modeling.packed import PackedWeight, unpack_weight
from mpq.modeling.residence import part_of
from mpq.modeling.sites import Place
from mpq.plans.plan import Plan

NEVER_REACHED = "no calibration token came by"
UNSEEN = "what it reads cannot be seen"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvertedTensor:
    """A stored tensor as the checkpoint will hold it.

    Attributes:
        place: Where it lies.
        packed: What is stored.
        values: What that reads back as, in the tensor's dtype and shape.
        report: How it came about.
    """

    place: Place
    packed: PackedWeight
    values: Tensor
    report: TensorReport


def solve_all(
    reader: Reader, seen: HessianSum | None, plan: Plan, options: SolverOptions
) -> list[ConvertedTensor]:
    """The weights of a reader in their formats.

    Args:
        reader: Weights that read one tensor.
        seen: Sums over what they read; None where nothing could be seen.
        plan: Names a format for each of the weights.
        options: Of the solver.

    Raises:
        ModelError: A weight is not finite; names it.
    """
    if seen is None or not seen.num_tokens:
        reason = UNSEEN if seen is None else NEVER_REACHED
        return [round_stored(place, plan, options, reason) for place in reader.places]
    hessian = seen.hessian()
    return [_solved(place, hessian, seen.num_tokens, plan, options) for place in reader.places]


def round_stored(place: Place, plan: Plan, options: SolverOptions, reason: str) -> ConvertedTensor:
    """A stored tensor rounded to nearest; the reason is kept where `gptq` was asked for."""
    plain = replace(options, method="rtn", act_order=False, groups="static")
    made = _solved(place, None, 0, plan, plain)
    if options.method == "rtn":
        return made
    return replace(made, report=replace(made.report, reason=reason))


def _solved(
    place: Place, hessian: Tensor | None, num_tokens: int, plan: Plan, options: SolverOptions
) -> ConvertedTensor:
    site = place.site
    format = plan.formats[site.name]
    weight = part_of(place)
    found = solve(weight, hessian, format, axis=site.axis, options=options, name=site.name)
    is_rounded = options.method == "rtn" or bool(found.reason)
    report = TensorReport(
        site=site.name,
        format=str(format),
        method="rtn" if is_rounded else "gptq",
        loss=found.loss,
        rtn_loss=found.rtn_loss,
        damping=found.damping,
        reason=found.reason,
        num_tokens=num_tokens,
        num_values=weight.numel(),
        num_bits=found.packed.num_bits,
    )
    return ConvertedTensor(place=place, packed=found.packed, values=found.values, report=report)


def corrected_bias(place: Place, values: Tensor, mean_input: Tensor) -> Tensor:
    """The bias [out] that makes up for the mean error of a layer's output.

    b + (W - Ŵ)·mean(x) (Sparsebit, quant LLaMA: bias correction), in the weight's dtype.

    Args:
        place: The weight of a linear layer, which still holds W.
        values: Ŵ.
        mean_input: Float64 [in], over the calibration tokens.

    Raises:
        ModelError: The weight is an expert's, which has no bias of its own layer.
    """
    module = place.module
    if place.part is not None:
        raise ModelError(
            f"{place.site.name}: a bias is corrected in linear layers, and this is one of a "
            "module's fused experts; leave bias correction out"
        )
    weight = place.parameter.detach()
    difference = weight.double() - values.double()
    if place.site.axis == 0:
        difference = difference.T
    shift = difference @ mean_input.to(difference.device)
    own = getattr(module, "bias", None)
    base = torch.zeros_like(shift) if own is None else own.detach().double()
    return (base + shift).to(weight.dtype)


def give_bias(module: nn.Module, bias: Tensor | None) -> None:
    """Puts a bias into a linear layer, which may have had none; None takes it away."""
    if bias is None:
        module.register_parameter("bias", None)
    elif getattr(module, "bias", None) is None:
        module.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
    else:
        module.bias.data = bias


def pack_bias(place: Place, plan: Plan) -> ConvertedTensor:
    """A bias in its format, rounded to nearest as it stands."""
    site = place.site
    format = plan.formats[site.name]
    bias = part_of(place)
    packed = PackedWeight(encoded=encode(bias, format, site.axis))
    values = unpack_weight(packed)
    error = float((bias.double() - values.double()).square().sum()) / 2
    report = TensorReport(
        site=site.name,
        format=str(format),
        method="rtn",
        loss=error,
        rtn_loss=error,
        damping=0.0,
        reason="",
        num_tokens=0,
        num_values=bias.numel(),
        num_bits=packed.num_bits,
    )
    return ConvertedTensor(place=place, packed=packed, values=values, report=report)
