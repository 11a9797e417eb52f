"""Blocks run by themselves: what a model hands to each of them, and one block on hidden states.

A walk over the blocks needs one of them at a time. What the model computes around them (masks,
position embeddings) is recorded once per batch, with the blocks skipped; then a block is called
as the model would call it, and the rest of the model need not be in memory.
"""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpq.errors import ModelError
from mpq.modeling.blockwise import (
    Batch,
    as_answer,
    hidden_states_of,
    replaced_forward,
    run,
    stack_of,
)
from mpq.modeling.probe import probe


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockCall:
    """What a model hands to one block beside the hidden states.

    Attributes:
        args: Positional arguments after the hidden states.
        kwargs: Keyword arguments.
        by_name: Whether the hidden states come as the keyword `hidden_states`.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_name: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entrance:
    """What enters the stack of blocks for one batch.

    Attributes:
        hidden: [batch, tokens, hidden], the input of the first block.
        calls: One for each block, in order.
    """

    hidden: Tensor
    calls: tuple[BlockCall, ...]


class _HeadReached(Exception):  # noqa: N818 - no error: it ends a pass that has told enough
    pass


@torch.no_grad()
def enter_blocks(model: PreTrainedModel, batch: Batch) -> Entrance:
    """What a batch hands to every block; the blocks themselves do not run.

    The arguments must not depend on what earlier blocks compute, which holds for the masks and
    positions of every decoder stack that is called once, in order.

    Args:
        model: A transformers model with one stack of blocks.
        batch: Token ids, or the keyword arguments of a forward pass.

    Raises:
        ModelError: The blocks are not one stack, called once each, in order, with hidden states.
    """
    found = stack_of(model)
    num_outputs = probe(model).num_outputs
    entered: list[Tensor] = []
    calls: list[BlockCall] = []
    order: list[int] = []

    def skip(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = hidden_states_of(model, args, kwargs)
            order.append(index)
            if index == 0:
                # A copy: a block may add to its input in place.
                entered.append(hidden.detach().clone())
            kwargs.pop("hidden_states", None)
            calls.append(BlockCall(args=args[1:], kwargs=kwargs, by_name=not args))
            return as_answer(hidden, num_outputs.get(found[index][0]))

        return forward

    def stop(*_: Any) -> None:
        raise _HeadReached

    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        for index, (_, block) in enumerate(found):
            stack.enter_context(replaced_forward(block, skip(index)))
        if head is not None:
            # A large vocabulary costs more than all that is wanted here.
            stack.callback(head.register_forward_pre_hook(stop).remove)
        with suppress(_HeadReached):
            run(model, batch)
    if order != list(range(len(found))):
        raise ModelError(
            f"{type(model).__name__} must call each of its {len(found)} blocks once, in order, to "
            f"be converted block by block; it called {order}"
        )
    return Entrance(hidden=entered[0], calls=tuple(calls))


@torch.no_grad()
def leave_blocks(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> Any:
    """The model's output on a batch whose last block gave `hidden`; no block runs.

    Args:
        model: The model.
        batch: The batch that `hidden` was computed from.
        hidden: [batch, tokens, hidden], the output of the last block.
    """
    with ExitStack() as stack:
        for name, block in stack_of(model):
            answer = as_answer(hidden, probe(model).num_outputs.get(name))
            stack.enter_context(replaced_forward(block, partial(_answering, answer)))
        return run(model, batch)


def _answering(answer: Any, *_: Any, **__: Any) -> Any:
    return answer


def run_block(block: nn.Module, hidden: Tensor, call: BlockCall) -> Tensor:
    """The hidden states [batch, tokens, hidden] that a block makes of others.

    Args:
        block: One of `blockwise.blocks(model)`.
        hidden: [batch, tokens, hidden], where the block lies.
        call: What the model hands to the block beside them, where the block lies.
    """
    if call.by_name:
        output = block(*call.args, hidden_states=hidden, **call.kwargs)
    else:
        output = block(hidden, *call.args, **call.kwargs)
    result: Tensor = output if isinstance(output, Tensor) else output[0]
    return result


def moved(value: Any, device: torch.device) -> Any:
    """The same arguments with every tensor in them on a device."""
    match value:
        case Tensor():
            return value.to(device)
        case BlockCall(args=args, kwargs=kwargs, by_name=by_name):
            return BlockCall(
                args=moved(args, device), kwargs=moved(dict(kwargs), device), by_name=by_name
            )
        case tuple() | list():
            return type(value)(moved(item, device) for item in value)
        case dict():
            return {key: moved(item, device) for key, item in value.items()}
    return value
