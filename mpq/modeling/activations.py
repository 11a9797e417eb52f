"""Activations through their formats: blocks of probabilities, inputs that layers share."""

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor

from mpq.formats.format import Format
from mpq.kernels.fake_quant import quantize
from mpq.modeling.attention import Keys


def quantize_probs(x: Tensor, fmt: Format, keys: Keys) -> Tensor:
    """Attention probabilities [batch, heads, queries, keys] in a format, same shape and dtype.

    Blocks are numbered by the key's position counted from the sequence's first unmasked token,
    so padding, other sequences of the batch and keys that a sliding cache has dropped do not
    move their borders. The values that stand in for absent keys are zeros, as the probabilities
    of masked keys are, and change no block's scale.
    """
    columns = fmt.block.columns if fmt.block is not None else 0
    if not columns:
        return quantize(x, fmt)
    phases = keys.phases(columns)
    if len(set(phases)) == 1:
        return _from_phase(x, fmt, phases[0])
    rows = zip(torch.split(x, 1), phases, strict=True)
    return torch.cat([_from_phase(row, fmt, phase) for row, phase in rows])


def _from_phase(x: Tensor, fmt: Format, phase: int) -> Tensor:
    """`x` quantised as if `phase` zeros stood before its first column."""
    if not phase:
        return quantize(x, fmt)
    return quantize(torch.nn.functional.pad(x, (phase, 0)), fmt)[..., phase:]


class Repeats:
    """A quantizer that remembers its last answer: q, k and v projections read one tensor.

    Only within a fusion group, whose layers read the same values by definition, and only the last
    answer, so that nothing is held for longer than until the next group.
    """

    def __init__(self) -> None:
        self._seen: Callable[[], Tensor | None] = lambda: None
        self._asked: tuple[int, Format, str, bool] | None = None
        self._answer: Tensor | None = None

    def quantize(self, x: Tensor, fmt: Format, group: str) -> Tensor:
        """`x` in a format, blocks along its last axis; `group` names who shares the answer."""
        version = 0 if x.is_inference() else x._version
        asked = (version, fmt, group, torch.is_grad_enabled())
        if self._answer is not None and self._asked == asked and self._seen() is x:
            return self._answer
        self._answer, self._asked, self._seen = quantize(x, fmt), asked, ref(x)
        return self._answer
