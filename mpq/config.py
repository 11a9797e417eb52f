"""The TOML of mpq-search, read as a frozen value or refused with everything that is wrong.

Every unknown key, wrong type and impossible combination is in one `ConfigError`, each with the
file, the key, what was expected, what was given and the nearest valid name.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from mpq.config_rules import RULES, Fault
from mpq.config_sections import COST_NAMES, DAMAGE_NAMES, SearchConfig
from mpq.errors import ConfigError

__all__ = ["COST_NAMES", "DAMAGE_NAMES", "SearchConfig", "load_search_config", "search_config"]


_SECTIONS: Mapping[str, type[BaseModel]] = {
    name: cast("type[BaseModel]", field.annotation)
    for name, field in SearchConfig.model_fields.items()
}


def load_search_config(
    path: str | Path, overrides: Mapping[str, Any] | None = None
) -> SearchConfig:
    """The config in a TOML file.

    Args:
        path: The file.
        overrides: Dotted key -> value, in place of the file's (`{"search.seed": 3}`); checked
            like the file.

    Raises:
        ConfigError: Lists every fault of the file.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: a config is a readable TOML file: {error}") from error
    for key, value in (overrides or {}).items():
        _override(table, key.split("."), value)
    return search_config(table, where=str(path))


def search_config(table: Mapping[str, Any], where: str = "config") -> SearchConfig:
    """The config in a parsed table; `where` names its origin in errors.

    Raises:
        ConfigError: Lists every fault of the table.
    """
    sections: dict[str, Any] = {}
    faults = [Fault(name, _unknown(name, SearchConfig)) for name in table if name not in _SECTIONS]
    for name, section in _SECTIONS.items():
        try:
            sections[name] = section.model_validate(table.get(name, {}))
        except ValidationError as error:
            faults += _faults(name, section, error)
    for rule, needs in RULES.items():
        if all(name in sections for name in needs):
            faults += rule(*(sections[name] for name in needs))
    if faults:
        lines = [f"  {fault.key}: {fault.message}" for fault in faults]
        what = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{where}: {what}\n" + "\n".join(lines))
    return SearchConfig(**sections)


def _override(table: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            return  # The file's own fault; validation reports it.
        table = inner
    table[keys[-1]] = value


def _faults(name: str, section: type[BaseModel], error: ValidationError) -> list[Fault]:
    """What pydantic found in a section, in mpq's words."""
    details = error.errors()
    # pydantic leaves wrong entries out of a list and then finds the list too short as well.
    inner = {detail["loc"][:-1] for detail in details}
    return [
        _fault(name, section, detail)
        for detail in details
        if not (detail["type"] == "too_short" and detail["loc"] in inner)
    ]


def _fault(name: str, section: type[BaseModel], detail: Any) -> Fault:
    """One of pydantic's error details, in mpq's words."""
    kind, given, loc = detail["type"], detail["input"], detail["loc"]
    if not loc:
        return Fault(name, f"expected a table [{name}], given {given!r}")
    key = _dotted(name, loc)
    if kind == "extra_forbidden":
        return Fault(key, _unknown(str(loc[0]), section))
    if kind == "missing":
        return Fault(key, f"this key must be there: {_meaning(section, str(loc[0]))}")
    if kind == "value_error":
        return Fault(key, f"{detail['ctx']['error']}; given {given!r}")
    expected = _EXPECTED.get(kind) or detail["msg"].removeprefix("Input should be ")
    near = _near(str(given), _quoted(expected)) if kind == "literal_error" else ""
    return Fault(key, f"expected {expected}, given {given!r}{near}")


_EXPECTED = {
    "tuple_type": "a list",
    "too_short": "at least one entry",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
}
"""What a TOML file calls the types that pydantic names in Python's words."""


def _dotted(name: str, loc: tuple[int | str, ...]) -> str:
    """A key's path as TOML writes it: `space.formats_for."*.input"[1]`."""
    text = name
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":
            text += f".{part}" if part.replace("_", "").isalnum() else f'."{part}"'
    return text


def _unknown(key: str, section: type[BaseModel]) -> str:
    """What to say about a key (or a section) that does not exist."""
    homes = [name for name, other in _SECTIONS.items() if key in other.model_fields]
    if homes and section is not SearchConfig:
        return f"unknown key; it belongs in [{homes[0]}]"
    what = "section" if section is SearchConfig else "key"
    known = list(section.model_fields)
    return f"unknown {what}, expected one of {', '.join(known)}{_near(key, known)}"


def _meaning(section: type[BaseModel], key: str) -> str:
    return section.model_fields[key].description or "no default fits"


def _quoted(expected: str) -> list[str]:
    """The names between quotes in pydantic's list of a Literal's values."""
    return expected.split("'")[1::2]


def _near(given: str, known: list[str]) -> str:
    found = difflib.get_close_matches(given, known, n=1)
    return f"; nearest: {found[0]}" if found else ""
