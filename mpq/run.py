"""The run directory: what a search or a profile leaves behind, and how it is resumed.

Every artefact is written whole (`files.write_atomic`): a process killed at any moment leaves a
directory that the next command can use. Workers that share a directory need no lock: the last
writer of an artefact wins, and every file is always one that some worker meant. The study has its
own storage and its own locking (SQLite, or what `search.storage` names).
"""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mpq.errors import RunError
from mpq.files import (
    read_csv,
    read_json,
    read_toml,
    write_atomic,
    write_csv,
    write_json,
    write_toml,
)
from mpq.plans.plan import Plan
from mpq.plans.rules import plan_toml, read_plan
from mpq.plans.site import Site

# The writers and readers of artefacts are part of this room's door.
__all__ = [
    "ARTEFACTS",
    "ASKED",
    "CONFIG",
    "DAMAGE_UNITS",
    "FRONT",
    "GROWING_KEYS",
    "PLANS",
    "PLOTS",
    "PROVENANCE",
    "SENSITIVITY",
    "STATISTICS",
    "STUDY",
    "SUMMARY",
    "TRIALS",
    "VALUES",
    "VARIANCE",
    "Run",
    "collect_provenance",
    "default_run_dir",
    "flatten",
    "open_run",
    "read_csv",
    "read_json",
    "read_toml",
    "start_run",
    "write_atomic",
    "write_csv",
    "write_json",
    "write_toml",
]

CONFIG = "config.toml"
PROVENANCE = "provenance.json"
STUDY = "study.db"
DAMAGE_UNITS = {
    "shares": "nats per token",
    "fisher": "nats per token",
    "kl": "nats per token",
    "fisher-output": "nats per token",
    "first-order": "nats per token",
    "mse": "squared error",
}
"""Method of a sensitivity profile -> the unit of its damages."""

SENSITIVITY = tuple(f"sensitivity_{method}.csv" for method in DAMAGE_UNITS)
VALUES = "values.json"  # what variance and statistics are computed from
VARIANCE = "variance.csv"
STATISTICS = "statistics.csv"
TRIALS = "trials.csv"
FRONT = "front.csv"
SUMMARY = "summary.json"
ASKED = "asked.json"  # what was measured for plans at further costs
PLANS = "plans"
PLOTS = "plots"
PROFILES = (*SENSITIVITY, VALUES, VARIANCE, STATISTICS)
ARTEFACTS = (CONFIG, PROVENANCE, STUDY, *PROFILES, TRIALS, FRONT, SUMMARY, ASKED, PLANS, PLOTS)
"""Every file and folder that a run directory holds."""

GROWING_KEYS = ("search.trials", "search.refine", "search.timeout_minutes")
"""Keys of the config that a resumed run may raise; all others stay as they were."""

IDENTITY_KEYS = ("model_fingerprint", "data_sha256")
"""Facts of the provenance that must be the same when a run is resumed."""

STALE_SECONDS = 3600.0
"""Age at which a temporary file cannot belong to a living writer: writes take milliseconds."""

_PACKAGES = ("mpq", "torch", "transformers", "optuna", "numpy", "scipy", "datasets")


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory that exists and has a config."""

    path: Path

    def artefact(self, name: str) -> Path:
        """Where an artefact of this run lies, whether it is there yet or not."""
        return self.path / name

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the run was started with."""
        return read_toml(self.path / CONFIG)

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, seed, model and data that the run was made from."""
        record: dict[str, Any] = read_json(self.path / PROVENANCE)
        return record

    def write_plan(self, name: str, plan: Plan) -> Path:
        """The file `plans/<name>.toml`, written."""
        path = self.path / PLANS / f"{name}.toml"
        write_toml(path, plan_toml(plan))
        return path

    def read_plan(self, name: str, sites: Sequence[Site], *, fingerprint: str = "") -> Plan:
        """The plan of `plans/<name>.toml`; see `plans.rules.read_plan`."""
        return read_plan(self.path / PLANS / f"{name}.toml", sites, fingerprint=fingerprint)


def default_run_dir(config_path: str | Path) -> Path:
    """Where a config's run goes when no directory is named: `runs/<name of the file>`."""
    return Path("runs") / Path(config_path).stem


def open_run(path: str | Path) -> Run:
    """The run in an existing directory, for reading; nothing in it changes.

    Raises:
        RunError: The directory is not there or holds no run.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        found = sorted(_visible(folder)) if folder.is_dir() else []
        held = (
            f"it holds {', '.join(found) or 'nothing'}" if folder.is_dir() else "it is not there"
        )
        raise RunError(
            f"{folder}: a run directory has a {CONFIG}, and {held}; mpq-search makes one"
        )
    return Run(folder)


def start_run(path: str | Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Run:
    """A new run, or the one that is there, resumed.

    A run is resumed when its config is the same; `GROWING_KEYS` may be higher than before, and
    are written down. Resuming adds what is new about the provenance (versions, time) to the list
    under its key `resumed`.

    Args:
        path: The run's directory; made when it is not there.
        config: The resolved config: no None, plain values.
        provenance: See `collect_provenance`.

    Raises:
        RunError: The directory holds something else, or a run of another config, model or data;
            every key that differs is listed with both values.
    """
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return _resume(Run(folder), config, provenance)
    foreign = sorted(name for name in _visible(folder) if name not in ARTEFACTS)
    if foreign:
        raise RunError(
            f"{folder}: a new run needs a directory of its own, this one holds "
            f"{', '.join(foreign[:5])}; choose another with --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (PLANS, PLOTS):
        (folder / name).mkdir(exist_ok=True)
    write_json(folder / PROVENANCE, provenance)
    # The config comes last: a directory that has one has all that a run needs.
    write_toml(folder / CONFIG, config)
    return Run(folder)


def _resume(run: Run, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Run:
    before, after = flatten(run.config), flatten(config)
    changed = [key for key in (before | after) if before.get(key) != after.get(key)]
    refused = [key for key in changed if not _grows(key, before, after)]
    if refused:
        lines = [f"  {key}: {_shown(before, key)} -> {_shown(after, key)}" for key in refused]
        raise RunError(
            f"{run.path}: a run is resumed with the config it was started with (only "
            f"{', '.join(GROWING_KEYS)} may grow); these keys differ:\n"
            + "\n".join(lines)
            + "\nchange them back, or start a new run with --out"
        )
    for folder in (run.path, run.path / PLANS, run.path / PLOTS):
        folder.mkdir(exist_ok=True)
        _sweep(folder)
    _record_resume(run, provenance)
    if changed:
        write_toml(run.path / CONFIG, config)
    return run


def _record_resume(run: Run, provenance: Mapping[str, Any]) -> None:
    first = run.provenance if (run.path / PROVENANCE).is_file() else dict(provenance)
    other = [
        f"  {key}: {first[key]} -> {provenance[key]}"
        for key in IDENTITY_KEYS
        if first.get(key) and provenance.get(key) and first[key] != provenance[key]
    ]
    if other:
        raise RunError(
            f"{run.path}: a run goes on with the model and the data it was started with; these "
            "differ:\n" + "\n".join(other) + "\nstart a new run with --out"
        )
    news = {key: value for key, value in provenance.items() if first.get(key) != value}
    resumed = [*first.get("resumed", []), news]
    write_json(run.path / PROVENANCE, first | {"resumed": resumed})


def _grows(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    if key not in GROWING_KEYS:
        return False
    # A limit that is not there is no limit.
    return float(after.get(key, "inf")) >= float(before.get(key, "inf"))


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "(not set)"


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as one of dotted keys; an empty table leaves no key."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def collect_provenance(
    *, seed: int, model: str, model_fingerprint: str, data_sha256: str, **more: Any
) -> dict[str, Any]:
    """What a run was made from: versions, platform, time, seed, model and data.

    Versions come from the packages' metadata; nothing heavy is imported.
    """
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "model": model,
        "model_fingerprint": model_fingerprint,
        "data_sha256": data_sha256,
        "seed": seed,
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def _visible(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]


def _sweep(folder: Path) -> None:
    """Removes temporary files that a killed writer left; a living writer's are young."""
    for entry in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                entry.unlink()
