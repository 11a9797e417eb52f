"""Plans: which site gets which format, as a value that can be compared, hashed and stored."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from mpq.errors import FormatError
from mpq.formats.format import Format
from mpq.formats.zoo import parse_format

SCHEMA = 1
"""Version of the plan's TOML layout that this mpq writes, and the newest that it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One site whose format differs between two plans; None stands for "left as it is"."""

    site: str
    before: Format | None
    after: Format | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Formats for some of a model's sites; a site that is not named is left as it is.

    Plans are equal when formats, model and fingerprint are, and hash by content.

    Attributes:
        formats: Site name -> format, sorted by name; read-only.
        model: Id of the model that the plan was made for; empty when it fits any.
        fingerprint: Of that model's weights; empty when it fits any.
        schema: Version of the layout that the plan was read from or is written in.
        digest: Hex SHA-256 over the sorted pairs (site name, format text): two plans that give
            the same formats share it, whatever model they name.
    """

    formats: Mapping[str, Format]
    model: str = ""
    fingerprint: str = ""
    schema: int = field(default=SCHEMA, compare=False)
    digest: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        formats = dict(sorted(self.formats.items()))
        # By identity: plans of a thousand sites share a few formats, whose hashes go deep.
        different = {id(fmt): fmt for fmt in formats.values()}
        texts = {key: str(fmt) for key, fmt in different.items()}
        # Length prefixes keep ("a", "bc") and ("ab", "c") apart.
        text = "".join(
            f"{len(part)}:{part}"
            for name, fmt in formats.items()
            for part in (name, texts[id(fmt)])
        )
        object.__setattr__(self, "formats", MappingProxyType(formats))
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def of(
        cls, formats: Mapping[str, str | Format], *, model: str = "", fingerprint: str = ""
    ) -> "Plan":
        """A plan of exact site names and formats given as text or as `Format`.

        Raises:
            FormatError: Names every text that is no format, with the site it was meant for.
        """
        pairs = dict(parse_formats(formats.items()))
        return cls(formats=pairs, model=model, fingerprint=fingerprint)

    def replace(self, changes: Mapping[str, str | Format | None]) -> "Plan":
        """This plan with other formats for some sites; None takes a site out of the plan.

        Raises:
            FormatError: Names every text that is no format, with its site.
        """
        named = [(name, given) for name, given in changes.items() if given is not None]
        kept = {name: fmt for name, fmt in self.formats.items() if name not in changes}
        return replace(self, formats=kept | dict(parse_formats(named)))

    def diff(self, other: "Plan") -> tuple[Change, ...]:
        """What changes on the way from this plan to `other`, sorted by site name."""
        names = sorted(self.formats.keys() | other.formats.keys())
        pairs = ((name, self.formats.get(name), other.formats.get(name)) for name in names)
        return tuple(
            Change(site=name, before=before, after=after)
            for name, before, after in pairs
            if before != after
        )

    def __hash__(self) -> int:
        return hash((self.digest, self.model, self.fingerprint))

    def __reduce__(self) -> tuple[Any, ...]:
        # The read-only view of the mapping cannot be pickled; a plan is rebuilt from its parts.
        return _rebuild, (dict(self.formats), self.model, self.fingerprint, self.schema)


def _rebuild(formats: dict[str, Format], model: str, fingerprint: str, schema: int) -> Plan:
    return Plan(formats=formats, model=model, fingerprint=fingerprint, schema=schema)


def parse_formats(
    named: Iterable[tuple[str, object]],
) -> list[tuple[str, Format]]:
    """The same pairs of name and format, in the same order, with every text parsed.

    Raises:
        FormatError: Lists every name whose value is no format, with the parser's message.
    """
    pairs: list[tuple[str, Format]] = []
    faults: list[str] = []
    for name, given in named:
        if not isinstance(given, (str, Format)):
            faults.append(f"{name}: a format is text or a Format, not {given!r}")
            continue
        try:
            pairs.append((name, given if isinstance(given, Format) else parse_format(given)))
        except FormatError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise FormatError("\n".join(faults))
    return pairs
