"""The commands of `mpq-profile` that look at the values of tensors: variance, statistics."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.cli.console import print_table
from mpq.cli.profile_inputs import (
    add_subject_flags,
    default_folder,
    read_config,
    shown_progress,
)

if TYPE_CHECKING:
    from mpq.config import SearchConfig
    from mpq.modeling.loading import LoadedModel
    from mpq.plans.site import Site
    from mpq.profiling.values import ValueTable

NUM_SHOWN = 10
"""Sites, or blocks, that a printed table shows at most."""

RULES = ("mse", "range")

VARIANCE_EXAMPLE = """\
examples:
  mpq-profile variance                             the model that ships with mpq
  mpq-profile variance --model Qwen/Qwen3-0.6B --text notes.txt --tokens 8192
                                                   another model and text
  mpq-profile variance my_search.toml              the model and text of a search, into its run

Every weight, bias and activation counts, with the head and the embeddings. What was seen is kept
in OUT/values.json: the same command goes on with it, and mpq-profile statistics uses it."""

STATISTICS_EXAMPLE = """\
examples:
  mpq-profile statistics                           the model that ships with mpq
  mpq-profile statistics --fixed-width 8           and a plan of static fixed points of 8 bits
  mpq-profile statistics --model Qwen/Qwen3-0.6B --fixed-width 6 --fixed-rule range
                                                   another model, nothing saturates

What was seen is kept in OUT/values.json: the same command goes on with it, another --fixed-width
needs no forward pass, and mpq-profile variance uses it."""


def add_variance_flags(command: argparse.ArgumentParser) -> None:
    """Adds all flags of `mpq-profile variance`."""
    add_subject_flags(command, seed="the windows")
    _add_sites_flag(command)


def add_statistics_flags(command: argparse.ArgumentParser) -> None:
    """Adds all flags of `mpq-profile statistics`."""
    add_subject_flags(command, seed="the windows")
    _add_sites_flag(command)
    add = command.add_argument
    add("--fixed-width", type=int, metavar="BITS", help="also write plans/fixedBITS.toml: static "
        "fixed points for weights, inputs, q, k, v and probabilities")  # fmt: skip
    add("--fixed-rule", choices=RULES, default="mse", help="how each fraction is chosen. mse: the "
        "least squared error (default); range: nothing that was seen saturates")  # fmt: skip
    add("--include", nargs="+", choices=("lm_head", "embeddings", "bias", "output"),
        help="kinds of site that the plan leaves out otherwise")  # fmt: skip


def _add_sites_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("--sites", nargs="+", metavar="GLOB", help="which sites (default: all)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A finished profile of values.

    Attributes:
        folder: The run directory that it lies in.
        config: The resolved config.
        loaded: The model.
        sites: The sites that were asked for.
        table: What was seen of them.
    """

    folder: Path
    config: SearchConfig
    loaded: LoadedModel
    sites: tuple[Site, ...]
    table: ValueTable


def profile_variance(args: argparse.Namespace) -> None:
    """Writes, prints and draws the variance of every site that the arguments ask for.

    Raises:
        MpqError: The arguments, the model, the data or the directory do not fit.
    """
    from mpq import plots
    from mpq.plots.places import OUTSIDE, place
    from mpq.profiling.variance import variance_rows
    from mpq.run import PLOTS, VARIANCE, write_csv

    profile = measure(args)
    path = profile.folder / VARIANCE
    rows = variance_rows(profile.table, profile.sites)
    write_csv(path, rows)
    has_blocks = any(place(row["site"]).block != OUTSIDE for row in rows)
    if has_blocks:
        print_variance(path, profile)
    print(f"variance table: {path}")
    if has_blocks:
        written = plots.save(plots.variance(path), profile.folder / PLOTS / "variance")
        print(f"plot:           {', '.join(map(str, written))}")


def profile_statistics(args: argparse.Namespace) -> None:
    """Writes and prints statistics of every site that the arguments ask for, and a plan.

    Raises:
        MpqError: The arguments, the model, the data or the directory do not fit.
    """
    from mpq.formats.zoo import parse_format
    from mpq.profiling.statistics import statistics_rows
    from mpq.run import STATISTICS, write_csv

    if args.fixed_width is not None:
        parse_format(f"fixed{args.fixed_width}.0")  # refused now, not after the forward passes
    profile = measure(args)
    rows = statistics_rows(profile.table, profile.sites)
    path = profile.folder / STATISTICS
    write_csv(path, rows)
    print_statistics(rows)
    print(f"statistics table: {path}")
    if args.fixed_width is not None:
        write_fixed_plan(profile, args.fixed_width, args.fixed_rule)


def measure(args: argparse.Namespace) -> Profile:
    """What is seen of the values of the asked sites: from the run, or measured into it.

    Raises:
        MpqError: As the commands.
    """
    from mpq.cli.evaluation import data_of
    from mpq.cli.inputs import load_data_of, load_model_of
    from mpq.modeling.sites import sites
    from mpq.plans.rules import check_patterns, matches
    from mpq.profiling.resuming import start_table
    from mpq.profiling.streaming import measure_values
    from mpq.profiling.values import ValueTable
    from mpq.run import VALUES

    config = read_config(args)
    folder = args.out or default_folder(args, config)
    loaded = load_model_of(config)
    every = sites(loaded.model, lm_head=True, embeddings=True, bias=True, output=True)
    patterns = args.sites or ["*"]
    check_patterns(patterns, every)
    split = load_data_of(config, loaded.tokenizer).calibration
    data = data_of(split)
    wanted = ValueTable(
        tokens=data.numel() if hasattr(split, "tokens") else len(split.labels),
        batch_size=config.data.batch_size,
        fingerprint=loaded.fingerprint,
        data_sha256=split.sha256,
    )
    chosen = tuple(site for site in every if any(matches(one, site) for one in patterns))
    path = folder / VALUES
    with shown_progress() as progress:
        table = measure_values(
            loaded.model,
            data,
            chosen,
            start_table(path, wanted),
            save=lambda table: table.write(path),
            progress=progress,
        )
    return Profile(folder=folder, config=config, loaded=loaded, sites=chosen, table=table)


def print_variance(path: Path, profile: Profile) -> None:
    """Prints log2 of the variance of every kind of tensor, over blocks that are evenly chosen."""
    from mpq.plots.variance_frames import variance_rows

    rows = variance_rows(path)
    blocks = sorted(set(rows["block"]))
    if len(blocks) > NUM_SHOWN:
        last = len(blocks) - 1
        blocks = [blocks[round(last * index / (NUM_SHOWN - 1))] for index in range(NUM_SHOWN)]
    lines = []
    for _, some in rows.groupby("line", sort=True):
        found = dict(zip(some["block"], some["variance"], strict=True))
        cells = [f"{math.log2(found[b]):.1f}" if found.get(b, 0) > 0 else "" for b in blocks]
        lines.append([*some[["label", "section"]].iloc[0], *cells])
    print_table(
        f"log2 of the variance by block, {profile.table.tokens} {what_counts(profile)}",
        ["tensor", "section", *(f"{block}" for block in blocks)],
        lines,
        num_text_columns=2,
    )


def print_statistics(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the sites with the heaviest tails."""
    columns = ("absmax", "std", "abs_p99.9", "kurtosis", "outlier_share")
    heaviest = sorted(rows, key=lambda row: -(row["kurtosis"] or 0))[:NUM_SHOWN]
    print_table(
        f"the {len(heaviest)} of {len(rows)} sites with the highest kurtosis",
        ["site", *columns],
        [
            [row["site"], *("" if row[name] is None else f"{row[name]:.3g}" for name in columns)]
            for row in heaviest
        ],
    )


def write_fixed_plan(profile: Profile, width: int, rule: Any) -> None:
    """Writes the plan of static fixed points of one width, and prints where it is.

    Raises:
        PlanError: None of the profiled sites can be in it.
    """
    from mpq.profiling.fixed_point import fixed_point_plan
    from mpq.run import Run

    chosen = fixed_sites(profile)
    plan = fixed_point_plan(profile.table, chosen, width=width, rule=rule, model=profile.loaded.id)
    path = Run(profile.folder).write_plan(f"fixed{width}", plan)
    fractions = [int(str(given).partition(".")[2]) for given in plan.formats.values()]
    print(
        f"fixed-point plan: {path} ({len(plan.formats)} sites, fractions from {min(fractions)} to "
        f"{max(fractions)}, by {rule})"
    )


def fixed_sites(profile: Profile) -> list[Site]:
    """The profiled sites that a fixed-point plan names.

    Kinds that `--include` does not name stay out. What the KV cache stores takes its format as k
    and v where these are sites, not as the output of the layer that computes it.
    """
    from mpq.modeling.linear import stores_cache_of
    from mpq.modeling.sites import sites

    include = profile.config.space.include
    allowed = sites(
        profile.loaded.model,
        lm_head="lm_head" in include,
        embeddings="embeddings" in include,
        bias="bias" in include,
        output="output" in include,
    )
    names = {site.name for site in allowed} & {site.name for site in profile.sites}
    operands = {site.name for site in allowed if site.role in {"k", "v"}}

    def is_cached(site: Site) -> bool:
        layer = site.name.removesuffix(".output")
        attention, _, leaf = layer.rpartition(".")
        held = {f"{attention}.{operand}" for operand in stores_cache_of(leaf)}
        return site.role == "output" and bool(held & operands)

    return [site for site in allowed if site.name in names and not is_cached(site)]


def what_counts(profile: Profile) -> str:
    """What the table's tokens are: tokens, or examples."""
    return "examples" if profile.config.data.source == "sst2" else "tokens"
