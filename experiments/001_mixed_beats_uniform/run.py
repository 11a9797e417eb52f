"""Runs the parts of the experiment, resumes them, and writes what they say.

    python experiments/001_mixed_beats_uniform/run.py PART... [--out runs/001]

From the repository's root. A part that is done is skipped, one that was interrupted goes on.
README.md beside this file says what the parts are; `report` rewrites results.json, tables.md and
figures/ from the runs that are there.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from figures import draw_figures
from looks import measure_looks
from report import write_report
from rivals import measure_rivals
from samplers import measure_samplers
from scores import CONFIG as SCORES
from scores import measure_scores
from searches import CONFIGS, config_path, is_proven, jobs_of, run_jobs
from text import HELDOUT, write_split
from tokens import measure_tokens

from mpq.cli.console import run_program
from mpq.config import load_search_config
from mpq.errors import RunError
from mpq.run import write_json

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large everything is; the tests have a small one.

    Attributes:
        configs: Where the searches' TOML files lie.
        results: Where the report goes.
        text: Where the split text lies, as the configs name it.
        seeds: Of the parts that are run with several.
        tokens: Numbers of search tokens of the part `tokens`.
        tokens_gemma: The same of the part `tokens_gemma`, which has the first seed only.
        looks: Further keywords of `measure_looks`.
        rivals: Further keywords of `measure_rivals`.
        scores_config: What `measure_scores` measures on.
        scores: Further keywords of it.
        samplers: Further keywords of `measure_samplers`.
    """

    configs: Path = HERE / "configs"
    results: Path = HERE
    text: Path = Path("runs/wikitext2")
    seeds: tuple[int, ...] = (0, 1, 2)
    tokens: tuple[int, ...] = (512, 1024, 2048, 4096)
    tokens_gemma: tuple[int, ...] = (1024, 4096, 16384)
    looks: Mapping[str, Any] = field(default_factory=dict)
    rivals: Mapping[str, Any] = field(default_factory=dict)
    scores_config: Path = SCORES
    scores: Mapping[str, Any] = field(default_factory=dict)
    samplers: Mapping[str, Any] = field(default_factory=dict)


FULL = Setting()


def rivals(out: Path, setting: Setting) -> None:
    """Judges what the finished searches of gemma_int returned on the other tools' windows."""
    asked = jobs_of("gemma_int", setting.configs, setting.seeds)
    jobs = [job for job in asked if is_proven(out / job.name)]
    if not jobs:
        raise RunError(
            f"plans are judged beside other tools' once a search of gemma_int is done, and {out} "
            "holds none; run the part gemma_int first"
        )
    measure_rivals(out, jobs=jobs, text=setting.text / HELDOUT, **setting.rivals)


def looks(out: Path, setting: Setting) -> None:
    """What moving groups in plans changes, and what a look at the plan says of it."""
    config = config_path("gemma_int_tied_2348", setting.configs)
    write_json(out / "looks.json", measure_looks(out / "looks", config=config, **setting.looks))


def tokens(part: str, out: Path, setting: Setting) -> None:
    """Searches with ever more tokens, and what they gain on held-out text."""
    counts = setting.tokens_gemma if part == "tokens_gemma" else setting.tokens
    config = config_path(part, setting.configs)
    seeds = setting.seeds if part == "tokens" else setting.seeds[:1]
    results = measure_tokens(out / part, config=config, tokens=counts, seeds=seeds)
    write_json(out / f"{part}.json", results)


def scores(out: Path, setting: Setting) -> None:
    """Rank correlation of the damage scores with the joint damage."""
    config = load_search_config(setting.scores_config)
    write_json(out / "scores.json", measure_scores(config, out / "scores", **setting.scores))


def samplers(out: Path, setting: Setting) -> None:
    """Hypervolume by trial of every sampler."""
    write_json(out / "samplers.json", measure_samplers(out / "samplers", **setting.samplers))


def report(out: Path, setting: Setting) -> None:
    """results.json, tables.md and figures/."""
    keys: dict[str, Any] = {"configs": setting.configs, "seeds": setting.seeds}
    parts = write_report(out, setting.results, **keys)
    drawn = draw_figures(out, setting.results / "figures", **keys)
    print(f"results.json and tables.md: {', '.join(parts)}; figures: {len(drawn)} files")


MEASUREMENTS: dict[str, Callable[[Path, Setting], None]] = {
    "rivals": rivals,
    "looks": looks,
    "tokens": partial(tokens, "tokens"),
    "tokens_gemma": partial(tokens, "tokens_gemma"),
    "scores": scores,
    "samplers": samplers,
    "report": report,
}
PARTS = ("text", *CONFIGS, *MEASUREMENTS)
"""In the order in which they build on each other, which is the order they run in."""


def run_part(part: str, out: Path, setting: Setting) -> int:
    """The exit code of a part other than `text`."""
    if part in CONFIGS:
        return run_jobs(jobs_of(part, setting.configs, setting.seeds), out)
    return run_program(lambda: MEASUREMENTS[part](out, setting))


def main(argv: Sequence[str] | None = None, setting: Setting = FULL) -> int:
    """The exit code of the first part that fails, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    add("--out", type=Path, default=Path("runs/001"), help="where the runs lie")
    add("--wikitext", type=Path, metavar="FILE", help="WikiText-2's wiki.test.raw, for `text`")
    arguments = parser.parse_args(argv)
    if "text" in arguments.parts:
        if arguments.wikitext is None:
            parser.error("the part `text` splits a file: --wikitext wiki.test.raw")
        code = run_program(lambda: write_split(arguments.wikitext, setting.text))
        if code:
            return code
    for part in PARTS[1:]:
        if part in arguments.parts:
            code = run_part(part, arguments.out, setting)
            if code:
                return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
