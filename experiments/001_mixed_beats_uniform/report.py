"""From the runs under a directory to results.json, tables.md and figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from looks import COLUMNS as LOOKS
from looks import look_rows
from results import compact_json
from rivals import AS_STORED, PEER_COLUMNS, UNROUNDED, peer_rows, reproduction, rival_rows
from rivals import COLUMNS as RIVALS
from samplers_tables import tables_of as sampler_tables
from scores import table_of as score_table
from searches import CONFIGS, Job, is_proven, jobs_of
from tables import (
    COMPARISON,
    SEEDS,
    SPEED,
    TOKENS,
    comparison_rows,
    markdown,
    seed_rows,
    speed_rows,
    token_rows,
)

from mpq.run import SUMMARY, open_run, read_json, write_atomic

PROVENANCE = ("model", "model_fingerprint", "data_sha256", "seed", "python", "versions")
COUNTS = ("trials", "by_source", "seconds", "forward_seconds", "objectives")
SPLITS = ("calibration", "search", "heldout")
MEASURED = ("rivals", "looks", "tokens", "tokens_gemma", "scores", "samplers")
"""Parts that leave one JSON file under the runs' directory."""

TITLES = {
    "tiny_llama": "The shipped Llama, weights, block floating point",
    "tiny_llama_w_a": "The shipped Llama, weights and activations, block floating point",
    "gemma_bfp": "Gemma 3 270M, weights, block floating point",
    "gemma_int": "Gemma 3 270M, weights, integers",
}


def write_report(out: Path, folder: Path, *, configs: Path, seeds: Sequence[int]) -> list[str]:
    """Names of the parts in results.json and tables.md, both rewritten in `folder`.

    A part without finished runs under `out` keeps what results.json says of it.

    Args:
        out: Directory of the runs.
        folder: Where the files go.
        configs: Where the configs lie.
        seeds: Of the seeded parts.
    """
    path = folder / "results.json"
    before = read_json(path) if path.exists() else {}
    results = before | collect(out, configs=configs, seeds=seeds)
    parts = [part for part in (*CONFIGS, *MEASURED) if part in results]
    ordered = {part: results[part] for part in parts}
    write_atomic(path, compact_json(ordered))
    write_atomic(folder / "tables.md", "\n".join(section(part, ordered[part]) for part in parts))
    return parts


def collect(out: Path, *, configs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Part -> its results, for every part that has some under `out`."""
    results: dict[str, Any] = {}
    for part in CONFIGS:
        runs = [
            result_of(job, out / job.name)
            for job in jobs_of(part, configs, seeds)
            if is_proven(out / job.name)
        ]
        if runs:
            results[part] = {"runs": runs}
    for part in MEASURED:
        if (out / f"{part}.json").exists():
            kept = read_json(out / f"{part}.json")
            results[part] = {key: value for key, value in kept.items() if key != "scores"}
    return results


def result_of(job: Job, folder: Path) -> dict[str, Any]:
    """What is kept of a search: config, versions, hashes, counts, speed and comparisons."""
    run = open_run(folder)
    summary, data = read_json(folder / SUMMARY), run.config["data"]
    seconds = summary["seconds"]
    sizes = {split: data[f"{split}_tokens"] for split in SPLITS}
    return {
        "name": job.name,
        "config": job.config.name,
        "provenance": {key: run.provenance[key] for key in PROVENANCE},
        "tokens": {**sizes, "window": data["window"], "judge_every": data["judge_every"]},
        **{key: summary[key] for key in COUNTS},
        "trials_per_minute": 60 * summary["trials"] / seconds if seconds else 0.0,
        "forward_share": summary["forward_seconds"] / seconds if seconds else 0.0,
        "windows": summary["proof"]["windows"],
        "comparisons": summary["proof"]["comparisons"],
    }


def section(part: str, result: Mapping[str, Any]) -> str:
    """The tables of a part, as Markdown with a heading."""
    if part in TITLES:
        return search_section(TITLES[part], result["runs"])
    title, write = SECTIONS[part]
    return f"## {title}\n\n{write(result)}"


def search_section(title: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Held-out KL of each search, all seeds of one in one table; then their speed."""
    parts = [f"## {title}\n"]
    if len({run["config"] for run in runs}) < len(runs):
        count = len(runs)
        parts.append(f"{count} seeds: medians, and [least, most].\n")
        parts.append(markdown(SEEDS, seed_rows(runs)))
    else:
        for run in runs:
            if len(runs) > 1:
                parts.append(f"### {run['name']}\n")
            parts.append(markdown(COMPARISON, comparison_rows(run)))
    parts.append(markdown(SPEED, speed_rows(runs)))
    return "\n".join(parts)


def rivals_section(result: Mapping[str, Any]) -> str:
    """Two tables each for tied and untied: code bits at g128, and all stored bits."""
    parts = [reproduction(result)]
    for tie in ("untied", "tied"):
        searches = {
            f"gemma_int_{tie}_2348": "ours, 2/3/4/8",
            f"gemma_int_{tie}_2to8": "ours, 2 to 8",
        }
        free = {f"gemma_groups_{tie}": "ours, 2 to 8, group free (stored bits)"}
        if tie == "untied":
            free["gemma_full_untied"] = "ours, 2 to 8, full range"
        parts.append(f"### {tie}, code bits alone: one quantiser, scales unrounded\n")
        parts.append(rivals_table(result, tie, searches, UNROUNDED))
        parts.append(f"### {tie}, all stored bits: ours with bfloat16 scales\n")
        parts.append(rivals_table(result, tie, searches | free, AS_STORED))
    parts.append("### The others, as given: loss (KL)\n")
    parts.append(markdown(PEER_COLUMNS, peer_rows()))
    return "\n".join(parts)


def rivals_table(
    result: Mapping[str, Any], tie: str, searches: Mapping[str, str], judged: str
) -> str:
    """The best of the others, uniform and our searches, judged in one way."""
    columns = (*RIVALS, "uniform", *searches.values())
    return markdown(columns, rival_rows(result, tie, searches, judged))


def looks_section(result: Mapping[str, Any]) -> str:
    """How near estimates come to what moving a group in a plan changes, target by target."""
    return markdown(LOOKS, look_rows(result))


def tokens_section(result: Mapping[str, Any]) -> str:
    """Gains over the additive optimum by number of search tokens, and from where on they hold."""
    rows = markdown(TOKENS, token_rows(result))
    limits = ", ".join(
        f"{anchor}: {'not so far' if least is None else f'{least:,} tokens'}"
        for anchor, least in result["beats_from"].items()
    )
    return f"{rows}\nMost seeds beat the additive optimum on held-out text from: {limits}.\n"


SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "rivals": ("Other tools, Gemma 3 270M, KL (loss) on twelve windows", rivals_section),
    "looks": ("What moving a tensor changes, Gemma 3 270M", looks_section),
    "tokens": ("How many tokens a search needs, the shipped Llama", tokens_section),
    "tokens_gemma": ("How many tokens a search needs, Gemma 3 270M", tokens_section),
    "scores": ("Which damage score predicts the joint damage", score_table),
    "samplers": ("Samplers, hypervolume by trial, the shipped Llama", sampler_tables),
}
