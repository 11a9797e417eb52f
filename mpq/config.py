"""The TOML of mpq-search, read as a frozen value or refused with everything that is wrong.

Every unknown key, wrong type and impossible combination is in one `ConfigError`, each with the
file, the key, what was expected, what was given and the nearest valid name.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from mpq.config_sections import (
    COST_NAMES,
    DAMAGE_NAMES,
    DataSection,
    ModelSection,
    SearchConfig,
    SearchSection,
    SpaceSection,
    data_keys,
)
from mpq.errors import ConfigError

__all__ = ["COST_NAMES", "DAMAGE_NAMES", "SearchConfig", "load_search_config", "search_config"]


_SECTIONS: Mapping[str, type[BaseModel]] = {
    name: cast("type[BaseModel]", field.annotation)
    for name, field in SearchConfig.model_fields.items()
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a file: the dotted key, and the sentence about it."""

    key: str
    message: str


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
    for rule, needs in _RULES.items():
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


def _needed_data_keys(model: ModelSection, data: DataSection) -> Iterator[Fault]:
    """Which keys of [data] a source needs, and which it has no use for."""
    needed = {"file": ["path"], "messages": ["path"], "dataset": ["dataset"]}.get(data.source, [])
    prompted = data.source == "sst2" and model.task == "causal-lm"
    needed += ["prompt", "choices"] if prompted else []
    for key in needed:
        if getattr(data, key) is None:
            yield Fault(f"data.{key}", f'source = "{data.source}" needs this key')
    unused = {"prompt", "choices"} if not prompted else set()
    usable = [key for key in data_keys(data.source) if key not in unused]
    for key in sorted(data.model_fields_set):
        if key not in usable:
            yield Fault(
                f"data.{key}",
                f'source = "{data.source}" with task = "{model.task}" has no use for this key; '
                f"it takes {', '.join(usable)}",
            )


def _labels(model: ModelSection, data: DataSection) -> Iterator[Fault]:
    if model.task == "classification" and data.source != "sst2":
        yield Fault(
            "data.source",
            f'task = "classification" needs labelled examples: expected "sst2", '
            f"given {data.source!r}",
        )


def _whole_windows(data: DataSection) -> Iterator[Fault]:
    for key in ("calibration_tokens", "search_tokens", "heldout_tokens"):
        tokens = getattr(data, key)
        if key in data_keys(data.source) and tokens % data.window:
            fits = max(tokens // data.window, 1) * data.window
            yield Fault(
                f"data.{key}",
                f"expected whole windows of {data.window} tokens, given {tokens}; nearest: {fits}",
            )


def _positions_to_judge(data: DataSection) -> Iterator[Fault]:
    if data.judge_every >= data.window:
        yield Fault(
            "data.judge_every",
            f"expected less than data.window, {data.window}, so that every window has a position "
            f"to judge; given {data.judge_every}",
        )


def _prompt(data: DataSection) -> Iterator[Fault]:
    if data.prompt is not None and "{sentence}" not in data.prompt:
        yield Fault("data.prompt", f"expected text with {{sentence}} in it, given {data.prompt!r}")
    if data.choices is not None and len(data.choices) != 2:
        yield Fault(
            "data.choices", f"expected one completion for each of 2 labels, given {data.choices}"
        )


def _something_to_search(space: SpaceSection) -> Iterator[Fault]:
    if all(len(formats) < 2 for formats in (space.formats, *space.formats_for.values())):
        yield Fault(
            "space.formats", "expected at least two candidates, otherwise there is nothing to find"
        )
    for pattern in sorted(space.formats_for.keys() & space.fixed.keys()):
        yield Fault(
            f'space.fixed."{pattern}"',
            "expected either candidates (formats_for) or one format (fixed), given both",
        )


def _objectives(data: DataSection, search: SearchSection) -> Iterator[Fault]:
    if all(name in COST_NAMES for name in search.objectives):
        yield Fault(
            "search.objectives",
            f"expected at least one measure of damage ({', '.join(DAMAGE_NAMES)}, or your own), "
            f"given {list(search.objectives)}: the cheapest plan needs no search",
        )
    wrong = {"accuracy"} if data.source != "sst2" else {"perplexity"}
    has = "labelled examples" if data.source == "sst2" else "text without labels"
    for name in sorted(wrong.intersection(search.objectives)):
        yield Fault("search.objectives", f'source = "{data.source}" is {has} and has no {name}')


def _sampler(space: SpaceSection, search: SearchSection) -> Iterator[Fault]:
    if search.sampler != "cmaes":
        return
    if len(search.objectives) > 1:
        yield Fault(
            "search.sampler",
            f"cmaes takes one objective, given {list(search.objectives)}; "
            "tpe, nsga2, nsga3, random, qmc and gp take many",
        )
    if space.mode == "direct" and search.budget:
        yield Fault(
            "search.sampler",
            "cmaes cannot see a budget in the direct space (Optuna's sampler has no constraints);"
            ' take space.mode = "guided", whose plans all keep it, or another sampler',
        )


def _pruner(search: SearchSection) -> Iterator[Fault]:
    if search.pruner == "none":
        return
    if len(search.objectives) > 1:
        yield Fault(
            "search.pruner",
            f'pruning needs one objective, given {list(search.objectives)}; take pruner = "none"',
        )
    elif search.objectives[0] not in DAMAGE_NAMES:
        yield Fault(
            "search.pruner",
            f"pruning needs values that grow window by window ({', '.join(DAMAGE_NAMES)}), "
            f'given {search.objectives[0]!r}; take pruner = "none"',
        )


def _anchors(search: SearchSection) -> Iterator[Fault]:
    if search.anchors == "targets" and not search.targets:
        yield Fault("search.anchors", 'expected search.targets beside anchors = "targets"')
    if search.targets and not {"weight_bits", "weight_bytes"}.intersection(search.objectives):
        yield Fault(
            "search.targets",
            "these are values of weight_bits, which must be among search.objectives, given "
            f"{list(search.objectives)}; one bound alone is a [search.budget]",
        )


def _rungs(search: SearchSection) -> Iterator[Fault]:
    if len(search.rungs) == 1:
        return
    if search.pruner != "none":
        yield Fault(
            "search.rungs",
            f"expected one way to stop trials early, given pruner = {search.pruner!r} as well; "
            'take pruner = "none" or rungs = [1.0]',
        )
    measures = [name for name in search.objectives if name not in COST_NAMES]
    if measures and measures[0] not in DAMAGE_NAMES:
        yield Fault(
            "search.rungs",
            f"plans are judged by the windows of the first measure ({', '.join(DAMAGE_NAMES)}), "
            f"given {measures[0]!r}; put one of these before it, or take rungs = [1.0]",
        )


_RULES: Mapping[Callable[..., Iterator[Fault]], tuple[str, ...]] = {
    _needed_data_keys: ("model", "data"),
    _labels: ("model", "data"),
    _whole_windows: ("data",),
    _positions_to_judge: ("data",),
    _prompt: ("data",),
    _something_to_search: ("space",),
    _objectives: ("data", "search"),
    _sampler: ("space", "search"),
    _pruner: ("search",),
    _anchors: ("search",),
    _rungs: ("search",),
}
"""What keys may hold together: a rule is asked when the sections that it reads are valid."""
