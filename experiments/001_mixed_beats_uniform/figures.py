"""The figures of the report: those of `mpq.plots` for the runs, and one of gains by tokens."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from samplers_tables import studies_of
from searches import Job, is_proven, jobs_of

from mpq import plots
from mpq.run import open_run, read_json, write_atomic

DPI = 120
"""For reading on a page; `mpq.plots.save` has the resolution for print."""

MAX_SVG_BYTES = 30_000

ALLOCATION_AT = {"tiny_llama": "at_bfp4", "gemma_bfp": "at_bfp4"}
"""Part -> the plan of its first run that is drawn."""


def draw_figures(out: Path, folder: Path, *, configs: Path, seeds: Sequence[int]) -> list[str]:
    """Names of the files written into `folder`: what the runs under `out` allow."""
    written = []
    for stem, figure in figures_of(out, configs=configs, seeds=seeds):
        written += [path.name for path in save_small(figure, folder / stem)]
    return written


def figures_of(out: Path, *, configs: Path, seeds: Sequence[int]) -> Iterator[tuple[str, Figure]]:
    """(name, figure): front and hypervolume of each part, one plan of some, gains by tokens."""
    for part in ("tiny_llama", "tiny_llama_w_a", "gemma_bfp", "gemma_int"):
        jobs = [job for job in jobs_of(part, configs, seeds) if is_proven(out / job.name)]
        if not jobs:
            continue
        yield from run_figures(part, jobs, out)
    for part in ("tokens", "tokens_gemma"):
        path = out / f"{part}.json"
        if path.exists():
            yield part, draw_tokens(read_json(path))
    if (out / "samplers.json").exists():
        yield from sampler_figures(read_json(out / "samplers.json"), out / "samplers")


def run_figures(part: str, jobs: Sequence[Job], out: Path) -> Iterator[tuple[str, Figure]]:
    """The figures of one part's runs."""
    first = open_run(out / jobs[0].name)
    if part == "gemma_int":
        for job in jobs:
            yield f"{job.name}_front", plots.pareto_front(out / job.name)
        return
    yield f"{part}_front", plots.pareto_front(first, x="weight_bits", y="kl")
    lines = {part: [out / job.name for job in jobs]}
    yield f"{part}_hypervolume", plots.hypervolume(lines, x="weight_bits", y="kl")
    name = ALLOCATION_AT.get(part)
    if name is not None and (first.path / "plans" / f"{name}.toml").exists():
        yield f"{part}_{name}", plots.allocation(first, plan=name)


def sampler_figures(results: Mapping[str, Any], out: Path) -> Iterator[tuple[str, Figure]]:
    """The hypervolume by trial of each sampler: a line for each arm, median and range of seeds."""
    for sampler in results["samplers"]:
        lines = {
            arm: [out / study["folder"] for study in studies_of(results, sampler, arm)]
            for arm in results["arms"]
        }
        yield f"samplers_{sampler}", plots.hypervolume(lines, x="weight_bits", y="kl")


def draw_tokens(results: Mapping[str, Any]) -> Figure:
    """Gain over the additive optimum by number of search tokens: seen text and held-out text."""
    anchors = list(dict.fromkeys(point["anchor"] for point in results["points"]))
    figure = Figure(figsize=(2.6 * len(anchors), 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(anchors), sharey=True, squeeze=False)[0]
    for axes, anchor in zip(every, anchors, strict=True):
        points = [point for point in results["points"] if point["anchor"] == anchor]
        for key, colour, label in (
            ("search", "#E69F00", "on the text that it looked at"),
            ("heldout", "#0072B2", "on held-out text"),
        ):
            rows = [
                [100 * p[key]["mean"] / p[f"{key}_allocation"] for p in points if p["tokens"] == n]
                for n in results["tokens"]
            ]
            axes.plot(results["tokens"], [np.median(row) for row in rows], color=colour,
                      marker="o", markersize=3, linewidth=1.1, label=label)  # fmt: skip
            axes.fill_between(results["tokens"], [min(row) for row in rows],
                              [max(row) for row in rows], color=colour, alpha=0.15,
                              linewidth=0)  # fmt: skip
        axes.axhline(0, color="#222222", linewidth=0.6)
        axes.set_xscale("log", base=2)
        axes.set_title(anchor, fontsize=8)
        axes.set_xlabel("Tokens a trial")
    every[0].set_ylabel("KL below the additive optimum's (%) →")
    every[0].legend(frameon=False, fontsize=6)
    return figure


def save_small(figure: Figure, stem: Path) -> list[Path]:
    """`stem`.png at 120 dpi, and `stem`.svg where that is small."""
    paths = []
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        # No date and a fixed salt: equal figures are equal files.
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with mpl.rc_context({"svg.hashsalt": "mpq"}):
            figure.savefig(buffer, format=kind, dpi=DPI, bbox_inches="tight", metadata=metadata)
        path = stem.with_name(f"{stem.name}.{kind}")
        if kind == "svg" and buffer.tell() > MAX_SVG_BYTES:
            path.unlink(missing_ok=True)
            continue
        write_atomic(path, buffer.getvalue())
        paths.append(path)
    return paths
