"""Random mixed plans: over the whole range of bits, and of nearly equal bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from mpq.errors import BudgetError
from mpq.formats.format import Format
from mpq.plans.site import Site

MAX_DRAWS = 20_000
"""How many plans are drawn in search of one within the tolerance, before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A random plan.

    Attributes:
        formats: Site name -> format.
        bits: Stored bits a value, the mean over all values of the sites.
    """

    formats: Mapping[str, Format]
    bits: float


def draw_over_range(
    candidates: Mapping[Site, Sequence[Format]], count: int, seed: int
) -> list[Drawn]:
    """`count` plans whose expected bits are the middles of `count` equal parts of the range.

    A site's format is drawn from the distribution of greatest entropy over its candidates with
    the expected bits that are asked for (probabilities exp(λ bits), one λ for all sites; Jaynes,
    "Information Theory and Statistical Mechanics", 1957), the sites independently of each other.
    """
    table = _Table.of(candidates)
    rng = np.random.default_rng([seed, 0])
    low, high = table.range()
    wanted = low + (np.arange(count) + 0.5) / count * (high - low)
    return [table.draw(table.tilt(bits), rng) for bits in wanted]


def draw_at(
    candidates: Mapping[Site, Sequence[Format]],
    count: int,
    seed: int,
    *,
    bits: float,
    tolerance: float,
) -> list[Drawn]:
    """`count` plans of `bits` ± `tolerance` bits: those of such draws that happen to lie there.

    Raises:
        BudgetError: The bits lie outside of the range, or no draw comes near enough.
    """
    table = _Table.of(candidates)
    low, high = table.range()
    if not low < bits < high:
        raise BudgetError(f"plans have between {low:.3f} and {high:.3f} bits a value, not {bits}")
    rng = np.random.default_rng([seed, 1])
    tilt = table.tilt(bits)
    drawn: list[Drawn] = []
    for _ in range(MAX_DRAWS):
        if len(drawn) == count:
            break
        plan = table.draw(tilt, rng)
        if abs(plan.bits - bits) <= tolerance:
            drawn.append(plan)
    if len(drawn) < count:
        raise BudgetError(
            f"{len(drawn)} of {MAX_DRAWS} plans have {bits} ± {tolerance} bits a value, "
            f"{count} are wanted; take a wider tolerance or other bits"
        )
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Table:
    """What the draws look up.

    Attributes:
        candidates: Site -> its formats.
        bits: For each site the stored bits of each of its candidates.
        values: Values of each site.
    """

    candidates: Mapping[Site, Sequence[Format]]
    bits: list[NDArray[np.float64]]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, candidates: Mapping[Site, Sequence[Format]]) -> "_Table":
        return cls(
            candidates=candidates,
            bits=[
                np.array([fmt.bits(site.shape) for fmt in formats], dtype=float)
                for site, formats in candidates.items()
            ],
            values=np.array([np.prod(site.shape) for site in candidates], dtype=float),
        )

    def range(self) -> tuple[float, float]:
        """The fewest and the most bits a value that a plan can have."""
        total = self.values.sum()
        return sum(b.min() for b in self.bits) / total, sum(b.max() for b in self.bits) / total

    def chances(self, tilt: float) -> list[NDArray[np.float64]]:
        """For each site the probabilities of its candidates."""
        found = []
        for bits, size in zip(self.bits, self.values, strict=True):
            exponent = tilt * bits / size
            weight = np.exp(exponent - exponent.max())
            found.append(weight / weight.sum())
        return found

    def tilt(self, bits: float) -> float:
        """The λ at which a plan is expected to have `bits` bits a value."""

        def excess(tilt: float) -> float:
            chances = self.chances(tilt)
            expected = sum(float(p @ b) for p, b in zip(chances, self.bits, strict=True))
            return expected / float(self.values.sum()) - bits

        return float(brentq(excess, -100.0, 100.0))

    def draw(self, tilt: float, rng: np.random.Generator) -> Drawn:
        """One plan under a tilt."""
        chosen = [rng.choice(len(p), p=p) for p in self.chances(tilt)]
        names = zip(self.candidates.items(), chosen, strict=True)
        total = sum(float(b[index]) for b, index in zip(self.bits, chosen, strict=True))
        return Drawn(
            formats={site.name: formats[index] for (site, formats), index in names},
            bits=total / float(self.values.sum()),
        )
