"""Blocks of a model whose weights stay packed outside of the device until they run.

Before a block runs, its weights are decoded onto the device; afterwards they are let go. While it
runs, the packed bytes of the next one are fetched: from the mapped files into memory by a thread,
and to a CUDA device through pinned memory on a stream of its own. So there are never more than
one block decoded and one packed, beside what lies outside of the blocks. On a CPU both lie in
memory that every block takes again: fresh pages cost as much as decoding, and weights of a few
megabytes each would leave a heap behind into which the next ones do not fit. So a weight's values
are overwritten once its block has run, and calls from several threads take turns: one passes
through the whole model before the next begins.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpq.errors import ModelError
from mpq.modeling.blockwise import blocks
from mpq.modeling.checkpoint_model import Source, Stored, dtype_of, move_buffers
from mpq.modeling.checkpoint_reading import Checkpoint
from mpq.modeling.packed import with_tensors

ALIGNMENT = 64
"""Bytes: where a tensor begins in a piece of memory, as torch's own do."""


def offload_blocks(
    model: PreTrainedModel,
    sources: Sequence[Source],
    checkpoint: Checkpoint,
    device: torch.device,
) -> None:
    """Nothing comes back; the model runs on the device, the weights of its blocks elsewhere.

    Everything outside of the blocks (embeddings, head, last norm) is decoded and stays. The model
    only infers: none of its parameters asks for a gradient. It cannot be moved to another device.
    Threads that call it, or its blocks, wait for each other.

    Args:
        model: As `build_model` made it.
        sources: Where its tensors come from.
        checkpoint: Where the blocks' weights stay.
        device: Where the model runs.

    Raises:
        ModelError: The model has no blocks.
    """
    found = [block for _, block in blocks(model)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no list of blocks to offload; load it without offload"
        )
    model.requires_grad_(requires_grad=False)
    inside = [_sources_of(block, model, sources) for block in found]
    away = {id(source) for of_one in inside for source in of_one}
    for source in sources:
        if id(source) not in away:
            stored = source.stored(checkpoint)
            out = torch.empty(source.shape, dtype=dtype_of(stored), device=device)
            source.tensor.data = source.values(stored, out)
        else:
            _let_go(source, device)
    move_buffers(model, device)
    model.register_state_dict_pre_hook(_refuse_state)  # type: ignore[no-untyped-call]
    turns = _Turns(inside, checkpoint, device)
    turns.hold_for(model)
    for index, block in enumerate(found):
        turns.attach(block, index)


def _sources_of(block: nn.Module, model: nn.Module, sources: Sequence[Source]) -> list[Source]:
    """The sources of a block's parameters that nothing outside of the block holds."""
    own = {id(parameter) for parameter in block.parameters()}
    within = set(block.modules())
    shared = {
        id(parameter)
        for module in model.modules()
        if module not in within
        for parameter in module.parameters(recurse=False)
    }
    return [source for source in sources if id(source.tensor) in own - shared]


def _let_go(source: Source, device: torch.device) -> None:
    data = source.tensor.data
    source.tensor.data = torch.zeros((), dtype=data.dtype, device=device).expand(source.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fetched:
    """A block's packed weights, near the device.

    Attributes:
        index: The block's number.
        stored: What the checkpoint holds, by source and part.
        arrived: On CUDA, what the computing stream waits for.
    """

    index: int
    stored: list[list[Stored]]
    arrived: torch.cuda.Event | None


class _Turns:
    """Whose turn it is: the block that is decoded, and the next one, which is being fetched."""

    def __init__(
        self, inside: Sequence[Sequence[Source]], checkpoint: Checkpoint, device: torch.device
    ) -> None:
        self._inside = inside
        self._checkpoint = checkpoint
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mpq-offload")
        self._next: Future[_Fetched] | None = None
        self._one_thread = RLock()
        self._stream = _side_stream(device)
        self._packed, self._decoded = _Room(device), _Room(device)

    def hold_for(self, model: nn.Module) -> None:
        """From now on a pass through the model ends before another thread's begins.

        Blocks alone would be right in any order, but what was read ahead would be for nothing.
        """
        run = model.forward

        # A hook would keep the lock after a KeyboardInterrupt: torch calls none then.
        @wraps(run)  # generate() looks for the arguments' names
        def forward(*args: Any, **kwargs: Any) -> Any:
            with self._one_thread:
                return run(*args, **kwargs)

        model.forward = forward

    def attach(self, block: nn.Module, index: int) -> None:
        """From now on the block's weights come when it runs and go when it has run."""
        run = block.forward

        @wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            _refuse_gradients(block, (*args, *kwargs.values()))
            with self._one_thread:
                try:
                    self._decode(index)
                    return run(*args, **kwargs)
                finally:
                    for source in self._inside[index]:
                        _let_go(source, self._device)

        block.forward = forward

    def _decode(self, index: int) -> None:
        ahead, self._next = self._next, None  # whatever it raises, it raises once
        fetched = None if ahead is None else ahead.result()
        if fetched is None or fetched.index != index:
            # By the same thread: after an interrupt it may still be filling the packed room.
            fetched = self._thread.submit(self._fetch, index).result()
        if fetched.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(fetched.arrived)
        pairs = list(zip(self._inside[index], fetched.stored, strict=True))
        self._decoded.clear(
            source.shape.numel() * dtype_of(stored).itemsize for source, stored in pairs
        )
        for source, stored in pairs:
            claimed = [_with_tensors(part, self._claim) for part in stored]
            out = self._decoded.place(source.shape, dtype_of(stored))
            source.tensor.data = source.values(claimed, out)
        # Generation comes back to the first block with the next token.
        self._next = self._thread.submit(self._fetch, (index + 1) % len(self._inside))

    def _fetch(self, index: int) -> _Fetched:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            mapped = [source.stored(self._checkpoint) for source in self._inside[index]]
            self._packed.clear(chain.from_iterable(map(_num_bytes, chain(*mapped))))
            stored = [[_with_tensors(part, self._bring) for part in parts] for parts in mapped]
            arrived = None if self._stream is None else self._stream.record_event()
        return _Fetched(index=index, stored=stored, arrived=arrived)

    def _bring(self, x: Tensor) -> Tensor:
        """A tensor of a mapped file in memory; on CUDA on its way to the device."""
        if self._stream is None:
            return self._packed.place(x.shape, x.dtype).copy_(x)
        return x.pin_memory().to(self._device, non_blocking=True)

    def _claim(self, x: Tensor) -> Tensor:
        """The tensor, whose memory nobody is given before the computing stream has read it."""
        if self._stream is not None:
            x.record_stream(torch.cuda.current_stream(self._device))
        return x


class _Room:
    """Memory that a block's tensors take together, and those of the next block after them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._taken = 0

    def clear(self, sizes: Iterable[int]) -> None:
        """Whatever was placed here is given up, for tensors of so many bytes each."""
        self._taken, needed = 0, sum(_aligned(size) for size in sizes)
        if self._device.type == "cpu" and self._memory.nbytes < needed:
            del self._memory  # before there is more
            self._memory = torch.empty(needed, dtype=torch.uint8)

    def place(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of any values; on CUDA, whose memory torch itself keeps, one of its own."""
        if self._device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self._device)
        start, end = self._taken, self._taken + math.prod(shape) * dtype.itemsize
        self._taken = start + _aligned(end - start)
        return self._memory[start:end].view(dtype).view(shape)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def _with_tensors(stored: Stored, transform: Callable[[Tensor], Tensor]) -> Stored:
    return transform(stored) if isinstance(stored, Tensor) else with_tensors(stored, transform)


def _num_bytes(stored: Stored) -> list[int]:
    """The bytes of each tensor of it."""
    tensors = [stored] if isinstance(stored, Tensor) else stored.tensors.values()
    return [x.nbytes for x in tensors]


def _refuse_gradients(block: nn.Module, arguments: Sequence[Any]) -> None:
    if any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
        raise ModelError(
            f"{type(block).__name__} is offloaded, and its weights are gone before a backward "
            "pass could read them; run under torch.no_grad(), or load without offload"
        )


def _refuse_state(model: nn.Module, *_: Any) -> None:
    raise ModelError(
        f"the weights of this {type(model).__name__} are offloaded, so it has no state dict to "
        "save, hash or copy; load it without offload"
    )
