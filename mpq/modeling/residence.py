"""Blocks on a device for as long as they are worked on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpq.modeling.blockwise import blocks
from mpq.modeling.sites import Place


@contextmanager
def on_device(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """A context in which modules lie on a device; afterwards they hold what they held before.

    Whatever was put into its parameters within the context is gone with it, and so is the memory
    on the device. A parameter that is memory-mapped from a file stays so.
    """
    tensors = {
        id(tensor): tensor
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    held = [(tensor, tensor.data) for tensor in tensors.values()]
    try:
        for tensor, data in held:
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in held:
            tensor.data = data


def outside_of_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that hold a tensor themselves and lie in no block: embeddings, norms, head."""
    inside = {id(module) for _, block in blocks(model) for module in block.modules()}
    return [
        module
        for module in model.modules()
        if id(module) not in inside
        and any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    ]


def put(values: Sequence[tuple[Place, Tensor]]) -> None:
    """Puts values into stored tensors, in the tensors' own dtype and place.

    Args:
        values: Stored tensors, whole or parts (an expert's), with what they hold from now on.
    """
    parameters: dict[int, nn.Parameter] = {}
    parts: dict[int, dict[int | None, Tensor]] = {}
    for place, tensor in values:
        parameters[id(place.parameter)] = place.parameter
        parts.setdefault(id(place.parameter), {})[place.part] = tensor
    for key, parameter in parameters.items():
        parameter.data = _joined(parameter.data, parts[key])


def _joined(whole: Tensor, parts: Mapping[int | None, Tensor]) -> Tensor:
    if None in parts:
        return parts[None].to(whole)
    # A copy: the tensor may be a file's, mapped into memory.
    data = whole.clone()
    for part, values in parts.items():
        data[part] = values.to(whole)
    return data


def part_of(place: Place) -> Tensor:
    """The values of a stored tensor as they are now, or of an expert's part of it."""
    whole = place.parameter.detach()
    return whole if place.part is None else whole[place.part]
