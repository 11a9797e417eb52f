"""The program `mpq-profile`: how much each tensor of a model suffers in each format."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.cli.console import (
    add_log_flags,
    print_table,
    progress_bar,
    run_program,
    set_up_logging,
)

if TYPE_CHECKING:
    from mpq.cli.search_wiring import Subject
    from mpq.config import SearchConfig
    from mpq.profiling.candidates import Candidates, Progress
    from mpq.profiling.table import DamageTable

DEFAULT_MODEL = "mpq/tiny-llama"
DEFAULT_FORMATS = ("bfp2", "bfp3", "bfp4", "bfp5", "bfp6", "bfp8")
NUM_SHOWN = 8
"""Sites shown at either end of the ranking."""

EXAMPLE = """\
examples:
  mpq-profile sensitivity                          the model that ships with mpq, its weights
  mpq-profile sensitivity search_configs/tiny_llama.toml
                                                   what that search will ask for, into its run
  mpq-profile sensitivity --model Qwen/Qwen3-0.6B --formats int4-g128 mxfp4 nvfp4 \\
      --text notes.txt --tokens 8192 --method kl   another model, formats, text and method

The table is written to OUT/sensitivity_METHOD.csv while it grows; the same command goes on with
it. Where both methods are there, their rank correlation is printed."""

# Flag -> the key of a config that it stands for.
_KEYS = {
    "model": "model.id",
    "task": "model.task",
    "dtype": "model.dtype",
    "device": "model.device",
    "method": "profile.method",
    "seed": "search.seed",
    "source": "data.source",
    "window": "data.window",
    "tokens": "data.calibration_tokens",
    "include": "space.include",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mpq-profile`."""
    parser = argparse.ArgumentParser(
        prog="mpq-profile",
        description="Measures how much each tensor of a language model suffers in each format.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "sensitivity",
        help="the damage of every site in every format",
        description="Fills the damage table: KL divergence from the full-precision model, in "
        "nats per token, when one tensor alone is held in a format.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.toml", help="a config of mpq-search")
    add("--model", metavar="ID", help=f"Hugging Face id or directory (default: {DEFAULT_MODEL})")
    add("--task", choices=("causal-lm", "classification"), help="what the model is loaded for")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the loaded model")
    add("--device", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add("--method", choices=("fisher", "kl"), help="fisher: one backward pass for all pairs "
        "(default); kl: a forward pass for each")  # fmt: skip
    add("--formats", nargs="+", metavar="FORMAT", help=f"default: {' '.join(DEFAULT_FORMATS)}")
    add("--sites", nargs="+", metavar="GLOB", help='which sites (default: "*.weight")')
    add("--include", nargs="+", choices=("lm_head", "embeddings", "bias", "output"),
        help="kinds of site that are left out otherwise")  # fmt: skip
    add("--tokens", type=int, help="tokens that are looked at (default: 4096)")
    add("--window", type=int, help="tokens a window (default: 128)")
    text = command.add_mutually_exclusive_group()
    text.add_argument("--source", choices=("builtin", "wikitext2"), help="default: builtin")
    text.add_argument("--text", type=Path, metavar="FILE", help='a .txt, or a .jsonl with "text"')
    add("--out", type=Path, metavar="DIR", help="default: runs/ and the config's or model's name")
    add("--seed", type=int, help="of the windows and the sampled labels (default: 0)")
    add_log_flags(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program's exit code; see `console`."""
    args = build_parser().parse_args(argv)
    set_up_logging(args.log_level)
    return run_program(lambda: profile_sensitivity(args))


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


def read_config(args: argparse.Namespace) -> SearchConfig:
    """The config file with the flags in place of its keys; without a file, the flags alone.

    Raises:
        ConfigError: Lists every fault of the file and of the flags.
    """
    from mpq.config import load_search_config, search_config

    flags = {key: getattr(args, flag) for flag, key in _KEYS.items()}
    if args.text is not None:
        flags |= {"data.source": "file", "data.path": str(args.text)}
    flags = {key: value for key, value in flags.items() if value is not None}
    if args.config is not None:
        return load_search_config(args.config, flags)
    window = args.window or 128
    table: dict[str, dict[str, Any]] = {
        "model": {"id": DEFAULT_MODEL},
        # A profile looks at its own split only; the others are as small as they can be.
        "data": {"window": window, "search_tokens": window, "heldout_tokens": window},
        "space": {"formats": list(DEFAULT_FORMATS)},
    }
    for key, value in flags.items():
        section, _, name = key.partition(".")
        table.setdefault(section, {})[name] = value
    return search_config(table, where="command line")


def default_folder(args: argparse.Namespace, config: SearchConfig) -> Path:
    """Where the table goes when no directory is named."""
    from mpq.run import default_run_dir

    if args.config is not None:
        return default_run_dir(args.config)
    return Path("runs") / f"profile-{Path(config.model.id).name}"


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


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A progress bar for each thing that a profile does, as a callable."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress


def print_ranking(table: DamageTable, sites: Sequence[str]) -> None:
    """Prints the sites that suffer most and least, by their damage summed over formats."""
    damage = table.select(sites, table.formats)
    totals = [math.fsum(value for value in row if not math.isnan(value)) for row in damage]
    order = sorted(range(len(sites)), key=lambda index: -totals[index])
    columns = ["site", *table.formats]
    rows = [
        [sites[index], *("" if math.isnan(v) else f"{v:.2e}" for v in damage[index])]
        for index in order
    ]
    title = f"damage by {table.method}, nats per token, {table.tokens} tokens"
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
    """Prints how alike the two methods rank what both have measured, if both have a table."""
    from mpq.profiling.sensitivity import METHODS
    from mpq.profiling.table import DamageTable, table_name

    paths = [folder / table_name(method) for method in METHODS]
    if not all(path.exists() for path in paths):
        return
    first, second = (DamageTable.read(path) for path in paths)
    found = first.rank_correlation(second)
    by_format = ", ".join(f"{text} {rho:.3f}" for text, rho in found.by_format.items())
    print(
        f"{first.method} and {second.method} agree on {found.num_pairs} pairs with a rank "
        f"correlation of {found.overall:.3f} ({by_format}); "
        f"sums {found.total:.4g} and {found.other_total:.4g} nats"
    )


if __name__ == "__main__":
    sys.exit(main())
