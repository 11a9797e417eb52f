"""How a profile that was interrupted goes on: from its own table in a file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, Self, TypeVar


class Resumable(Protocol):
    """A table that a profile fills, keeps in a file and goes on with."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The table in a file."""

    def check_same_measurement(self, other: Self) -> None:
        """Raises RunError unless `other` measures the same."""


Table = TypeVar("Table", bound=Resumable)


def start_table(path: Path, wanted: Table) -> Table:
    """The table that is in the file at `path`, to be gone on with; `wanted` where there is none.

    Args:
        path: A file that a former profile wrote, finished or not.
        wanted: A table without entries that says what is to be measured.

    Raises:
        RunError: The file holds the measurement of something else; all differences are named.
    """
    if not path.exists():
        return wanted
    table = type(wanted).read(path)
    table.check_same_measurement(wanted)
    return table


def differing(one: object, other: object, names: Iterable[str]) -> list[str]:
    """Those of the attributes `names` in which two tables differ, each with both values."""
    return [
        f"{name} ({getattr(one, name)} and {getattr(other, name)})"
        for name in names
        if getattr(one, name) != getattr(other, name)
    ]
