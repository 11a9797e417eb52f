"""The program `mpq-profile`: its commands, and the one that measures damage, `sensitivity`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpq.cli.console import print_table, run_program, set_up_logging
from mpq.cli.profile_inputs import (
    DEFAULT_FORMATS,
    add_subject_flags,
    default_folder,
    read_config,
    shown_progress,
)
from mpq.cli.profile_values import (
    STATISTICS_EXAMPLE,
    VARIANCE_EXAMPLE,
    add_statistics_flags,
    add_variance_flags,
    profile_statistics,
    profile_variance,
)

if TYPE_CHECKING:
    from mpq.cli.search_wiring import Subject
    from mpq.profiling.candidates import Candidates
    from mpq.profiling.table import DamageTable

Parser = argparse.ArgumentParser
Run = Callable[[argparse.Namespace], None]

METHODS = ("shares", "fisher", "kl", "fisher-output", "first-order", "mse")
NUM_SHOWN = 8
"""Sites shown at either end of the ranking."""

EXAMPLE = """\
examples:
  mpq-profile sensitivity                          the model that ships with mpq, its weights
  mpq-profile sensitivity search_configs/tiny_llama.toml
                                                   what that search will ask for, into its run
  mpq-profile sensitivity --model Qwen/Qwen3-0.6B --formats int4-g128 mxfp4 nvfp4 \\
      --text notes.txt --tokens 8192 --method fisher   another model, formats, text, method

The table is written to OUT/sensitivity_METHOD.csv while it grows; the same command goes on with
it. Where several methods have one, their rank correlation with kl (or the first) is printed."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mpq-profile`; `run` of what it parses is the command's body."""
    parser = argparse.ArgumentParser(
        prog="mpq-profile",
        description="Measures how much each tensor of a language model suffers in each format, "
        "and how its values are spread.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Run, what: str, about: str, example: str) -> Parser:
        made = commands.add_parser(
            name,
            help=what,
            description=about,
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    add_sensitivity_flags(
        command(
            "sensitivity",
            profile_sensitivity,
            "the damage of every site in every format",
            "Fills the damage table: KL divergence from the full-precision model, in "
            "nats per token, when one tensor alone is held in a format.",
            EXAMPLE,
        )
    )
    add_variance_flags(
        command(
            "variance",
            profile_variance,
            "the variance of every weight and activation, by layer",
            "Fills the variance table, over all tokens of all windows, and draws it by layer.",
            VARIANCE_EXAMPLE,
        )
    )
    add_statistics_flags(
        command(
            "statistics",
            profile_statistics,
            "range, percentiles, kurtosis and outliers of every site; fixed-point plans",
            "Fills the statistics table, over all tokens of all windows, and chooses the "
            "fractions of static fixed points from it.",
            STATISTICS_EXAMPLE,
        )
    )
    return parser


def add_sensitivity_flags(command: Parser) -> None:
    """Adds all flags of `mpq-profile sensitivity`."""
    add_subject_flags(command, seed="the windows and the sampled labels")
    add = command.add_argument
    add("--method", choices=METHODS, help="kl: a forward pass for each pair (default); shares: a "
        "backward pass for each format; fisher: one for all pairs; fisher-output, first-order: "
        "as Model Optimizer and auto-round have it; mse: squared errors alone")  # fmt: skip
    add("--formats", nargs="+", metavar="FORMAT", help=f"default: {' '.join(DEFAULT_FORMATS)}")
    add("--sites", nargs="+", metavar="GLOB", help='which sites (default: "*.weight")')
    add("--include", nargs="+", choices=("lm_head", "embeddings", "bias", "output"),
        help="kinds of site that are left out otherwise")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The program's exit code; see `console`."""
    args = build_parser().parse_args(argv)
    set_up_logging(args.log_level)
    return run_program(lambda: args.run(args))


def profile_sensitivity(args: argparse.Namespace) -> None:
    """Fills the damage table that the arguments ask for, and prints and draws it.

    Raises:
        MpqError: The arguments, the model, the data or the directory do not fit.
    """
    from mpq.cli.search_wiring import load_subject, measure_damage
    from mpq.profiling.table import table_name

    config = read_config(args)
    folder = args.out or default_folder(args, config)
    subject = load_subject(config)
    if args.sites or args.formats:
        subject = replace(subject, candidates=choose_candidates(args, subject))
    with shown_progress() as progress:
        table = measure_damage(subject, folder, progress)
    print_ranking(table, [site.name for site in subject.candidates])
    print(f"damage table: {folder / table_name(table.method)}")
    draw(folder, table.method)
    print_rank_correlation(folder)


def choose_candidates(args: argparse.Namespace, subject: Subject) -> Candidates:
    """The sites and formats of the flags; what a flag leaves open is the config's.

    Raises:
        PlanError: A glob that matches no site.
        FormatError: A text that is no format.
    """
    from mpq.formats.zoo import parse_format
    from mpq.profiling.candidates import candidates_of

    space = subject.config.space
    return candidates_of(
        subject.sites,
        patterns=args.sites or space.sites,
        formats=[parse_format(text) for text in args.formats or space.formats],
        formats_for={},
    )


def print_ranking(table: DamageTable, sites: Sequence[str]) -> None:
    """Prints the sites that suffer most and least, by their damage summed over formats."""
    from mpq.run import DAMAGE_UNITS

    damage = table.select(sites, table.formats)
    totals = [math.fsum(value for value in row if not math.isnan(value)) for row in damage]
    order = sorted(range(len(sites)), key=lambda index: -totals[index])
    columns = ["site", *table.formats]
    rows = [
        [sites[index], *("" if math.isnan(v) else f"{v:.2e}" for v in damage[index])]
        for index in order
    ]
    title = f"damage by {table.method}, {DAMAGE_UNITS[table.method]}, {table.tokens} tokens"
    if len(rows) <= 2 * NUM_SHOWN:
        print_table(f"{title}: all {len(rows)} sites, most sensitive first", columns, rows)
        return
    print_table(f"{title}: the most sensitive of {len(rows)} sites", columns, rows[:NUM_SHOWN])
    print_table("the least sensitive", columns, rows[-NUM_SHOWN:])


def draw(folder: Path, method: str) -> None:
    """Draws the heat map of a table into `plots/`, and prints where it is."""
    from mpq import plots
    from mpq.run import PLOTS

    stem = folder / PLOTS / f"sensitivity_{method}"
    written = plots.save(plots.sensitivity(folder, method=method), stem)
    print(f"heat map:     {', '.join(map(str, written))}")


def print_rank_correlation(folder: Path) -> None:
    """Prints how alike the methods that have a table rank what they have measured in common.

    Each is compared with the direct KL, or where there is none with the first method.
    """
    from mpq.profiling.table import DamageTable, table_name
    from mpq.run import DAMAGE_UNITS

    paths = {method: folder / table_name(method) for method in METHODS}
    tables = {m: DamageTable.read(path) for m, path in paths.items() if path.exists()}
    if len(tables) < 2:
        return
    reference = tables.get("kl") or next(iter(tables.values()))
    for table in tables.values():
        if table is reference:
            continue
        found = table.rank_correlation(reference)
        by_format = ", ".join(f"{text} {rho:.3f}" for text, rho in found.by_format.items())
        print(
            f"{table.method} and {reference.method} agree on {found.num_pairs} pairs with a rank "
            f"correlation of {found.overall:.3f} ({by_format}); "
            f"sums {found.total:.4g} {DAMAGE_UNITS[table.method]} and "
            f"{found.other_total:.4g} {DAMAGE_UNITS[reference.method]}"
        )


if __name__ == "__main__":
    sys.exit(main())
