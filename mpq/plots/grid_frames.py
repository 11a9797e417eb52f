"""Plans and damage tables -> rows: the grids of sites behind the heat maps."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mpq.errors import PlanError, RunError
from mpq.files import read_toml
from mpq.formats.format import Format
from mpq.plans.plan import Plan, parse_formats
from mpq.plots.places import place, row_keys, row_labels
from mpq.run import DAMAGE_UNITS, PLANS


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRows:
    """A plan as a grid of layer kinds by blocks.

    Attributes:
        rows: One row a cell: `section` (weights, inputs, ...), `row` (index from the top),
            `label` of that row, `block` (-1 outside of blocks), `bits` (nominal bits a value,
            the mean where a cell holds several sites), `format` (empty where they differ).
        formats: One row a format of the plan, fewest bits first: `format`, `bits`.
    """

    rows: pd.DataFrame
    formats: pd.DataFrame


def allocation_rows(source: Any, *, plan: str | None = None) -> AllocationRows:
    """The cells of a plan: one a kind of layer, role and block.

    Args:
        source: A `Plan`, the TOML file of one, or a run directory (path or `Run`).
        plan: Which of the run's plans, by the name of its file without `.toml`; may be left out
            when there is one only.

    Raises:
        RunError: The run has no such plan, or several and none was named.
        PlanError: The file is no plan, or its rules are globs (draw the resolved plan).
    """
    formats = source.formats if isinstance(source, Plan) else _read_formats(source, plan)
    if not formats:
        raise PlanError("a plan must give at least one site a format to be drawn")
    places = {site: place(site) for site in formats}
    keys = row_keys(places.values())
    labels, order = row_labels(keys), {key: index for index, key in enumerate(keys)}
    sites = pd.DataFrame(
        {
            "section": places[site].section,
            "row": order[places[site].path, places[site].role],
            "label": labels[places[site].path, places[site].role],
            "block": places[site].block,
            "bits": float(given.bits_per_value),
            "format": str(given),
        }
        for site, given in formats.items()
    )
    cells = sites.groupby(["section", "row", "label", "block"], as_index=False)
    rows = cells.agg(bits=("bits", "mean"), format=("format", _one_or_none))
    used = sites[["format", "bits"]].drop_duplicates().sort_values(["bits", "format"])
    return AllocationRows(
        rows=rows.sort_values(["row", "block"], ignore_index=True),
        formats=used.reset_index(drop=True),
    )


def _one_or_none(texts: "pd.Series[str]") -> str:
    return texts.iloc[0] if texts.nunique() == 1 else ""


def _read_formats(source: Any, name: str | None) -> Mapping[str, Format]:
    path = Path(getattr(source, "path", source))
    if path.is_dir():
        path = _one_file(path / PLANS, "*.toml", name, "plan")
    table = read_toml(path).get("formats", {})
    globs = [site for site in table if set(site) & set("*?[")]
    if globs or not isinstance(table, Mapping):
        raise PlanError(
            f"{path}: a figure needs the sites by their exact names, and these rules are globs: "
            f"{', '.join(globs)}; resolve the plan with mpq.plans.rules.read_plan and draw that"
        )
    return dict(parse_formats(table.items()))


def sensitivity_rows(source: Any, *, method: str | None = None) -> pd.DataFrame:
    """The cells of a damage table, every site with every format.

    The columns are `row` (from the top: blocks in order, inside a block the order of its
    matmuls), `site`, `label`, `section`, `block`, `format`, `bits` (a value, which formats are
    ordered by), `damage` (NaN where it was not measured) and `unit` (the damage's).

    Args:
        source: A run directory (path or `Run`), the CSV of a table, or a damage table (anything
            with its `rows()`).
        method: Which of the run's tables, a key of `mpq.run.DAMAGE_UNITS`; may be left out when
            there is one.

    Raises:
        RunError: The run has no such table, or several and none was named.
    """
    table = _read_damage(source, method)
    places = {site: place(site) for site in table["site"].unique()}
    keys = row_keys(places.values())
    labels, order = row_labels(keys), {key: index for index, key in enumerate(keys)}
    last = max(one.block for one in places.values()) + 1
    ranks = {
        site: (one.block if one.block >= 0 else last, order[one.path, one.role])
        for site, one in places.items()
    }
    sites = pd.DataFrame(
        {
            "site": site,
            "label": labels[places[site].path, places[site].role],
            "section": places[site].section,
            "block": places[site].block,
            "row": row,
        }
        for row, site in enumerate(sorted(places, key=lambda site: ranks[site]))
    )
    texts = dict.fromkeys(table["format"])
    bits = {
        text: float(given.bits_per_value) for text, given in parse_formats((t, t) for t in texts)
    }
    grid = sites.merge(pd.DataFrame({"format": bits.keys(), "bits": bits.values()}), how="cross")
    rows = grid.merge(table[["site", "format", "damage"]], on=["site", "format"], how="left")
    rows["unit"] = _unit(table)
    return rows.sort_values(["row", "bits", "format"], ignore_index=True)


def _unit(table: pd.DataFrame) -> str:
    """The unit of a table's damages: nats per token where it says no method that has another."""
    method = table["method"].iloc[0] if "method" in table else ""
    return DAMAGE_UNITS.get(method, "nats per token")


def _read_damage(source: Any, method: str | None) -> pd.DataFrame:
    if hasattr(source, "rows"):
        return pd.DataFrame(source.rows())
    path = Path(getattr(source, "path", source))
    if path.is_dir():
        name = method and f"sensitivity_{method}"
        path = _one_file(path, "sensitivity*.csv", name, "damage table")
    if not path.is_file():
        raise RunError(f"{path}: there is no damage table; mpq-profile sensitivity makes one")
    table = pd.read_csv(path)
    lacking = {"site", "format", "damage"} - set(table.columns)
    if lacking or table.empty:
        raise RunError(
            f"{path}: a damage table has rows of site, format and damage; "
            f"{'it lacks ' + ', '.join(sorted(lacking)) if lacking else 'it has no row'}"
        )
    return table


def _one_file(folder: Path, pattern: str, name: str | None, what: str) -> Path:
    there = {path.stem: path for path in sorted(folder.glob(pattern))}
    if name is None and len(there) == 1:
        return next(iter(there.values()))
    if name not in there:
        asked = f"no {what} {name!r}" if name else f"{len(there)} files, so name the {what}"
        raise RunError(f"{folder}: {asked}; it holds {', '.join(there) or 'none'}")
    return there[name]
