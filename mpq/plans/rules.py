"""Rules: a few lines of names and globs that become a plan, and the TOML that holds them."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mpq.errors import PlanError
from mpq.formats.format import Format
from mpq.plans.plan import SCHEMA, Plan, parse_formats
from mpq.plans.site import Site

Rules = Mapping[str, str | Format] | Sequence[tuple[str, str | Format]]
"""Pattern -> format, in order: exact site names, or globs over the whole name."""

PLAN_KEYS = ("schema", "model", "fingerprint", "default", "formats")
"""The keys of a plan's TOML file."""


def matches(pattern: str, site: Site) -> bool:
    """True when `pattern` is the site's name or an alias, or a glob over the whole of one."""
    names = (site.name, *site.aliases)
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)


def resolve(
    rules: Rules,
    sites: Sequence[Site],
    default: str | Format | None = None,
    *,
    model: str = "",
    fingerprint: str = "",
) -> Plan:
    """The plan that `rules` give to `sites`: the first rule that matches a site wins.

    Args:
        rules: Exact names or globs, matched with `fnmatch.fnmatchcase` against the whole name or
            an alias, so `layers.2` never means `layers.20`.
        sites: The sites of the model.
        default: Format of the sites that no rule matches; None leaves them as they are.
        model: Id of the model, kept in the plan.
        fingerprint: Of the model's weights, kept in the plan.

    Raises:
        PlanError: Lists every rule that matches no site, each with the nearest names.
        FormatError: Lists every rule whose text is no format.
    """
    pairs = list(rules.items()) if isinstance(rules, Mapping) else list(rules)
    if default is not None:
        # The default is the rule that comes last and may match nothing.
        pairs.append(("default", default))
    parsed = parse_formats(pairs)
    fallback = parsed.pop()[1] if default is not None else None
    check_patterns([pattern for pattern, _ in parsed], sites)
    formats: dict[str, Format] = {}
    for site in sites:
        won = next((given for pattern, given in parsed if matches(pattern, site)), fallback)
        if won is not None:
            formats[site.name] = won
    return Plan(formats=formats, model=model, fingerprint=fingerprint)


def check_patterns(patterns: Iterable[str], sites: Sequence[Site]) -> None:
    """Nothing, when every pattern matches a site.

    Raises:
        PlanError: Lists every pattern that matches no site, each with the nearest names.
    """
    lost = [p for p in patterns if not any(matches(p, site) for site in sites)]
    if not lost:
        return
    lines = [f"  {pattern!r} (nearest: {_nearest(pattern, sites)})" for pattern in lost]
    raise PlanError(
        f"every rule must match a site, by exact name or by a glob over the whole name; of the "
        f"model's {len(sites)} sites none matches:\n" + "\n".join(lines)
    )


def _nearest(pattern: str, sites: Sequence[Site]) -> str:
    names = [name for site in sites for name in (site.name, *site.aliases)]
    # A glob is closest to other globs: the ends of names, of one, two and three parts.
    ends = {"*." + ".".join(name.split(".")[-n:]) for name in names for n in (1, 2, 3)}
    known = sorted(ends) if set(pattern) & set("*?[") else names
    found = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
    return ", ".join(found) or "the model has no sites"


def plan_toml(plan: Plan) -> dict[str, Any]:
    """The plan as a table for a TOML file: every site by its exact name, formats as text."""
    return {
        "schema": plan.schema,
        "model": plan.model,
        "fingerprint": plan.fingerprint,
        "formats": {name: str(given) for name, given in plan.formats.items()},
    }


def read_plan(
    path: str | Path,
    sites: Sequence[Site],
    *,
    fingerprint: str = "",
    allow_other_model: bool = False,
) -> Plan:
    """The plan that a TOML file gives to `sites`.

    Args:
        path: A file with `schema`, `model`, `fingerprint`, `default` and a table `[formats]` of
            rules, in order; all but the table may be left out.
        sites: The sites of the model.
        fingerprint: Of the model's weights; empty skips the comparison with the plan's own.
        allow_other_model: Read a plan that was made for other weights all the same.

    Raises:
        PlanError: The file is no plan, is of a newer schema, names another model's fingerprint,
            or has rules that match nothing.
        FormatError: Lists every rule whose text is no format.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"{path}: a plan is a readable TOML file: {error}") from error
    try:
        return plan_from_toml(
            table, sites, fingerprint=fingerprint, allow_other_model=allow_other_model
        )
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def plan_from_toml(
    table: Mapping[str, Any],
    sites: Sequence[Site],
    *,
    fingerprint: str = "",
    allow_other_model: bool = False,
) -> Plan:
    """The plan that a parsed TOML table gives to `sites`; see `read_plan`.

    Raises:
        PlanError: As `read_plan`.
        FormatError: As `read_plan`.
    """
    _check_table(table)
    made_for = table.get("fingerprint", "")
    if fingerprint and made_for and made_for != fingerprint and not allow_other_model:
        raise PlanError(
            f"a plan belongs to the weights it was made for: the plan names fingerprint "
            f"{made_for} (model {table.get('model', '')!r}), this model has {fingerprint}; "
            "search this model, or allow another model's plan explicitly (allow_other_model)"
        )
    return resolve(
        table.get("formats", {}),
        sites,
        table.get("default"),
        model=table.get("model", ""),
        fingerprint=fingerprint or made_for,
    )


def _check_table(table: Mapping[str, Any]) -> None:
    schema = table.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise PlanError(
            f"this mpq reads plans up to schema {SCHEMA}, the plan has schema {schema}: "
            "read it with a newer mpq"
        )
    faults = [
        f"unknown key {key!r}, a plan has {', '.join(PLAN_KEYS)}"
        for key in table
        if key not in PLAN_KEYS
    ]
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        faults.append(f"schema is a whole number from 1 to {SCHEMA}, not {schema!r}")
    faults += [
        f"{key} is text, not {table[key]!r}"
        for key in ("model", "fingerprint", "default")
        if not isinstance(table.get(key, ""), str)
    ]
    rules = table.get("formats", {})
    if not isinstance(rules, Mapping):
        faults.append(f"[formats] is a table of site = format, not {rules!r}")
    else:
        faults += [
            f"[formats] gives {name!r} the format {given!r}, which is not text"
            for name, given in rules.items()
            if not isinstance(given, str)
        ]
    if faults:
        raise PlanError("; ".join(faults))
