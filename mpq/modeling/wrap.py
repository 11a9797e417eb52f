"""A model run through a plan, and a tap on what flows through it; both leave it as it was."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpq.errors import ModelError, PlanError
from mpq.formats.format import Format
from mpq.kernels.fake_quant import quantize
from mpq.modeling.activations import Repeats, quantize_probs
from mpq.modeling.attention import Keys, reach_attention
from mpq.modeling.experts import expert_input_through
from mpq.modeling.linear import input_through, output_through
from mpq.modeling.probe import probe
from mpq.modeling.sites import Place, places, sites
from mpq.modeling.validity import check_plan, find_activations
from mpq.modeling.weights import Quantize, WeightCache, quantized, swapped
from mpq.plans.plan import Plan
from mpq.plans.rules import matches
from mpq.plans.site import STORED_ROLES, Role, Site

__all__ = ["WeightCache", "apply_plan", "keep_activations", "tap", "uniform_plan"]

EVERY_ROLE: tuple[Role, ...] = ("weight", "input", "q", "k", "v", "probs")
"""The roles of a uniform plan unless it is narrowed."""

_OPERANDS: frozenset[Role] = frozenset({"q", "k", "v", "probs"})

_APPLIED: WeakSet[nn.Module] = WeakSet()
"""Models inside an `apply_plan`."""

Operate = Callable[[Tensor, Keys | None], Tensor]
"""What happens to an activation; attention operands come with the positions of their keys."""


_Operands = WeakKeyDictionary[nn.Module, dict[Role, Operate | None]]
"""Operations by attention module and role; transformers' registry must keep no model alive."""


@contextmanager
def apply_plan(
    model: PreTrainedModel, plan: Plan, *, cache: WeightCache | None = None
) -> Iterator[None]:
    """A context in which the model computes with every tensor of the plan in its format.

    Sites that the plan does not name, and identity formats, leave their tensors untouched. A plan
    that names attention sites runs mpq's attention in `eager`'s arithmetic; any other leaves the
    model's own implementation alone. On leaving, also by an exception, the model is what it was,
    bit for bit. Gradients pass formats as if they were the identity.

    Args:
        model: A transformers model.
        plan: Site name (or alias) -> format.
        cache: Keeps quantised weights between plans; without one they are made for this context.

    Raises:
        PlanError: The plan does not fit the model (every fault is listed), or a plan is already
            applied to it.
        FormatError: A weight is not finite; names it.
    """
    if model in _APPLIED:
        raise PlanError(
            f"a plan is already applied to this {type(model).__name__}; leave its context first, "
            "or join the two plans with Plan.replace"
        )
    found = check_plan(model, plan.formats, places(model))
    stored = {name: place for name, place in found.items() if place.site.is_stored}
    flowing = {name: place for name, place in found.items() if not place.site.is_stored}
    kept = WeightCache(0) if cache is None else cache
    values = _quantized_parameters(stored, plan.formats, kept)
    repeats = Repeats()
    with ExitStack() as stack:
        _APPLIED.add(model)
        stack.callback(_APPLIED.discard, model)
        stack.enter_context(swapped(values))
        stack.enter_context(
            _activations_through(
                model,
                [
                    (place, _through_format(place, plan.formats[name], repeats))
                    for name, place in flowing.items()
                ],
            )
        )
        yield


def keep_activations(model: PreTrainedModel, plan: Plan) -> None:
    """Nothing comes back; the plan's activations take their formats for as long as `model` lives.

    The plan's stored tensors are left alone: they are what a checkpoint has them be. Nothing
    outside of the model holds on to it, so that it is freed like any other.

    Raises:
        PlanError: The plan does not fit the model, or one is already applied to it.
    """
    flowing = {
        name: fmt
        for name, fmt in plan.formats.items()
        if name.rpartition(".")[2] not in STORED_ROLES
    }
    if not flowing:
        return
    stack = ExitStack()
    stack.enter_context(apply_plan(model, replace(plan, formats=flowing)))

    def leave_plan() -> None:
        stack.close()

    # A function, since a copy of the model shares it; the contexts themselves cannot be copied.
    vars(model)["_leave_plan"] = leave_plan


@contextmanager
def tap(
    model: PreTrainedModel,
    sites: Iterable[Site | str],
    transform: Callable[[Site, Tensor], Tensor],
) -> Iterator[None]:
    """A context in which every named activation passes through `transform` on its way.

    Args:
        model: A transformers model, inside a plan or not.
        sites: Activation sites, or their names. Tapping q, k, v or probs switches the model to
            mpq's attention, in `eager`'s arithmetic.
        transform: (site, tensor) -> tensor of the same shape. Inputs and outputs come as
            [..., features], attention operands as [batch, heads, tokens, dim]. Autograd sees it.

    Raises:
        PlanError: Lists every name that is no activation site of the model.
    """
    names = [site if isinstance(site, str) else site.name for site in sites]
    found = find_activations(model, names, places(model))

    def through(site: Site) -> Operate:
        return lambda x, _: transform(site, x)

    operations = [(place, through(place.site)) for place in found]
    with _activations_through(model, operations):
        yield


def uniform_plan(
    model: PreTrainedModel,
    format: str | Format,
    *,
    roles: Iterable[Role] = EVERY_ROLE,
    match: str = "*",
    lm_head: bool = False,
    embeddings: bool = False,
) -> Plan:
    """A plan that gives one format to every site, or to those that the keywords leave.

    Args:
        model: A transformers model.
        format: The format or its text, as in "bfp4".
        roles: Only sites of these roles.
        match: Only sites whose whole name (or an alias) this glob matches.
        lm_head: Also the output head.
        embeddings: Also the lookup tables.

    Raises:
        ModelError: Attention operands are asked for, and the model's attention cannot be reached.
        PlanError: No site is left.
        FormatError: The text names no format.
    """
    wanted = frozenset(roles)
    unreachable = probe(model).unreachable
    if unreachable and wanted & _OPERANDS:
        raise ModelError(
            f"the attention of {type(model).__name__} cannot be reached ({unreachable}), so it "
            f'has no sites q, k, v, probs; ask for roles=("weight", "input")'
        )
    every = sites(model, lm_head=lm_head, embeddings=embeddings, bias=True, output=True)
    names = [site.name for site in every if site.role in wanted and matches(match, site)]
    if not names:
        raise PlanError(
            f"no site of {type(model).__name__} has a role among {', '.join(sorted(wanted))} and "
            f"a name like {match!r}; mpq.sites(model) lists them"
        )
    return Plan.of(dict.fromkeys(names, format))


def _quantized_parameters(
    stored: Mapping[str, Place], formats: Mapping[str, Format], cache: WeightCache
) -> list[tuple[nn.Parameter, Tensor]]:
    parts: dict[int, dict[int | None, tuple[str, Quantize]]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, place in stored.items():
        fmt = formats[name]
        if fmt.is_identity:
            continue
        _refuse_offloaded(name, place.parameter)
        make = partial(
            quantize, format=fmt, axis=place.site.axis, check_finite=True, name=place.site.name
        )
        parameters[id(place.parameter)] = place.parameter
        parts.setdefault(id(place.parameter), {})[place.part] = (str(fmt), make)
    # Values made in inference mode could never be trained through, and the cache outlives it.
    with torch.inference_mode(mode=False), torch.no_grad():
        return [
            (parameters[key], quantized(parameters[key], parts_of_one, cache))
            for key, parts_of_one in parts.items()
        ]


def _refuse_offloaded(name: str, parameter: nn.Parameter) -> None:
    if parameter.untyped_storage().nbytes() < parameter.nbytes:
        raise PlanError(
            f"{name} is offloaded: its values are read from a packed checkpoint when its block "
            "runs, so no plan can change them; load the model without offload"
        )


def _through_format(place: Place, fmt: Format, repeats: Repeats) -> Operate | None:
    if fmt.is_identity:
        return None
    if place.site.role == "probs":
        return lambda x, keys: quantize_probs(x, fmt, keys or Keys(0, None))
    if place.site.role == "input":
        return lambda x, _: repeats.quantize(x, fmt, place.site.group)
    return lambda x, _: quantize(x, fmt)


@contextmanager
def _activations_through(
    model: PreTrainedModel, operations: Iterable[tuple[Place, Operate | None]]
) -> Iterator[None]:
    """A context in which each place's activation is operated on; None leaves it as it is."""
    operands = _Operands()
    with ExitStack() as stack:
        for place, operate in operations:
            if place.site.role in _OPERANDS:
                operands.setdefault(place.module, {})[place.site.role] = operate
            elif operate is not None:
                stack.enter_context(_flow_through(place, operate))
        if operands:
            stack.enter_context(reach_attention(model, _among(operands)))
        yield


def _flow_through(place: Place, operate: Operate) -> AbstractContextManager[None]:
    def transform(x: Tensor) -> Tensor:
        return operate(x, None)

    if place.site.role == "output":
        return output_through(place.module, transform)
    if place.tensor == "input":
        return input_through(place.module, transform)
    return expert_input_through(place.module, place.tensor, transform)


def _among(operands: _Operands) -> Callable[[nn.Module, Role, Tensor, Keys], Tensor]:
    def transform(module: nn.Module, role: Role, x: Tensor, keys: Keys) -> Tensor:
        operate = operands.get(module, {}).get(role)
        return x if operate is None else operate(x, keys)

    return transform
