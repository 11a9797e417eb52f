"""Hidden states on their way through a model: one stream a purpose, advanced block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mpq.files import write_atomic
from mpq.modeling.block_calls import BlockCall, enter_blocks, moved, run_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


class HiddenStates:
    """Tensors by number, in memory or, where a folder is given, one file each."""

    def __init__(self, folder: Path | None = None) -> None:
        """Starts empty; a folder is made where it is missing."""
        self._folder = folder
        self._kept: dict[int, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, number: int) -> Tensor:
        if self._folder is None:
            return self._kept[number]
        return load_file(self._path(number))["hidden"]

    def __setitem__(self, number: int, hidden: Tensor) -> None:
        if self._folder is None:
            self._kept[number] = hidden.cpu()
        else:
            write_atomic(self._path(number), save({"hidden": hidden.cpu().contiguous()}))

    def _path(self, number: int) -> Path:
        return Path(f"{self._folder}") / f"{number:05}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Batches of windows on their way through the blocks of a model.

    Attributes:
        batches: Token ids [windows, tokens], one tensor a batch.
        hidden: What enters the next block, by batch.
        calls: What the model hands to each block beside it, by batch.
    """

    batches: tuple[Tensor, ...]
    hidden: HiddenStates
    calls: tuple[tuple[BlockCall, ...], ...]

    @property
    def num_windows(self) -> int:
        """Windows in all batches."""
        return sum(len(batch) for batch in self.batches)


def start_stream(
    model: PreTrainedModel, batches: Sequence[Tensor], folder: Path | None = None
) -> Stream:
    """A stream that stands before the first block.

    Args:
        model: The model, its embeddings as the stream is to see them.
        batches: Token ids [windows, tokens].
        folder: Where hidden states are kept; None keeps them in memory.

    Raises:
        ModelError: The model's blocks are not called once each, in order.
    """
    hidden = HiddenStates(folder)
    calls: list[tuple[BlockCall, ...]] = []
    for number, batch in enumerate(batches):
        entrance = enter_blocks(model, batch)
        hidden[number] = entrance.hidden
        # Masks and positions of windows of one length are alike; each is kept once.
        is_known = bool(calls) and _alike(calls[-1], entrance.calls)
        calls.append(calls[-1] if is_known else entrance.calls)
    return Stream(batches=tuple(batches), hidden=hidden, calls=tuple(calls))


def passes(
    stream: Stream, block: nn.Module, index: int, device: torch.device
) -> Iterator[Callable[[], Tensor]]:
    """One function a batch that runs the block on it and gives the hidden states that come out.

    Args:
        stream: Stands before the block.
        block: On the device.
        index: The block's number.
        device: Where the block lies.
    """
    for number in range(len(stream.batches)):
        yield partial(_run, stream, block, index, device, number)


@torch.no_grad()
def advance(stream: Stream, block: nn.Module, index: int, device: torch.device) -> None:
    """The stream behind the block: its hidden states become those that come out."""
    for number, run in enumerate(passes(stream, block, index, device)):
        stream.hidden[number] = run()


@torch.no_grad()
def _run(
    stream: Stream, block: nn.Module, index: int, device: torch.device, number: int
) -> Tensor:
    call = moved(stream.calls[number][index], device)
    # A copy: a block may add to its input in place, and the states may be kept in memory.
    hidden = stream.hidden[number].to(device, copy=True)
    return run_block(block, hidden, call)


def _alike(one: Any, other: Any) -> bool:
    """Equality that looks into tensors, calls and collections."""
    if type(one) is not type(other):
        return False
    match one:
        case Tensor():
            return one.shape == other.shape and one.dtype == other.dtype and one.equal(other)
        case BlockCall():
            return one.by_name == other.by_name and _alike(
                (one.args, dict(one.kwargs)), (other.args, dict(other.kwargs))
            )
        case tuple() | list():
            return len(one) == len(other) and all(map(_alike, one, other))
        case dict():
            return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return bool(one == other)
