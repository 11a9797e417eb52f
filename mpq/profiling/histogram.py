"""A histogram of values over all binades of float32: fixed memory, quantiles to one part in 32.

A bin is the values that agree in sign, exponent and the first five bits of the mantissa, so its
index is the top 14 bits of the float32, and its width is 1/32 of its binade. Percentiles of
magnitudes, shares of outliers and the error of a fixed point follow from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MANTISSA_BITS = 5
RESOLUTION = 2.0**-MANTISSA_BITS
"""Width of a bin in units of its binade: the relative error of a percentile is below it."""

PIECE = 1 << 17
"""Values that are counted at a time: 512 KiB of float32, so that a piece stays in the L2 cache."""

_SHIFT = 23 - MANTISSA_BITS
_NUM_POSITIVE = 1 << (8 + MANTISSA_BITS)
NUM_BINS = 2 * _NUM_POSITIVE
"""16,384 bins, 128 KiB of counts."""

_NUM_FINITE = 255 << MANTISSA_BITS
"""Bins of one sign that hold finite values; those above are of infinities and NaN."""

# Index -> the bin's smallest and largest magnitude, for the finite bins of one sign.
_EDGES = (np.arange(_NUM_FINITE + 1, dtype=np.uint32) << _SHIFT).view(np.float32).astype(float)
_EDGES[-1] = 2.0**128
_EDGES.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """Bins that are not empty.

    Attributes:
        inner: float64 `[N]`, the magnitude at which each begins.
        outer: float64 `[N]`, the magnitude at which it ends.
        positive: int64 `[N]`, how many positive values (and zeros) each holds.
        negative: int64 `[N]`, how many negative ones.
    """

    inner: NDArray[np.float64]
    outer: NDArray[np.float64]
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """How many values of a stream fell into each bin.

    Attributes:
        counts: int64 `[NUM_BINS]`; non-negative values first, then negative ones, each from zero
            up.
    """

    counts: NDArray[np.int64]

    @classmethod
    def of(cls, x: Tensor) -> Histogram:
        """The histogram of a tensor of any shape; values are rounded to float32 for it."""
        counts = torch.zeros(NUM_BINS, dtype=torch.int64, device=x.device)
        for piece in torch.split(x.detach().reshape(-1), PIECE):
            codes = piece.float().contiguous().view(torch.int32) >> _SHIFT
            counts += torch.bincount(codes & (NUM_BINS - 1), minlength=NUM_BINS)
        return cls(counts=counts.cpu().numpy())

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both streams together."""
        return Histogram(counts=self.counts + other.counts)

    @property
    def num_nonfinite(self) -> int:
        """Infinities and NaN."""
        return int(sum(half[_NUM_FINITE:].sum() for half in self._halves()))

    @property
    def bins(self) -> Bins:
        """The bins that hold a finite value, from zero up."""
        positive, negative = (half[:_NUM_FINITE] for half in self._halves())
        used = np.flatnonzero(positive + negative)
        return Bins(
            inner=_EDGES[used],
            outer=_EDGES[used + 1],
            positive=positive[used],
            negative=negative[used],
        )

    def quantile(self, share: float) -> float:
        """The magnitude that `share` of all finite values do not exceed; NaN where there is none.

        Interpolated within the bin that holds the true one, so it is off by less than
        `RESOLUTION` of it (and by less than 2^-131 below float32's normal numbers).
        """
        bins = self.bins
        held = bins.positive + bins.negative
        if not len(held):
            return math.nan
        reached = np.cumsum(held)
        rank = share * float(reached[-1])
        at = min(int(np.searchsorted(reached, rank)), len(held) - 1)
        if bins.inner[at] == 0:  # almost always true zeros, which no interpolation should move
            return 0.0
        inside = (rank - float(reached[at] - held[at])) / float(held[at])
        width = float(bins.outer[at] - bins.inner[at])
        return float(bins.inner[at]) + width * min(max(inside, 0.0), 1.0)

    def share_outside(self, low: float, high: float) -> float:
        """The share of finite values below `low` or above `high`; NaN where there is none.

        The bins that the two bounds fall into count by the part of them that lies outside, so the
        answer is off by less than the share of values in these two bins.
        """
        bins = self.bins
        total = int((bins.positive + bins.negative).sum())
        if not total:
            return math.nan
        width = bins.outer - bins.inner
        above = np.clip((bins.outer - high) / width, 0, 1) * bins.positive
        above += np.clip((-bins.inner - high) / width, 0, 1) * bins.negative
        below = np.clip((low - bins.inner) / width, 0, 1) * bins.positive
        below += np.clip((low + bins.outer) / width, 0, 1) * bins.negative
        return float(above.sum() + below.sum()) / total

    def _halves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.counts[:_NUM_POSITIVE], self.counts[_NUM_POSITIVE:]
