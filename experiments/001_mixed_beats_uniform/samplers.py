"""Measures how far each sampler gets, trial by trial: direct, guided, guided with exchanges.

    python experiments/001_mixed_beats_uniform/samplers.py [--out DIR] [--results FILE]

Runs (or resumes) one study for each sampler, way of searching (`ARMS`) and seed. All have the same
budget of passes: a trial is one over the same tokens (none for a plan that was tried before), and
a look at a plan that is refined is paid for with trials that the arm does not get. One profile is
made and shared; each way starts from its optima, so each would pay for it, and its seconds are in
the results. Then the fronts of the arm with exchanges are held against the exact additive optima
of that profile, on held-out windows. A seed is the sampler's: profile and windows are the same for
all, so that their hypervolumes compare.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asking import answers_of
from optima import Windows, against_optima
from results import compact_json
from samplers_tables import SHOWN, studies_of, tables_of

from mpq import plots
from mpq.cli.evaluation import Evaluation
from mpq.cli.search import start
from mpq.cli.search_wiring import (
    Subject,
    load_subject,
    make_space,
    measure_damage,
    settings_of,
)
from mpq.config import SearchConfig, load_search_config
from mpq.config_sections import DataSection
from mpq.plots.hypervolume_frames import hypervolume_rows
from mpq.run import read_json, write_csv, write_json
from mpq.search.anchors import Anchor
from mpq.search.front import TrialRecord, pareto_front, trial_row
from mpq.search.looks import IN_PLAN
from mpq.search.objective import Evaluate, make_objectives
from mpq.search.space import Space
from mpq.search.study import Search

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "samplers.toml"
SAMPLERS = ("tpe", "nsga2", "random", "nsga3", "qmc")
SAMPLED_SHARE, REFINED_SHARE = 0.6, 0.2
"""Of the budget of the arm that refines, what the sampler gets, and exchanges; looks at plans take
the rest."""

LOOK_PASSES = 3
"""A look at a plan runs forward once over its tokens, and backward, which costs twice that."""

THIN = 5
"""Every how many trials the hypervolume is kept, besides where the tables show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way of searching: the space that a sampler sees, and whether exchanges follow."""

    name: str
    mode: str
    refines: bool = False

    def keys(self, sampler: str, trials: int, seed: int) -> dict[str, Any]:
        """What it sets in the config, with a budget of so many passes."""
        return {
            "space.mode": self.mode,
            "search.sampler": sampler,
            "search.trials": round(SAMPLED_SHARE * trials) if self.refines else trials,
            "search.refine": round(REFINED_SHARE * trials) if self.refines else 0,
            "search.seed": seed,
        }


ARMS = (
    Arm(name="direct", mode="direct"),
    Arm(name="guided", mode="guided"),
    Arm(name="guided + refine", mode="guided", refines=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A finished search: where its trials lie, what it found, what it saw of plans."""

    sampler: str
    arm: Arm
    seed: int
    folder: Path
    records: tuple[TrialRecord, ...]
    front: tuple[TrialRecord, ...]
    anchors: tuple[Anchor, ...]
    seen: Mapping[str, Any]


def measure_samplers(
    out: Path,
    *,
    samplers: Sequence[str] = SAMPLERS,
    seeds: Sequence[int] = (0, 1, 2),
    config: Path = CONFIG,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Everything that was measured, as plain values; what is there already is not run again.

    Args:
        out: Directory of the studies, the profile and the held-out measurements.
        samplers: Which are compared.
        seeds: Of the samplers. Profile and windows are the same for all.
        config: What is searched, and on how many tokens; `search.trials` is the budget of an arm.
        overrides: Dotted keys of the config -> other values.
        say: Told about each study.
    """
    fixed = dict(overrides or {})
    base = load_search_config(config, fixed)
    subject = load_subject(base)
    heldout = Evaluation(subject, subject.splits.heldout)
    run = start(subject, out)  # refuses a directory of other tokens, formats or weights
    space = profiled_space(subject, out)
    evaluate = Evaluation(subject, subject.splits.search)
    studies = []
    for sampler in samplers:
        for arm in ARMS:
            for seed in seeds:
                keys = fixed | arm.keys(sampler, base.search.trials, seed)
                resolved = load_search_config(config, keys)
                studies.append(run_study(resolved, space, evaluate, arm, out))
                say(line_of(studies[-1]))
    curves = hypervolumes(studies)
    refined = {
        sampler: [study for study in studies if study.sampler == sampler and study.arm.refines]
        for sampler in samplers
    }
    return {
        "provenance": run.provenance,
        "profile_seconds": read_json(out / "profile.json")["seconds"],
        "config": base.resolved(),
        "samplers": list(samplers),
        "arms": [arm.name for arm in ARMS],
        "seeds": list(seeds),
        "box": curves["box"],
        "against_optima": against_optima(
            space,
            {one: [study.front for study in some] for one, some in refined.items()},
            {
                one: [
                    answers_of(space, study, evaluate, out, settings_on(subject, "search"))
                    for study in some
                ]
                for one, some in refined.items()
            },
            Windows(heldout, space, out / "heldout.json", settings_on(subject, "heldout")),
        ),
        "studies": [
            result_of(study, curves) | {"passes": passes(study, base.data, base.profile.in_plan)}
            for study in studies
        ],
    }


def settings_on(subject: Subject, split: str) -> dict[str, str]:
    """What is measured and seen on a split depends on, besides the space."""
    hashes = {name: getattr(subject.splits, name).sha256 for name in ("calibration", split)}
    return {"model": subject.loaded.fingerprint, **hashes}


# --- running ----------------------------------------------------------------------------------


def profiled_space(subject: Subject, out: Path) -> Space:
    """The space over the damage table in `out`, which is made when it is not there."""
    began = time.perf_counter()
    table = measure_damage(subject, out, lambda *_: None)
    if not (out / "profile.json").exists():
        write_json(out / "profile.json", {"seconds": time.perf_counter() - began})
    return make_space(subject, table)


def run_study(
    config: SearchConfig, space: Space, evaluate: Evaluate, arm: Arm, out: Path
) -> Study:
    """What a search found, after the trials that it still lacked; its directory is in `out`."""
    section = config.search
    length = f"{section.trials}+{section.refine}"
    folder = out / f"{section.sampler}_{config.space.mode}_{length}_seed{section.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    objectives = make_objectives(section.objectives)
    storage = f"sqlite:///{folder.resolve() / 'study.db'}"
    search = Search(
        space,
        objectives,
        settings_of(config),
        evaluate,
        storage=storage,
        in_plan=evaluate.in_plan if config.profile.in_plan else None,
    )
    search.run()
    records = tuple(search.records())
    write_csv(folder / "trials.csv", [trial_row(record, objectives) for record in records])
    return Study(
        sampler=section.sampler,
        arm=arm,
        seed=section.seed,
        folder=folder,
        records=records,
        front=tuple(pareto_front(records, objectives)),
        anchors=search.anchors,
        seen={
            key.removeprefix(f"{IN_PLAN} "): seen
            for key, seen in search.study.user_attrs.items()
            if key.startswith(IN_PLAN)
        },
    )


def passes(study: Study, data: DataSection, in_plan: float) -> float:
    """Passes over the search's tokens that a study took; a repeated plan took none."""
    measured = sum(record.is_evaluated and not record.is_reused for record in study.records)
    tokens = in_plan * data.calibration_tokens
    return measured + LOOK_PASSES * len(study.seen) * tokens / data.search_tokens


def line_of(study: Study) -> str:
    """One line about a study, for whoever waits."""
    seconds = sum(record.seconds for record in study.records)
    return (
        f"{study.sampler}, {study.arm.name}, seed {study.seed}: {len(study.records)} trials in "
        f"{seconds:.0f} s, {len(study.front)} on the front"
    )


# --- hypervolume ------------------------------------------------------------------------------


def hypervolumes(studies: Sequence[Study]) -> dict[str, Any]:
    """The box, and for each study the share of it that the front covers after each trial."""
    rows = hypervolume_rows(
        {study.folder.name: study.folder for study in studies}, x="weight_bits", y="kl"
    )
    return {
        "box": {"axes": ["weight_bits", "kl"], "worst": rows.worst, "best": rows.best},
        "shares": {
            str(name): [round(share, 5) for share in line["median"]]
            for name, line in rows.rows.groupby("line", sort=False)
        },
    }


def result_of(study: Study, curves: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a study: its times, its front, its hypervolume after some of its trials."""
    shares = curves["shares"][study.folder.name]
    kept = {round(part * len(shares)) for part in SHOWN} | {*range(THIN, len(shares), THIN)}
    return {
        "sampler": study.sampler,
        "arm": study.arm.name,
        "seed": study.seed,
        "folder": study.folder.name,
        "trials": len(study.records),
        "seconds": round(sum(record.seconds for record in study.records), 2),
        "forward_seconds": round(sum(record.forward_seconds for record in study.records), 2),
        "hypervolume": {str(count): shares[count - 1] for count in sorted(kept)},
        "hypervolume_by_measured_plan": [
            share
            for share, record in zip(shares, study.records, strict=True)
            if record.is_evaluated and not record.is_reused
        ],
        "front": [
            [record.number, record.source, record.costs["weight_bits"], record.values[0]]
            for record in study.front
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, then writes samplers.json, samplers.md and figures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/samplers"), help="where the studies lie")
    add("--results", type=Path, default=HERE, help="where tables and figures go")
    add("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS, metavar="SAMPLER")
    add("--seeds", type=int, nargs="+", default=(0, 1, 2), metavar="SEED")
    arguments = parser.parse_args(argv)
    results = measure_samplers(arguments.out, samplers=arguments.samplers, seeds=arguments.seeds)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "samplers.json").write_text(compact_json(results))
    (arguments.results / "samplers.md").write_text(tables_of(results))
    draw(results, arguments.out, arguments.results / "figures")
    return 0


def draw(results: Mapping[str, Any], out: Path, figures: Path) -> None:
    """Draws a figure for each sampler: the hypervolume by trial, a line for each arm."""
    for sampler in results["samplers"]:
        lines = {
            arm: [out / study["folder"] for study in studies_of(results, sampler, arm)]
            for arm in results["arms"]
        }
        figure = plots.hypervolume(lines, x="weight_bits", y="kl")
        plots.save(figure, figures / f"hypervolume_{sampler}")


if __name__ == "__main__":
    raise SystemExit(main())
