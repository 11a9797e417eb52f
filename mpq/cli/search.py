"""The program `mpq-search`: finds number formats for the tensors of a model."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mpq.cli.console import (
    add_log_flags,
    progress_bar,
    run_program,
    set_up_logging,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mpq.cli.search_report import Artefacts
    from mpq.cli.search_wiring import Subject
    from mpq.run import Run
    from mpq.search.front import TrialRecord
    from mpq.search.prove import Proof
    from mpq.search.study import Search

EXAMPLE = """\
examples:
  mpq-search search_configs/tiny_llama.toml              the model that ships with mpq
  mpq-search search_configs/tiny_llama.toml --dry-run    what it would do, and how long it takes
  mpq-search my.toml --out runs/second --seed 1          another directory, other random draws
  mpq-search my.toml --at 3.3 4.1                        plans at these costs as well

Everything that describes the experiment is in the TOML; search_configs/tiny_llama.toml explains
every key. The run directory holds config.toml, provenance.json, study.db (Optuna), trials.csv,
front.csv, plans/, plots/ and summary.json. The same command resumes a run that was interrupted
or killed; the same command started several times makes several workers."""


AT = (
    "when all trials are there, also find a plan at each of these values of weight_bits: the "
    "additive optimum, or what measures better"
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mpq-search`."""
    parser = argparse.ArgumentParser(
        prog="mpq-search",
        description="Finds the best number format for every tensor of a language model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG.toml", help="what to search, and how")
    add("--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME OF THE CONFIG)")
    add("--device", metavar="DEVICE", help="in place of model.device: auto, cpu, cuda, cuda:1")
    add("--seed", type=int, help="in place of search.seed")
    add("--at", type=float, nargs="+", default=(), metavar="BITS", help=AT)
    add("--dry-run", action="store_true", help="print what would be done and how long it takes")
    add_log_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program's exit code; see `console`."""
    args = build_parser().parse_args(argv)
    set_up_logging(args.log_level)
    return run_program(lambda: search_formats(args))


def search_formats(args: argparse.Namespace) -> None:
    """Runs or resumes the search that the arguments ask for.

    Raises:
        MpqError: The config, the model, the data or the directory do not fit.
    """
    from mpq.cli.search_asked import check_costs
    from mpq.cli.search_wiring import load_subject
    from mpq.config import load_search_config
    from mpq.run import default_run_dir

    flags = {"model.device": args.device, "search.seed": args.seed}
    overrides = {key: value for key, value in flags.items() if value is not None}
    config = load_search_config(args.config, overrides)
    if args.at:
        check_costs(config, args.at)
    folder = args.out or default_run_dir(args.config)
    subject = load_subject(config)
    if args.dry_run:
        from mpq.cli.search_plan import print_dry_run

        print_dry_run(subject, folder, args.at)
        return
    run_search(subject, folder, args.at)


def run_search(subject: Subject, folder: Path, at: Sequence[float] = ()) -> None:
    """Profile, search, proof and report of one run directory, and plans at further costs.

    Further costs wait for the last trial, whichever worker runs it.

    Raises:
        MpqError: The run, the space, the costs or the study do not fit.
    """
    from mpq.cli.search_asked import answer, asked_anchors, check_reach, print_missing
    from mpq.cli.search_report import Artefacts
    from mpq.search.claims import missing

    if at:
        check_reach(subject, at)
    run = start(subject, folder)
    search = open_search(subject, run)
    try:
        run_trials(search, Artefacts(run, search))
        # Now: while this worker proves, others may end, and one answer is enough.
        lacking = missing(search) if at else {}
        proof = prove_front(subject, search)
    except KeyboardInterrupt:
        report(subject, run, search, None)
        print(f"run directory: {run.path}")
        raise
    report(subject, run, search, proof)
    if lacking:
        print_missing(lacking)
    elif at:
        anchors = asked_anchors(search.space, search.settings, search.objectives, at)
        answer(subject, run, search, anchors)
    plots = draw(run, search, proof)
    print(f"run directory: {run.path}  (trials.csv, front.csv, plans/, {', '.join(plots)})")
    print("The same command goes on with a higher search.trials or search.refine.")


def report(subject: Subject, run: Run, search: Search, proof: Proof | None) -> None:
    """Writes plans and summary.json, and prints what was found, as far as it was proven."""
    from mpq.cli.search_asked import carried
    from mpq.cli.search_report import (
        print_comparisons,
        print_front,
        print_times,
        summary,
        write_plans,
    )
    from mpq.run import SUMMARY, write_json

    write_plans(run, search, proof)
    tokens = subject.config.data.window if hasattr(subject.splits.search, "tokens") else None
    table = summary(search, proof, window_tokens=tokens)
    write_json(run.artefact(SUMMARY), table | carried(run, table["trials"]))
    print_front(search, proof)
    if proof is not None:
        print_comparisons(proof, subject.config.prove.confidence)
    print_times(search)


def start(subject: Subject, folder: Path) -> Run:
    """The run directory, made or resumed.

    Raises:
        RunError: The directory holds something else.
    """
    from mpq.run import collect_provenance, start_run

    config, splits = subject.config, subject.splits
    shas = {name: getattr(splits, name).sha256 for name in ("calibration", "search", "heldout")}
    provenance = collect_provenance(
        seed=config.search.seed,
        model=config.model.id,
        model_fingerprint=subject.loaded.fingerprint,
        data_sha256="+".join(shas.values()),
        data_source=splits.search.source,
    )
    return start_run(folder, config.resolved(), provenance)


def open_search(subject: Subject, run: Run) -> Search:
    """The study of a run, over the space that its damage table spans.

    Raises:
        MpqError: The table, the space, the budget or the study do not fit.
    """
    from mpq.cli.evaluation import Evaluation
    from mpq.cli.profile_inputs import shown_progress
    from mpq.cli.search_wiring import (
        load_functions,
        make_space,
        measure_damage,
        settings_of,
    )
    from mpq.run import STUDY
    from mpq.search.objective import make_objectives
    from mpq.search.study import Search

    config = subject.config
    objectives = make_objectives(config.search.objectives)
    functions = load_functions(objectives)
    with shown_progress() as progress:
        table = measure_damage(subject, run.path, progress)
    evaluate = Evaluation(subject, subject.splits.search)
    # A run may be renamed, and its own file holds its study only; a shared storage needs names.
    storage, name = f"sqlite:///{run.artefact(STUDY)}", "mpq"
    if config.search.storage is not None:
        storage, name = config.search.storage, run.path.resolve().name
    return Search(
        make_space(subject, table),
        objectives,
        settings_of(config),
        evaluate,
        storage=storage,
        name=name,
        functions={name: evaluate.bind(function) for name, function in functions.items()},
        in_plan=evaluate.in_plan if config.profile.in_plan else None,
    )


def run_trials(search: Search, artefacts: Artefacts) -> None:
    """Runs what is left of a study's trials, with a progress bar; the tables are up to date."""
    from mpq.cli.search_report import objective_texts
    from mpq.search.front import best_record, pareto_front

    total = search.settings.trials + search.settings.refine
    done = len(search.records())
    if done:
        print(f"resuming: {done} of {total} trials are there", file=sys.stderr)
    with progress_bar() as bar:
        task = bar.add_task("search", total=total, completed=done)
        started = time.monotonic()

        def show(records: Sequence[TrialRecord]) -> None:
            record = records[-1]
            front = pareto_front(records, search.objectives)
            rate = 60 * search.num_run / (time.monotonic() - started)
            text = f"trial {record.number}: {objective_texts(search, record.values)}"
            if len(search.objectives) == 1 and search.quality is not None:
                best = best_record(records, search.quality, search.objectives)
                if best is not None:
                    text += f" · best {objective_texts(search, best.values)}"
            text += f" · front {len(front)} · {rate:.0f}/min"
            bar.update(task, completed=len(records), description=text)
            artefacts.update(records)

        try:
            search.run(show)
        finally:
            artefacts.update(search.records(), force=True)


def prove_front(subject: Subject, search: Search) -> Proof | None:
    """The held-out proof of a search, with a progress bar; None when there is nothing to prove."""
    from mpq.cli.evaluation import Evaluation
    from mpq.search.prove import prove

    config = subject.config
    with progress_bar() as bar:
        task = bar.add_task("proof on held-out text", total=None)
        return prove(
            search.space,
            search.records(),
            search.objectives,
            Evaluation(subject, subject.splits.heldout),
            anchors=search.anchors,
            plans=config.prove.plans,
            confidence=config.prove.confidence,
            seed=config.search.seed,
            on_plan=lambda done, total: bar.update(task, completed=done, total=total),
        )


def draw(run: Run, search: Search, proof: Proof | None) -> list[str]:
    """Draws the front, the damages and the plans that stand; names of the files in `plots/`."""
    from mpq import plots
    from mpq.cli.search_report import plan_name
    from mpq.run import PLOTS

    figures: dict[str, Callable[[], Figure]] = {"sensitivity": lambda: plots.sensitivity(run)}
    # A search whose time was over before its first trial has neither.
    if len(search.objectives) > 1 and search.records():
        figures["pareto_front"] = lambda: plots.pareto_front(run)
        figures["hypervolume"] = lambda: plots.hypervolume(run)
    for comparison in proof.comparisons if proof is not None else ():
        if comparison.returned == "uniform":
            continue  # one colour
        name = plan_name(search, comparison)
        figures[f"allocation_{name}"] = partial(plots.allocation, run, plan=name)
    drawn = []
    for stem, make in figures.items():
        plots.save(make(), run.artefact(PLOTS) / stem)
        drawn.append(f"plots/{stem}.png")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
