"""Fused experts of mixture models: 3-D parameters that every expert has a slice of.

In files every expert has a name of its own: `model.layers.0.mlp.experts.3.gate_up_proj.weight`.
Most models dispatch their experts by name (`ExpertsInterface`), which is how the inputs of both
matmuls are reached; of the others (Llama 4) only the weights are sites.

The inputs are one site for all experts of a block: a token's hidden states enter each of its
`top_k` experts unchanged, so there is one tensor to store; the tensor between the two matmuls
exists `top_k` times a token.

Routers stay as they are: they are a thousandth of the weights, an error there changes which
expert is chosen, and no engine quantises them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

from mpq.modeling.linear import input_through

_OPEN = frozenset({"grouped_mm", "batched_mm"})
"""transformers' own implementations that call `_apply_gate` between their matmuls."""

_OURS = "mpq_experts"
_SEEN = "mpq_seen_experts"


def expert_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of fused experts with its name, in model order."""
    for name, module in model.named_modules():
        stored = dict(module.named_parameters(recurse=False))
        first = stored.get("gate_up_proj", stored.get("up_proj"))
        second = stored.get("down_proj")
        if first is not None and second is not None and first.ndim == second.ndim == 3:
            yield name, module


def projections(experts: nn.Module) -> tuple[str, str]:
    """The names of the two 3-D parameters [experts, …], in the order of use."""
    return ("gate_up_proj" if hasattr(experts, "gate_up_proj") else "up_proj", "down_proj")


def is_dispatched(experts: nn.Module) -> bool:
    """True where transformers chooses the implementation, so that inputs can be reached."""
    return hasattr(experts, "has_gate")


def is_transposed(experts: nn.Module) -> bool:
    """True where an expert's matrix lies [in, out] instead of [out, in]."""
    if is_dispatched(experts):
        return bool(experts.is_transposed)
    first, second = projections(experts)
    # The second matmul's output has the size of the first one's input, the hidden size.
    return bool(getattr(experts, first).shape[1] == getattr(experts, second).shape[2])


def top_k(model: nn.Module, name: str) -> int:
    """How many experts a token visits: from the router beside the experts, or the config."""
    beside = model.get_submodule(name.rpartition(".")[0])
    for module in (beside, *beside.children()):
        value = getattr(module, "top_k", None)
        if isinstance(value, int):
            return value
    config: Any = getattr(model.get_submodule(name), "config", None)
    return int(getattr(config, "num_experts_per_tok", 1))


def is_router(model: nn.Module, name: str) -> bool:
    """True for a Linear that sits beside experts and gives each of them one score."""
    parent_name, _, leaf = name.rpartition(".")
    experts = getattr(model.get_submodule(parent_name), "experts", None)
    return experts is not None and leaf in {"gate", "router"}


@contextmanager
def expert_input_through(
    experts: nn.Module, projection: str, transform: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """A context in which what enters one projection of every expert passes through `transform`."""
    first, _ = projections(experts)
    if projection == first:
        with input_through(experts, transform):
            yield
        return
    with _dispatched(experts), _between_matmuls(experts, transform):
        yield


@contextmanager
def expert_inputs_seen(
    experts: nn.Module, see: Callable[[str, int, Tensor], None]
) -> Iterator[None]:
    """A context in which `see` is told what enters each projection of each expert that is visited.

    Args:
        experts: A module of fused experts that transformers dispatches (`is_dispatched`).
        see: Called with a projection's name, the expert's index, and its input [tokens, in].
    """
    config: Any = experts.config
    before = config._experts_implementation
    ExpertsInterface.register(_SEEN, partial(_run_experts, see=see))
    config._experts_implementation = _SEEN
    try:
        yield
    finally:
        config._experts_implementation = before
        ExpertsInterface._global_mapping.pop(_SEEN, None)


@contextmanager
def _between_matmuls(experts: nn.Module, transform: Callable[[Tensor], Tensor]) -> Iterator[None]:
    activation = "_apply_gate" if experts.has_gate else "act_fn"
    own = vars(experts).get(activation)
    original = getattr(experts, activation)

    def activate(x: Tensor) -> Tensor:
        return transform(original(x))

    # A plain attribute of the instance shadows the class's method and a registered submodule.
    vars(experts)[activation] = activate
    try:
        yield
    finally:
        if own is None:
            del vars(experts)[activation]
        else:
            vars(experts)[activation] = own


@contextmanager
def _dispatched(experts: nn.Module) -> Iterator[None]:
    """A context in which the experts run an implementation that can be reached into.

    The `eager` loop of many models inlines its activation; ours does the same arithmetic, and
    calls it.
    """
    config: Any = experts.config
    before = config._experts_implementation
    if before in _OPEN or before in {_OURS, _SEEN}:
        yield
        return
    ExpertsInterface.register(_OURS, _run_experts)
    config._experts_implementation = _OURS
    try:
        yield
    finally:
        config._experts_implementation = before
        ExpertsInterface._global_mapping.pop(_OURS, None)  # there is no public way to forget


def _run_experts(
    experts: nn.Module,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    see: Callable[[str, int, Tensor], None] | None = None,
) -> Tensor:
    """Each token's experts, weighted and summed, in `eager`'s arithmetic and order.

    Args:
        experts: A module of fused experts.
        hidden_states: [tokens, hidden].
        top_k_index: [tokens, top_k] int, the experts of each token; an index beyond the last
            expert stands for none.
        top_k_weights: [tokens, top_k].
        see: Told about the input of every projection of every expert that is visited.

    Returns:
        [tokens, hidden].
    """
    first, second = projections(experts)
    activate: Any = experts._apply_gate if experts.has_gate else experts.act_fn
    normalise = getattr(experts, "post_expert_norm", None)
    total = torch.zeros_like(hidden_states)
    for expert in range(getattr(experts, first).shape[0]):
        slots, tokens = torch.where((top_k_index == expert).T)
        if not len(tokens):
            continue
        outside = hidden_states[tokens]
        inner = activate(_project(experts, first, expert, outside))
        if see is not None:
            see(first, expert, outside)
            see(second, expert, inner)
        outer = _project(experts, second, expert, inner)
        if isinstance(normalise, nn.Module):
            outer = normalise(outer)
        outer = outer * top_k_weights[tokens, slots, None]
        total.index_add_(0, tokens, outer.to(total.dtype))
    return total


def _project(experts: nn.Module, projection: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(experts, projection)[expert]
    y = x @ weight if experts.is_transposed else nn.functional.linear(x, weight)
    return y + getattr(experts, f"{projection}_bias")[expert] if experts.has_bias else y
