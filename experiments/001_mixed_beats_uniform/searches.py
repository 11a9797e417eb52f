"""The searches of the experiment: which config with which seed, and where its run lies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpq.cli.search import main as mpq_search
from mpq.config import load_search_config
from mpq.run import CONFIG, SUMMARY, open_run, read_json

REPOSITORY_CONFIGS = Path(__file__).resolve().parents[2] / "search_configs"

SEEDED = ("tiny_llama",)
"""Parts that are run with several seeds; a seed draws the windows as well."""

CONFIGS = {
    "tiny_llama": ("tiny_llama",),
    "tiny_llama_w_a": ("tiny_llama_w_a",),
    "gemma_bfp": ("gemma_bfp",),
    "gemma_int": (
        "gemma_int_tied_2348",
        "gemma_int_untied_2348",
        "gemma_int_tied_2to8",
        "gemma_int_untied_2to8",
        "gemma_groups_tied",
        "gemma_groups_untied",
        "gemma_full_untied",
    ),
}
"""Part -> its configs, each one search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One search that a part asks for.

    Attributes:
        name: Of its run directory.
        config: Its TOML file.
        seed: In place of the config's; None for that.
    """

    name: str
    config: Path
    seed: int | None = None


def jobs_of(part: str, folder: Path, seeds: Sequence[int]) -> tuple[Job, ...]:
    """The searches of a part, in their order.

    Args:
        part: A key of `CONFIGS`.
        folder: Where configs lie; one that it lacks is among the repository's own.
        seeds: Of the parts in `SEEDED`.
    """
    paths = [config_path(name, folder) for name in CONFIGS[part]]
    if part not in SEEDED:
        return tuple(Job(name=path.stem, config=path) for path in paths)
    return tuple(
        Job(name=f"{path.stem}_seed{seed}", config=path, seed=seed)
        for path in paths
        for seed in seeds
    )


def config_path(name: str, folder: Path) -> Path:
    """The TOML file of that name in `folder`, or in search_configs/ where `folder` has none."""
    own = folder / f"{name}.toml"
    return own if own.exists() else REPOSITORY_CONFIGS / own.name


def run_jobs(jobs: Sequence[Job], out: Path, say: Callable[[str], None] = print) -> int:
    """0 when all searches are done, else the exit code of the first that failed.

    A search that is done is skipped; one that was interrupted goes on.
    """
    for job in jobs:
        folder = out / job.name
        if is_done(job, folder):
            say(f"{job.name}: done before")
            continue
        say(f"{job.name}: {job.config}")
        seed = [] if job.seed is None else ["--seed", str(job.seed)]
        code = mpq_search([str(job.config), "--out", str(folder), *seed])
        if code:
            return code
    return 0


def is_done(job: Job, folder: Path) -> bool:
    """True when the run was proven, and with the settings that the job has now."""
    if not is_proven(folder):
        return False
    overrides = {} if job.seed is None else {"search.seed": job.seed}
    return open_run(folder).config == load_search_config(job.config, overrides).resolved()


def is_proven(folder: Path) -> bool:
    """True when a run was searched to the end and judged on held-out text."""
    is_there = (folder / CONFIG).exists() and (folder / SUMMARY).exists()
    return is_there and "proof" in read_json(folder / SUMMARY)
