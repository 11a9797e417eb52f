"""Results as Markdown tables: plain values to rows of text."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = tuple[str, ...]
Result = Mapping[str, Any]

COMPARISON = ("at the cost of", "bits", "uniform", "allocation", "search", "returned", "margin")
SEEDS = ("at the cost of", "bits", "uniform", "allocation", "search", "margin",
         "better than the allocation by", "returned")  # fmt: skip
SPEED = ("run", "tokens: profile, trial, proof", "judged", "trials", "a minute", "forward passes")
TOKENS = ("tokens", "at the cost of", "gain on search text", "gain on held-out text", "seeds won")


def markdown(columns: Row, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = (columns, ("---",) * len(columns), *rows)
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def comparison_rows(run: Result) -> list[Row]:
    """A row for each comparison of a search: KL of each plan, margin over the uniform one."""
    rows: list[Row] = []
    for one in run["comparisons"]:
        means = [mean_text(one[role]) for role in ("uniform", "allocation", "found")]
        margin = ""
        if one["uniform"] is not None:
            margin = share_text(one["gain_over_uniform"], one["uniform"]["mean"])
        rows.append((one["anchor"], bits_text(one, run), *means, one["returned"], margin))
    return rows


def mean_text(interval: Result | None) -> str:
    """A mean in four digits; nothing for what is not there."""
    return "" if interval is None else f"{interval['mean']:.4g}"


def bits_text(one: Result, run: Result) -> str:
    """Bits a weight of the returned plan, and of activations where those are searched."""
    text = f"{one['cost']['weight_bits']:.4g}"
    if "activation_bits" in run["objectives"]:
        text += f" + {one['cost']['activation_bits']:.4g}"
    return text


def share_text(gain: Result, whole: float) -> str:
    """A gain and its interval as shares of what it is a gain over."""
    low, high = gain["low"] / whole, gain["high"] / whole
    return f"{gain['mean'] / whole:.1%} [{low:.1%}, {high:.1%}]"


def seed_rows(runs: Sequence[Result]) -> list[Row]:
    """A row for each anchor that all seeds share: medians, and the range of the gains."""
    shared = [
        [one for run in runs for one in run["comparisons"] if one["anchor"] == anchor]
        for anchor in dict.fromkeys(one["anchor"] for one in runs[0]["comparisons"])
    ]
    rows: list[Row] = []
    for seeds in shared:
        if len(seeds) < len(runs):
            continue
        means = [
            statistics.median(one[role]["mean"] for one in seeds)
            for role in ("uniform", "allocation", "found")
        ]
        gains = [one["gain_over_uniform"]["mean"] / one["uniform"]["mean"] for one in seeds]
        more = [1 - one["found"]["mean"] / one["allocation"]["mean"] for one in seeds]
        returned = [one["returned"] for one in seeds]
        counts = ", ".join(f"{returned.count(role)} {role}" for role in dict.fromkeys(returned))
        bits = f"{statistics.median(one['cost']['weight_bits'] for one in seeds):.4g}"
        rows.append(
            (
                seeds[0]["anchor"],
                bits,
                *(f"{mean:.4g}" for mean in means),
                range_text(gains),
                range_text(more),
                counts,
            )
        )
    return rows


def range_text(shares: Sequence[float]) -> str:
    """Median [least, most] of shares."""
    return f"{statistics.median(shares):.1%} [{min(shares):.1%}, {max(shares):.1%}]"


def speed_rows(runs: Sequence[Result]) -> list[Row]:
    """A row for each search: how many tokens it looked at, and how fast its trials were."""
    rows: list[Row] = []
    for run in runs:
        tokens = run["tokens"]
        every = tokens["judge_every"]
        sizes = ", ".join(f"{tokens[key]:,}" for key in ("calibration", "search", "heldout"))
        rows.append(
            (
                run["name"],
                sizes,
                "all positions" if every == 1 else f"every {every}. position",
                str(run["trials"]),
                f"{run['trials_per_minute']:.1f}",
                f"{run['forward_share']:.1%}",
            )
        )
    return rows


def token_rows(results: Result) -> list[Row]:
    """A row for each number of tokens and anchor: gains over the allocation, all seeds."""
    rows: list[Row] = []
    for tokens in results["tokens"]:
        points = [point for point in results["points"] if point["tokens"] == tokens]
        for anchor in dict.fromkeys(point["anchor"] for point in points):
            seeds = [point for point in points if point["anchor"] == anchor]
            seen, unseen = (
                range_text([point[key]["mean"] / point[f"{key}_allocation"] for point in seeds])
                for key in ("search", "heldout")
            )
            won = sum(point["heldout"]["low"] > 0 for point in seeds)
            lost = sum(point["heldout"]["high"] < 0 for point in seeds)
            verdict = f"{won} of {len(seeds)}" + (f", {lost} lost" if lost else "")
            rows.append((f"{tokens:,}", anchor, seen, unseen, verdict))
    return rows
