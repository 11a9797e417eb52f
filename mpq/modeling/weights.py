"""Weights seen through their formats: swapped in place, given back bit for bit.

A parameter stays the same object for every layer that shares it (a tied head); only the storage
behind it changes, so nothing is copied but the quantised values, and gradients reach the
parameter as if quantisation were the identity.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from weakref import ref

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class _Key:
    parameter: int
    part: int | None
    format: str


@dataclass(frozen=True, slots=True)
class _Entry:
    parameter: "ref[nn.Parameter]"
    version: tuple[int, int]
    values: Tensor


class WeightCache:
    """Quantised weights per (tensor, format), least recently used out under a byte cap.

    An entry holds for the tensor it was made from: a weight that was trained or reloaded since
    is quantised anew.
    """

    def __init__(self, max_bytes: int) -> None:
        """Starts empty; `max_bytes` bounds the quantised values that are kept."""
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(
        self,
        parameter: nn.Parameter,
        part: int | None,
        format: str,
        make: Callable[[], Tensor],
    ) -> Tensor:
        """The values kept for this part of a parameter in this format; made where there are none.

        Args:
            parameter: The tensor that is quantised.
            part: Index along its first axis (an expert's slice), None for the whole.
            format: The format's text.
            make: Quantises; called only on a miss.
        """
        key = _Key(id(parameter), part, format)
        version = (parameter._version, parameter.data_ptr())
        entry = self._entries.get(key)
        if entry is not None and entry.parameter() is parameter and entry.version == version:
            self._entries.move_to_end(key)
            return entry.values
        values = make()
        self._drop(key)
        if values.nbytes <= self.max_bytes:
            self._entries[key] = _Entry(ref(parameter), version, values)
            self.num_bytes += values.nbytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
        return values

    def _drop(self, key: _Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry.values.nbytes


Quantize = Callable[[Tensor], Tensor]


def quantized(
    parameter: nn.Parameter,
    parts: Mapping[int | None, tuple[str, Quantize]],
    cache: WeightCache,
) -> Tensor:
    """The parameter's values with the named parts quantised, the others as they are.

    Args:
        parameter: The tensor.
        parts: Index along the first axis (None: the whole tensor) -> format text and quantizer.
        cache: Where quantised values are looked for and kept.
    """
    whole = parameter.detach()
    if None in parts:
        text, quantize = parts[None]
        return cache.get(parameter, None, text, partial(quantize, whole))
    values = whole.clone()
    for part, (text, quantize) in parts.items():
        values[part] = cache.get(parameter, part, text, partial(quantize, whole[part]))
    return values


@contextmanager
def swapped(values: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """A context in which each parameter holds other values; its own storage is back afterwards."""
    own = [(parameter, parameter.data) for parameter, _ in values]
    try:
        for parameter, data in values:
            parameter.data = data
        yield
    finally:
        for parameter, data in own:
            parameter.data = data
