"""Count, mean and central moments of a stream of values, in memory that does not grow.

Values are taken in pieces. A piece's sums are formed about its own mean, and pieces are joined by
formulas that only ever add differences of means, so a large offset costs no digits.

Sources: Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances" (1979), equation 2.1, for the variance; Pébay, "Formulas for Robust, One-Pass Parallel
Computation of Covariances and Arbitrary-Order Statistical Moments" (SAND2008-6212), equations 2.1
and 3.1, for the third and fourth moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

PIECE = 1 << 16
"""Values of a piece: 512 KiB of float64, so that a piece and its powers stay in the L2 cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What is kept of a stream of finite values.

    Attributes:
        count: How many values.
        mean: Their mean.
        m2: Σ (x - mean)².
        m3: Σ (x - mean)³.
        m4: Σ (x - mean)⁴.
        low: The smallest value; 0 where there is none.
        high: The largest value; 0 where there is none.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """The moments of a tensor's finite values, of any shape and dtype, summed in float64."""
        pieces = torch.split(x.detach().reshape(-1), PIECE)
        sums = [_sums(piece) for piece in pieces if piece.numel()]
        if not sums:
            return cls()
        found = torch.stack(sums).cpu()
        if not bool(found.isfinite().all()):
            return cls._of_finite(pieces)
        sizes = [piece.numel() for piece in pieces]
        return reduce(cls.merge, map(_moments, sizes, found.tolist()))

    @classmethod
    def _of_finite(cls, pieces: tuple[Tensor, ...]) -> Moments:
        kept = [piece[piece.isfinite()] for piece in pieces]
        parts = [_moments(one.numel(), _sums(one).tolist()) for one in kept if one.numel()]
        return reduce(cls.merge, parts, cls())

    def merge(self, other: Moments) -> Moments:
        """The moments of both streams together."""
        if not self.count or not other.count:
            return other if not self.count else self
        n, k = self.count, other.count
        total = n + k
        delta = other.mean - self.mean
        # Pébay's factors, each small where the means are close.
        step = delta / total
        cross = step * delta * n * k
        m3 = self.m3 + other.m3 + cross * step * (n - k)
        m3 += 3 * step * (n * other.m2 - k * self.m2)
        m4 = self.m4 + other.m4 + cross * step * step * (n * n - n * k + k * k)
        m4 += 6 * step * step * (n * n * other.m2 + k * k * self.m2)
        m4 += 4 * step * (n * other.m3 - k * self.m3)
        return Moments(
            count=total,
            mean=self.mean + step * k,
            m2=self.m2 + other.m2 + cross,
            m3=m3,
            m4=m4,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
        )

    @property
    def variance(self) -> float:
        """Σ (x - mean)² / count, as numpy's default; NaN where there is no value."""
        return self.m2 / self.count if self.count else math.nan

    @property
    def kurtosis(self) -> float:
        """Excess kurtosis count · m4 / m2² - 3: 0 for a normal distribution, 3 for Laplace's.

        NaN where all values are one, or there is none. Source: Pearson 1905; biased by 1 / count
        as scipy's default.
        """
        return self.count * self.m4 / self.m2 / self.m2 - 3 if self.m2 else math.nan

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))


def _sums(piece: Tensor) -> Tensor:
    """Mean, Σd², Σd³, Σd⁴ of the deviations d from it, minimum and maximum: float64 `[6]`."""
    x = piece.double()
    mean = x.mean()
    d = x - mean
    squares = d * d
    sums = (mean, squares.sum(), (squares * d).sum(), (squares * squares).sum(), x.min(), x.max())
    return torch.stack(sums)


def _moments(count: int, sums: list[float]) -> Moments:
    mean, m2, m3, m4, low, high = sums
    return Moments(count=count, mean=mean, m2=m2, m3=m3, m4=m4, low=low, high=high)
