"""The blocks of a model, and forward passes that begin at one of them.

A pass that changes something in block i repeats the blocks before it for nothing. Here they are
switched off and block i is handed the hidden states that were captured once; everything around
the blocks (masks, position embeddings, the head) is still the model's own code, so the logits
equal those of a whole pass bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpq.errors import ModelError
from mpq.modeling.probe import probe

Batch = Tensor | Mapping[str, Tensor]
"""Token ids [batch, tokens], or the keyword arguments of a forward pass."""


def blocks(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The decoder (or encoder) blocks in order, each with its module's name.

    Blocks are the members of the outermost `nn.ModuleList`s that hold attention modules (of the
    longest list in a model without attention). An encoder-decoder's encoder comes first.
    """
    lists = _outermost_lists(model)
    holders = [(name, entry) for name, entry in lists if any(map(_has_attention, entry))]
    if not holders and lists:
        holders = [max(lists, key=lambda named: len(named[1]))]
    return [
        (f"{name}.{index}", block) for name, entry in holders for index, block in enumerate(entry)
    ]


def stack_of(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The blocks of a model that has one stack of them; see `blocks`.

    Raises:
        ModelError: The model is an encoder-decoder.
    """
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"{type(model).__name__} has two stacks of blocks, and a decoder block needs the "
            "whole encoder; it cannot be restarted at a block. Measure whole passes instead"
        )
    return blocks(model)


def _outermost_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found.append((name, module))
    return found


def _has_attention(block: nn.Module) -> bool:
    return any("attention" in type(module).__name__.lower() for module in block.modules())


def run(model: PreTrainedModel, batch: Batch) -> Any:
    """The model's output on a batch, without a key cache."""
    inputs = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
    return model(**inputs, use_cache=False) if _takes_cache(model) else model(**inputs)


def _takes_cache(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "use_cache", False))


def capture_block_inputs(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """The hidden states [batch, tokens, hidden] that enter each block, in the order of blocks.

    One forward pass without gradients; the model runs as it stands, inside a plan or not. A
    block that is called several times (ALBERT) counts from its first call.

    Raises:
        ModelError: The blocks are not called in order, with hidden states, as one stack.
    """
    found = stack_of(model)
    captured: dict[int, Tensor] = {}
    calls: list[int] = []

    def keep(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(index)
            if index not in captured:
                # A copy: a block may add to its input in place.
                captured[index] = hidden_states_of(model, args, kwargs).detach().clone()

        return hook

    with ExitStack() as stack, torch.no_grad():
        for index, (_, block) in enumerate(found):
            handle = block.register_forward_pre_hook(keep(index), with_kwargs=True)
            stack.callback(handle.remove)
        run(model, batch)
    if calls != sorted(calls) or len(captured) < len(found):
        raise ModelError(
            f"{type(model).__name__} must call its {len(found)} blocks in order to be restarted "
            f"at one; it called {calls}. Measure whole passes instead"
        )
    return [captured[index] for index in range(len(found))]


@contextmanager
def restart(model: PreTrainedModel, index: int, hidden: Tensor) -> Iterator[None]:
    """A context in which every forward pass begins at block `index` with the given hidden states.

    Run the batch that `hidden` was captured from (same masks, same positions), without a cache.

    Args:
        model: The model; it is whole again after the context.
        index: The block to begin at, as numbered by `blocks`.
        hidden: [batch, tokens, hidden], from `capture_block_inputs(model, batch)[index]`.

    Raises:
        ModelError: The model has no block of that number, or not one stack of blocks.
    """
    found = stack_of(model)
    if not 0 <= index < len(found):
        raise ModelError(
            f"{type(model).__name__} has blocks 0 to {len(found) - 1}; there is no block {index}"
        )
    num_outputs = probe(model).num_outputs
    first = found[index][1]
    handed_over = False

    def begin(*_: Any) -> None:
        nonlocal handed_over
        handed_over = False

    def hand_over(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        nonlocal handed_over
        if handed_over:
            return None
        handed_over = True
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin).remove)
        handle = first.register_forward_pre_hook(hand_over, with_kwargs=True, prepend=True)
        stack.callback(handle.remove)
        for name, block in found[:index]:
            stack.enter_context(_switched_off(model, block, num_outputs.get(name)))
        yield


@contextmanager
def _switched_off(
    model: PreTrainedModel, block: nn.Module, num_outputs: int | None
) -> Iterator[None]:
    """A context in which a block returns its input, in the shape of its own answer."""

    def skip(*args: Any, **kwargs: Any) -> Any:
        return as_answer(hidden_states_of(model, args, kwargs), num_outputs)

    with replaced_forward(block, skip):
        yield


@contextmanager
def replaced_forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A context in which a module computes something else; its hooks still run."""
    before = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if before is None:
            del block.forward
        else:
            block.forward = before


def as_answer(hidden: Tensor, num_outputs: int | None) -> Any:
    """Hidden states in the shape of a block's answer: a tuple of `num_outputs`, or a tensor."""
    return hidden if num_outputs is None else (hidden, *[None] * (num_outputs - 1))


def hidden_states_of(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """The hidden states [batch, tokens, hidden] among the arguments of a call of a block.

    Raises:
        ModelError: They are not the first argument.
    """
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise ModelError(
            f"{type(model).__name__} calls its blocks without hidden states as the first "
            "argument; it cannot be restarted at a block. Measure whole passes instead"
        )
    return hidden
