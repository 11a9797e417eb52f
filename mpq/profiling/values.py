"""What was seen of the values of every site: the artefact that variance and statistics read.

One JSON file holds moments and a histogram for each site, and how many batches they have seen, so
that a profile goes on where it was stopped, and a second profile of the same model and text
measures nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mpq.errors import RunError
from mpq.profiling.histogram import NUM_BINS, Histogram
from mpq.profiling.moments import Moments
from mpq.profiling.resuming import differing
from mpq.run import read_json, write_json

FACTS = ("tokens", "batch_size", "fingerprint", "data_sha256")
"""What a table was measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What is kept of the values of one site: 128 KiB, however many there were.

    Attributes:
        moments: Of the finite ones.
        histogram: Of all.
    """

    moments: Moments
    histogram: Histogram

    @classmethod
    def of(cls, x: Tensor) -> Values:
        """What is kept of one tensor of any shape."""
        return cls(moments=Moments.of(x), histogram=Histogram.of(x))

    def merge(self, other: Values) -> Values:
        """What is kept of both."""
        return Values(
            moments=self.moments.merge(other.moments),
            histogram=self.histogram.merge(other.histogram),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTable:
    """Site -> what was seen of its values, and on what.

    Attributes:
        tokens: Tokens (examples) that a finished table has looked at.
        batch_size: Windows a forward pass; batches are what `batches` counts.
        fingerprint: Of the model.
        data_sha256: Of the text.
        values: By name of the site; a site that no batch has reached is absent.
        batches: Name of an activation site -> forward passes that it has seen.
    """

    tokens: int
    batch_size: int
    fingerprint: str
    data_sha256: str
    values: Mapping[str, Values] = field(default_factory=dict)
    batches: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ValueTable:
        """The table in the JSON file at `path`.

        Raises:
            RunError: The file is not there, or is not a table that `write` wrote.
        """
        table = read_json(path)
        try:
            sites = table["sites"]
            return cls(
                **{name: table[name] for name in FACTS},
                values={name: _values(entry) for name, entry in sites.items()},
                batches={name: entry["batches"] for name, entry in sites.items()},
            )
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} is not a table of values ({error!r}); delete the file and profile again"
            ) from error

    def write(self, path: Path) -> None:
        """Writes the table as JSON, atomically; the same values give the same bytes."""
        sites = {
            name: {
                "batches": self.batches.get(name, 0),
                **asdict(self.values[name].moments),
                "histogram": _text(self.values[name].histogram),
            }
            for name in sorted(self.values)
        }
        write_json(path, {name: getattr(self, name) for name in FACTS} | {"sites": sites})

    def with_values(self, values: Mapping[str, Values]) -> ValueTable:
        """This table with the values of some sites replaced."""
        return replace(self, values={**self.values, **values})

    def with_batch(self, values: Mapping[str, Values], tapped: Iterable[str]) -> ValueTable:
        """This table with one more batch of every tapped site.

        Args:
            values: What the batch showed, by name of the site.
            tapped: All sites that were waited for; some may lie where no value came by.
        """
        joined = {
            name: self.values[name].merge(one) if name in self.values else one
            for name, one in values.items()
        }
        counts = {name: self.batches.get(name, 0) + 1 for name in tapped}
        return replace(self, values={**self.values, **joined}, batches={**self.batches, **counts})

    def check_same_measurement(self, other: ValueTable) -> None:
        """Raises RunError, with everything that differs, unless `other` measures the same."""
        differences = differing(self, other, FACTS)
        if differences:
            raise RunError(
                "a profile of values can only go on with what it was started on; there and asked "
                f"for differ in {', '.join(differences)}. Profile into another directory"
            )


def _text(histogram: Histogram) -> str:
    """The bins that are not empty, as `index:count index:count`."""
    used = np.flatnonzero(histogram.counts)
    pairs = zip(used.tolist(), histogram.counts[used].tolist(), strict=True)
    return " ".join(f"{index}:{count}" for index, count in pairs)


def _values(entry: Mapping[str, Any]) -> Values:
    """The values of one site's entry; a LookupError, TypeError or ValueError where it is none."""
    counts = np.zeros(NUM_BINS, dtype=np.int64)
    for pair in entry["histogram"].split():
        index, count = pair.split(":")
        counts[int(index)] = int(count)
    names = Moments.__slots__
    return Values(
        moments=Moments(**{name: entry[name] for name in names}),
        histogram=Histogram(counts=counts),
    )


def facts_of(table: ValueTable) -> dict[str, str | int]:
    """What a table was measured on, as columns that each row of a CSV carries."""
    return {name: getattr(table, name) for name in FACTS}
