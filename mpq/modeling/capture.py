"""What enters the weights of a block: told to a callback, pass by pass, as far as it is needed.

Layers that read one tensor (q, k, v; gate, up) are told of once; every expert of a mixture model
by itself, with the tokens that were sent to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpq.modeling.experts import expert_inputs_seen, is_dispatched
from mpq.modeling.sites import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Weights that read one tensor.

    Attributes:
        name: What it is called: the fusion group, or the expert's projection.
        places: The weights.
    """

    name: str
    places: tuple[Place, ...]

    @property
    def module(self) -> nn.Module:
        """The first module that reads the tensor."""
        return self.places[0].module

    @property
    def is_expert(self) -> bool:
        """Whether it is one of a module's fused experts."""
        return self.places[0].part is not None

    @property
    def can_be_seen(self) -> bool:
        """Whether its input can be reached."""
        return not self.is_expert or is_dispatched(self.module)


class _AllSeen(Exception):  # noqa: N818 - no error: the rest of the block is not needed
    pass


def readers_of(places: Sequence[Place], input_formats: Mapping[str, str]) -> list[Reader]:
    """The weights of a block by the tensor that they read, in the order given.

    Args:
        places: Weights of linear layers and of experts.
        input_formats: Site of an input -> its format's text: layers of one fusion group whose
            inputs have different formats read different tensors.
    """
    members: dict[str, list[Place]] = {}
    for place in places:
        module = place.site.name.removesuffix(".weight")
        if place.part is None:
            own = input_formats.get(f"{module}.input", "")
            key = f"{place.site.group.removesuffix('.weight')} {own}".strip()
        else:
            key = module
        members.setdefault(key, []).append(place)
    return [Reader(name=name, places=tuple(found)) for name, found in members.items()]


def in_order_of_calls(
    readers: Sequence[Reader], forward: Callable[[], object]
) -> list[list[Reader]]:
    """The readers in the order in which a pass reaches them; experts of one projection together.

    Args:
        readers: Those of one block.
        forward: Runs the block once.
    """
    called: list[nn.Module] = []
    with ExitStack() as stack:
        for module in {id(reader.module): reader.module for reader in readers}.values():
            handle = module.register_forward_pre_hook(lambda at, _: called.append(at))
            stack.callback(handle.remove)
        forward()
    rank = {id(module): number for number, module in reversed(list(enumerate(called)))}
    stages: dict[tuple[int, str], list[Reader]] = {}
    for reader in readers:
        # A layer that this pass did not reach comes last.
        position = rank.get(id(reader.module), len(called))
        projection = reader.places[0].tensor if reader.is_expert else reader.name
        stages.setdefault((position, projection), []).append(reader)
    order = sorted(stages, key=lambda key: key[0])
    return [stages[key] for key in order]


@contextmanager
def inputs_seen(
    readers: Sequence[Reader], see: Callable[[Reader, Tensor], None]
) -> Iterator[Callable[[Callable[[], object]], None]]:
    """A context that gives a function which runs a pass until every reader has been seen.

    Args:
        readers: Those of one block whose input can be seen.
        see: Called with a reader and its input [..., in], at every pass.
    """
    missing: set[int] = set()
    linear = [reader for reader in readers if not reader.is_expert]
    experts = {id(r.module): r.module for r in readers if r.is_expert}
    modules = {*(id(reader.module) for reader in linear), *experts}

    def passed(module: nn.Module) -> None:
        missing.discard(id(module))
        if not missing:
            raise _AllSeen

    @torch.no_grad()
    def run_until_seen(forward: Callable[[], object]) -> None:
        missing.update(modules)
        with suppress(_AllSeen):
            forward()

    with ExitStack() as stack:
        for reader in linear:
            hook = _linear_hook(reader, see, passed)
            handle = reader.module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for module in experts.values():
            stack.enter_context(expert_inputs_seen(module, _expert_callback(module, readers, see)))
            handle = module.register_forward_hook(lambda at, _, __: passed(at))
            stack.callback(handle.remove)
        yield run_until_seen


def _linear_hook(
    reader: Reader, see: Callable[[Reader, Tensor], None], passed: Callable[[nn.Module], None]
) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(reader, args[0] if args else next(iter(kwargs.values())))
        passed(module)

    return hook


def _expert_callback(
    module: nn.Module, readers: Sequence[Reader], see: Callable[[Reader, Tensor], None]
) -> Callable[[str, int, Tensor], None]:
    known = {
        (reader.places[0].tensor, reader.places[0].part): reader
        for reader in readers
        if reader.module is module
    }

    def told(projection: str, expert: int, x: Tensor) -> None:
        reader = known.get((projection, expert))
        if reader is not None:
            see(reader, x)

    return told
