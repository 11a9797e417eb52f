"""The damage table: how much worse the model gets with one site in one format.

No torch here: a search reads the table on a machine that may hold no model. The artefact is one
CSV of a row per pair, which carries what it was measured on, so that it cannot be parted from it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpq.errors import RunError
from mpq.plans.plan import Plan
from mpq.profiling.resuming import differing
from mpq.run import write_atomic

FACTS = ("method", "tokens", "judge_every", "seed", "fingerprint", "data_sha256")
"""What a table was measured on: the same in every row of its CSV."""

COLUMNS = ("site", "format", "damage", *FACTS)
"""The CSV's header."""


def table_name(method: str) -> str:
    """The file name of a method's table in a run directory: `sensitivity_fisher.csv`."""
    return f"sensitivity_{method}.csv"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DamageTable:
    """`damage[site, format]`, and what it was measured on.

    Attributes:
        method: How it was measured, a key of `mpq.run.DAMAGE_UNITS`.
        sites: Names of the rows.
        formats: Text forms of the columns.
        damage: float64 `[sites, formats]` in the method's unit: nats per token (per example for
            classification), for `mse` squared units of the weight; NaN where nothing was measured.
        tokens: Tokens (examples) that the measurement looked at; 0 for a method without data.
        fingerprint: Of the model.
        data_sha256: Of the text; empty for a method without data.
        seed: Of what the method draws at random; 0 for a method that draws nothing.
        judge_every: Every how many positions were judged; 1 for a method that judges none.
    """

    method: str
    sites: tuple[str, ...]
    formats: tuple[str, ...]
    damage: NDArray[np.float64]
    tokens: int
    fingerprint: str
    data_sha256: str
    seed: int = 0
    judge_every: int = 1

    @classmethod
    def empty(
        cls,
        *,
        method: str,
        tokens: int,
        fingerprint: str,
        data_sha256: str,
        seed: int = 0,
        judge_every: int = 1,
    ) -> DamageTable:
        """A table of no site: what a profile starts from."""
        return cls(
            method=method,
            sites=(),
            formats=(),
            damage=np.empty((0, 0)),
            tokens=tokens,
            fingerprint=fingerprint,
            data_sha256=data_sha256,
            seed=seed,
            judge_every=judge_every,
        )

    @classmethod
    def read(cls, path: Path | str) -> DamageTable:
        """The table in the CSV file at `path`.

        Raises:
            RunError: The file is not there, or is not a table that `write` wrote.
        """
        path = Path(path)
        if not path.is_file():
            raise RunError(
                f"there is no damage table at {path}; `mpq-profile sensitivity` makes one"
            )
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        try:
            return _from_rows(rows)
        except (KeyError, ValueError, TypeError) as error:
            raise RunError(
                f"{path} is not a damage table ({error}); its columns must be "
                f"{', '.join(COLUMNS)}. Delete the file and profile again"
            ) from error

    def write(self, path: Path | str) -> None:
        """Writes the measured pairs as CSV, atomically: a killed write leaves the old file."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        write_atomic(Path(path), text.getvalue())

    def rows(self) -> list[dict[str, str | float | int]]:
        """One row of `COLUMNS` for each measured pair, sites in order."""
        facts: dict[str, str | int] = {name: getattr(self, name) for name in FACTS}
        return [
            {"site": site, "format": text, "damage": float(self.damage[i, j]), **facts}
            for i, site in enumerate(self.sites)
            for j, text in enumerate(self.formats)
            if not math.isnan(self.damage[i, j])
        ]

    def select(self, sites: Sequence[str], formats: Sequence[str]) -> NDArray[np.float64]:
        """Damage `[sites, formats]` of any names, in any order; NaN where not measured."""
        row = {site: index for index, site in enumerate(self.sites)}
        column = {text: index for index, text in enumerate(self.formats)}
        chosen = np.full((len(sites), len(formats)), math.nan)
        for i, site in enumerate(sites):
            for j, text in enumerate(formats):
                if site in row and text in column:
                    chosen[i, j] = self.damage[row[site], column[text]]
        return chosen

    def with_damage(self, damage: Mapping[tuple[str, str], float]) -> DamageTable:
        """This table with the pairs (site, format) of `damage` added or replaced."""
        sites = _union(self.sites, (site for site, _ in damage))
        formats = _union(self.formats, (text for _, text in damage))
        values = self.select(sites, formats)
        row = {site: index for index, site in enumerate(sites)}
        column = {text: index for index, text in enumerate(formats)}
        for (site, text), value in damage.items():
            values[row[site], column[text]] = value
        return replace(self, sites=sites, formats=formats, damage=values)

    def merge(self, other: DamageTable) -> DamageTable:
        """The pairs of both; where both have one, `other`'s.

        Raises:
            RunError: They were measured by other methods, or on another model or text.
        """
        self.check_same_measurement(other)
        sites = _union(self.sites, other.sites)
        formats = _union(self.formats, other.formats)
        mine, others = self.select(sites, formats), other.select(sites, formats)
        damage = np.where(np.isnan(others), mine, others)
        return replace(self, sites=sites, formats=formats, damage=damage)

    def check_same_measurement(self, other: DamageTable) -> None:
        """Raises RunError, with everything that differs, unless `other` measures the same."""
        differences = differing(self, other, FACTS)
        if differences:
            raise RunError(
                "two damage tables can only be put together if they measure the same thing; "
                f"these differ in {', '.join(differences)}. Profile into another directory"
            )

    def predict(self, plan: Plan) -> float:
        """The plan's damage if damages add up: Σ damage[site, plan[site]], in the table's unit.

        Identity formats count 0.

        Raises:
            RunError: The plan has pairs that were not measured.
        """
        row = {site: index for index, site in enumerate(self.sites)}
        column = {text: index for index, text in enumerate(self.formats)}
        pairs = [
            (site, str(format_))
            for site, format_ in plan.formats.items()
            if not format_.is_identity
        ]
        damages = [
            float(self.damage[row[site], column[text]])
            if site in row and text in column
            else math.nan
            for site, text in pairs
        ]
        missing = [
            " = ".join(pair)
            for pair, value in zip(pairs, damages, strict=True)
            if math.isnan(value)
        ]
        if missing:
            raise RunError(
                f"the damage table lacks {len(missing)} of the plan's {len(pairs)} pairs: "
                f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; "
                "profile these formats too"
            )
        return math.fsum(damages)

    def rank_correlation(self, other: DamageTable) -> RankCorrelation:
        """How alike two tables rank their common pairs, over all and within each format.

        Source: Spearman, "The Proof and Measurement of Association between Two Things" (1904).
        """
        from scipy.stats import spearmanr

        def correlate(mine: NDArray[np.float64], others: NDArray[np.float64]) -> float:
            common = np.isfinite(mine) & np.isfinite(others)
            x, y = mine[common], others[common]
            if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
                return math.nan
            return float(spearmanr(x, y).statistic)

        others = other.select(self.sites, self.formats)
        common = np.isfinite(self.damage) & np.isfinite(others)
        return RankCorrelation(
            overall=correlate(self.damage.ravel(), others.ravel()),
            by_format={
                text: correlate(self.damage[:, j], others[:, j])
                for j, text in enumerate(self.formats)
                if common[:, j].any()
            },
            num_pairs=int(common.sum()),
            total=float(self.damage[common].sum()),
            other_total=float(others[common].sum()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCorrelation:
    """How alike two damage tables are.

    Attributes:
        overall: Spearman's coefficient over all common pairs; NaN for fewer than three.
        by_format: The same over the sites, for each format.
        num_pairs: Pairs with a finite damage in both.
        total: Sum of the first table's damage over them, in its unit.
        other_total: The second's.
    """

    overall: float
    by_format: Mapping[str, float]
    num_pairs: int
    total: float
    other_total: float


def _union(first: Sequence[str], second: Iterable[str]) -> tuple[str, ...]:
    """The names of both in the order in which they first come."""
    return tuple(dict.fromkeys((*first, *second)))


def _from_rows(rows: Sequence[Mapping[str, str]]) -> DamageTable:
    """A table of CSV rows; KeyError, TypeError or ValueError where they are not one."""
    facts = {tuple(row[name] for name in FACTS) for row in rows}
    if len(facts) != 1:
        raise ValueError(f"it holds {len(facts)} measurements, not one")
    method, tokens, judge_every, seed, fingerprint, data_sha256 = facts.pop()
    table = DamageTable.empty(
        method=method,
        tokens=int(tokens),
        seed=int(seed),
        judge_every=int(judge_every),
        fingerprint=fingerprint,
        data_sha256=data_sha256,
    )
    return table.with_damage({(row["site"], row["format"]): float(row["damage"]) for row in rows})
