"""What one small forward pass tells of a model: the attention in reach, what blocks return.

Some models accept a foreign attention implementation silently and never call it (Bloom, Falcon),
others give it work that it cannot do (position biases of their own). So support is not looked up
in a table: the calls are counted, and the result is compared with the `eager` implementation.
The answer is kept for as long as the model lives.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpq.modeling.attention import Keys, reach_attention, use_implementation
from mpq.plans.site import Role

_log = logging.getLogger(__name__)
_PROBE_TOKENS = 4
_TOLERANCE = 1e-2  # of the largest output: bfloat16 noise passes, a missing position bias does not


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The sizes of one attention module's operands, as its matmuls saw them."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What the probe forward of a model found.

    Attributes:
        attention: Sizes per reachable attention module, by its name, in the order of calls.
        num_outputs: Per called module that lies in an `nn.ModuleList`: the length of the tuple
            that it returns, None where it returns a tensor.
        unreachable: Why attention operands cannot be given a format; empty where they can.
    """

    attention: Mapping[str, AttentionShape]
    num_outputs: Mapping[str, int | None]
    unreachable: str


_PROBES: WeakKeyDictionary[nn.Module, Probe] = WeakKeyDictionary()


def probe(model: PreTrainedModel) -> Probe:
    """The facts about a model that only a forward pass shows; found once per model."""
    if model not in _PROBES:
        _PROBES[model] = _find_out(model)
    return _PROBES[model]


def _find_out(model: PreTrainedModel) -> Probe:
    names = {module: name for name, module in model.named_modules()}
    shapes: dict[str, dict[Role, torch.Size]] = {}
    num_outputs: dict[str, int | None] = {}

    def observe(module: nn.Module, role: Role, x: Tensor, _: Keys) -> Tensor:
        shapes.setdefault(names[module], {})[role] = x.shape
        return x

    def count(module: nn.Module, _: Any, output: Any) -> None:
        num_outputs[names[module]] = None if isinstance(output, Tensor) else len(output)

    kind = type(model).__name__
    with ExitStack() as stack:
        stack.enter_context(_quiet(model))
        for module in _members_of_lists(model):
            stack.callback(module.register_forward_hook(count).remove)
        try:
            with reach_attention(model, observe):
                ours = _forward(model)
            with use_implementation(model, "eager"):
                eager = _forward(model)
        except Exception as error:  # noqa: BLE001 - whatever a foreign model raises is an answer
            _log.debug("probe of %s failed", kind, exc_info=True)
            reason = f"its probe forward failed: {str(error).splitlines()[0] or type(error)}"
            return Probe(attention={}, num_outputs=num_outputs, unreachable=reason)
    unreachable = ""
    if not shapes:
        unreachable = f"{kind} never calls a registered attention implementation"
    elif not _agree(ours, eager):
        unreachable = f"{kind} gives other outputs than its own eager attention"
    return Probe(
        attention={} if unreachable else {name: _sizes(seen) for name, seen in shapes.items()},
        num_outputs=num_outputs,
        unreachable=unreachable,
    )


def _sizes(seen: Mapping[Role, torch.Size]) -> AttentionShape:
    return AttentionShape(
        heads=seen["q"][1],
        kv_heads=seen["k"][1],
        head_dim=seen["q"][-1],
        value_dim=seen["v"][-1],
    )


def _members_of_lists(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from module


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """A context without gradients and dropout that leaves no trace in modes or generators."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _forward(model: PreTrainedModel) -> Tensor:
    if model.main_input_name == "input_ids":
        tokens = torch.arange(_PROBE_TOKENS, device=model.device).unsqueeze(0)
        inputs: dict[str, Any] = {"input_ids": tokens}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = tokens
    else:
        inputs = {key: value.to(model.device) for key, value in model.dummy_inputs.items()}
    output: Tensor = model(**inputs)[0]
    return output


def _agree(ours: Tensor, eager: Tensor) -> bool:
    # A weight that is not finite poisons both; it is an error of its own, named elsewhere.
    ours, eager = torch.nan_to_num(ours), torch.nan_to_num(eager)
    return bool((ours - eager).abs().max() <= _TOLERANCE * eager.abs().max())
