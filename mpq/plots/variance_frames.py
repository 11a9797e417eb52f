"""The variance table -> rows: one line of a figure for each kind of tensor, over the blocks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mpq.errors import RunError
from mpq.plots.places import OUTSIDE, place, row_keys, row_labels
from mpq.run import VARIANCE

COLUMNS = ("site", "count", "mean", "variance")


def variance_rows(source: Any) -> pd.DataFrame:
    """The variance of every kind of tensor in every block.

    The columns are `section` (attention, inputs, outputs, weights, biases), `line` (index
    from the first section on, inside a section in the order of the matmuls), `label`, `block`, and
    `variance` of all finite values of that kind in the block (of all experts, for instance). Sites
    outside of blocks have no row; tensors that are one (what q, k and v projections read) share a
    line.

    Args:
        source: A run directory (path or `Run`), or the CSV of a variance table.

    Raises:
        RunError: There is no such table, or it has no site inside of a block.
    """
    table = _read(source)
    places = {site: place(site) for site in table["site"]}
    inside = table[[places[site].block != OUTSIDE for site in table["site"]]]
    if inside.empty:
        raise RunError(f"{source}: none of the {len(table)} sites lies in a block; profile more")
    keys = row_keys(places[site] for site in inside["site"])
    labels, order = row_labels(keys), {key: index for index, key in enumerate(keys)}
    rows = inside.assign(
        section=[places[site].section for site in inside["site"]],
        key=[order[places[site].path, places[site].role] for site in inside["site"]],
        block=[places[site].block for site in inside["site"]],
    )
    pooled = _pool(rows)
    names = [labels[key] for key in keys]
    return _merge_shared(pooled, names)


def _pool(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and variance of the values of all tensors together that share a key and a block."""
    same = ["section", "key", "block"]

    def total(column: "pd.Series[float]") -> "pd.Series[float]":
        return column.groupby([rows[name] for name in same]).transform("sum")

    share = rows["count"] / total(rows["count"])
    mean = total(share * rows["mean"])
    # The law of total variance, about the joint mean: a large offset costs no digits.
    variance = total(share * (rows["variance"] + (rows["mean"] - mean) ** 2))
    pooled = rows.assign(mean=mean, variance=variance)[[*same, "mean", "variance"]]
    return pooled.drop_duplicates(same).sort_values(["key", "block"], ignore_index=True)


def _merge_shared(pooled: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One line for the tensors of a section whose mean and variance agree in every block."""
    parts: dict[tuple[Any, ...], pd.DataFrame] = {}
    labels: dict[tuple[Any, ...], list[str]] = {}
    for key, some in pooled.groupby("key", sort=True):
        same = tuple(some[["section", "block", "mean", "variance"]].to_numpy().ravel())
        parts.setdefault(same, some)
        labels.setdefault(same, []).append(names[int(str(key))])
    lines = [
        some.assign(line=line, label=", ".join(labels[same]))
        for line, (same, some) in enumerate(parts.items())
    ]
    rows = pd.concat(lines, ignore_index=True)
    return rows[["section", "line", "label", "block", "variance"]]


def _read(source: Any) -> pd.DataFrame:
    path = Path(getattr(source, "path", source))
    if path.is_dir():
        path = path / VARIANCE
    if not path.is_file():
        raise RunError(f"{path}: there is no variance table; mpq-profile variance makes one")
    table = pd.read_csv(path)
    lacking = set(COLUMNS) - set(table.columns)
    if lacking or table.empty:
        raise RunError(
            f"{path}: a variance table has rows of {', '.join(COLUMNS)}; "
            f"{'it lacks ' + ', '.join(sorted(lacking)) if lacking else 'it has no row'}"
        )
    return table
