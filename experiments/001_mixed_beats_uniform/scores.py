"""Measures how well each damage score predicts the KL of mixed plans, by rank correlation.

    python experiments/001_mixed_beats_uniform/scores.py [CONFIG.toml] [--out DIR] [--results FILE]

Draws random plans (`drawing.py`): one set over the whole range of bits, one of nearly the same
bits, which is what a search has to tell apart. Each plan's joint KL is measured on held-out
windows, and set against the sum of the damages of its pairs, for each method of the profile, all
of them measured on the same calibration windows. Whatever is in the directory already is not
measured again.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing import Drawn, draw_at, draw_over_range
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from mpq.cli.evaluation import Evaluation
from mpq.cli.search import start
from mpq.cli.search_wiring import Subject, load_subject, measure_damage
from mpq.config import SearchConfig, load_search_config
from mpq.config_sections import ProfileSection
from mpq.plans.plan import Plan
from mpq.profiling.sensitivity import METHODS
from mpq.profiling.table import DamageTable
from mpq.run import DAMAGE_UNITS, read_csv, read_json, write_csv, write_json

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "scores.toml"
DEFAULT = ProfileSection().method
"""What every other score is compared with."""

RESAMPLES = 2000
CONFIDENCE = 0.95
STATISTICS: Mapping[str, Callable[..., float]] = {
    "spearman": lambda x, y: float(spearmanr(x, y).statistic),
    "kendall": lambda x, y: float(kendalltau(x, y).statistic),
}
JOINT, SECONDS = "joint.csv", "cpu_seconds.json"
Floats = NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    """Which plans are drawn.

    Attributes:
        plans: In each of the two sets.
        bits: Stored bits a value of the second set (4.5 is what uniform bfp4 stores).
        tolerance: How far from them a plan may be.
    """

    plans: int = 50
    bits: float = 4.5
    tolerance: float = 0.05


def measure_scores(
    config: SearchConfig,
    out: Path,
    *,
    sets: Sets | None = None,
    methods: Sequence[str] = METHODS,
    say: Say = print,
) -> dict[str, Any]:
    """The rank correlations of each score with the joint KL, as plain values.

    Args:
        config: Model, text, searched sites and their formats. Scores look at all calibration
            windows, plans are judged on all held-out windows; `search.seed` draws the plans too.
        out: Directory of the tables and of the plans' KL; what is there is not measured again.
        sets: Which plans are drawn.
        methods: The scores, of `METHODS`.
        say: Told what is being done.

    Raises:
        RunError: The directory holds measurements of another model, text or config.
    """
    sets = sets or Sets()
    subject = load_subject(config)
    start(subject, out)
    candidates, seed = subject.candidates, config.search.seed
    drawn = {
        "range": draw_over_range(candidates, sets.plans, seed),
        "equal": draw_at(candidates, sets.plans, seed, bits=sets.bits, tolerance=sets.tolerance),
    }
    tables = {method: profile(subject, method, out, say) for method in methods}
    joint = {name: judge(subject, name, plans, out, say) for name, plans in drawn.items()}
    return {
        "model": config.model.id,
        "fingerprint": subject.loaded.fingerprint,
        "dtype": config.model.dtype,
        "formats": list(config.space.formats),
        "sites": len(candidates),
        "calibration_tokens": subject.splits.calibration.tokens.numel(),
        "judged_tokens": subject.splits.heldout.tokens.numel(),
        "seed": seed,
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "units": {method: DAMAGE_UNITS[method] for method in methods},
        "cpu_seconds": read_json(out / SECONDS),
        "threads": torch.get_num_threads(),
        "sets": {name: compare(plans, joint[name], tables, seed) for name, plans in drawn.items()},
    }


# --- measuring --------------------------------------------------------------------------------


def profile(subject: Subject, method: str, out: Path, say: Say) -> DamageTable:
    """The damage table of a method, from `out` or measured into it."""
    section = subject.config.model_copy(update={"profile": ProfileSection(method=method)})
    return timed(
        out,
        method,
        lambda: measure_damage(replace(subject, config=section), out, lambda *_: None),
        say,
    )


def timed(out: Path, what: str, measure: Callable[[], Any], say: Say) -> Any:
    """What `measure` returns; the CPU seconds that it took, in all runs, are kept in `out`.

    Of the processor, since a shared machine's clock says as much about its other work.
    """
    began = time.process_time()
    try:
        return measure()
    finally:
        path = out / SECONDS
        seconds = read_json(path) if path.exists() else {}
        seconds[what] = round(seconds.get(what, 0.0) + time.process_time() - began, 2)
        write_json(path, seconds)
        say(f"{what}: {seconds[what]:.1f} CPU s")


def judge(subject: Subject, name: str, plans: Sequence[Drawn], out: Path, say: Say) -> Floats:
    """The joint KL of each plan in nats per token; `inf` where the model gives NaN."""
    path = out / JOINT
    rows = read_csv(path) if path.exists() else []
    known = {row["plan"]: float(row["kl"]) for row in rows}
    missing = [drawn for drawn in plans if key_of(drawn) not in known]

    def measure() -> None:
        evaluate = Evaluation(subject, subject.splits.heldout)
        for drawn in missing:
            plan = Plan(formats={**subject.fixed, **drawn.formats})
            mean = float(np.mean(evaluate(plan)["kl"]))
            known[key_of(drawn)] = kl = float("inf") if np.isnan(mean) else mean
            rows.append({"plan": key_of(drawn), "set": name, "bits": drawn.bits, "kl": kl})
            write_csv(path, rows)

    if missing:
        timed(out, f"joint KL, {name}", measure, say)
    return np.array([known[key_of(drawn)] for drawn in plans])


def key_of(drawn: Drawn) -> str:
    """What a plan is known by in the file of its KL."""
    text = "\n".join(f"{site}={fmt}" for site, fmt in sorted(drawn.formats.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- comparing --------------------------------------------------------------------------------


def compare(
    plans: Sequence[Drawn], joint: Floats, tables: Mapping[str, DamageTable], seed: int
) -> dict[str, Any]:
    """One set's bits, KL and predictions, and how alike each score ranks it."""
    predicted = {
        method: np.array([table.predict(Plan(formats=drawn.formats)) for drawn in plans])
        for method, table in tables.items()
    }
    bits = np.array([drawn.bits for drawn in plans])
    scores = {method: agreement(values, joint, seed) for method, values in predicted.items()}
    for method, values in predicted.items():
        if method != DEFAULT and DEFAULT in predicted:
            scores[method]["spearman_gain"] = gain(values, predicted[DEFAULT], joint, seed)
    return {
        "plans": len(plans),
        "bits": bits.round(4).tolist(),
        "kl": significant(joint),
        "predicted": {method: significant(values) for method, values in predicted.items()},
        "bits_alone": agreement(-bits, joint, seed),
        "scores": scores,
    }


def agreement(predicted: Floats, joint: Floats, seed: int) -> dict[str, Any]:
    """Each rank correlation with its bootstrap interval over plans."""
    return {
        name: interval(statistic, (predicted, joint), seed)
        for name, statistic in STATISTICS.items()
    }


def gain(predicted: Floats, default: Floats, joint: Floats, seed: int) -> dict[str, float]:
    """By how much a score's Spearman exceeds the default's, on the same resampled plans."""
    spearman = STATISTICS["spearman"]
    return interval(
        lambda x, d, y: spearman(x, y) - spearman(d, y), (predicted, default, joint), seed
    )


def interval(
    statistic: Callable[..., float], samples: tuple[Floats, ...], seed: int
) -> dict[str, float]:
    """A statistic of paired samples, with its percentile bootstrap interval.

    Plans are drawn anew with replacement; a draw of one plan only has no ranking, and is left out.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    count = len(samples[0])
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    values = [
        statistic(*(sample[rows] for sample in samples)) for rows in drawn if np.ptp(rows) > 0
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return {
        "value": round(statistic(*samples), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def significant(values: Floats) -> list[float | None]:
    """Values with five significant digits, as the file holds them; None for what is infinite."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]


def table_of(result: Mapping[str, Any]) -> str:
    """The correlations as a Markdown table."""
    measured = [f"{name}, {statistic}" for name in result["sets"] for statistic in STATISTICS]
    columns = ("score", "CPU seconds", *measured)
    lines = [columns, ("---",) * len(columns)]
    for method in result["units"]:
        cells = [
            f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            for group in result["sets"].values()
            for one in (group["scores"][method][statistic] for statistic in STATISTICS)
        ]
        lines.append((method, f"{result['cpu_seconds'][method]:.1f}", *cells))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, writes scores.json and prints the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("config", nargs="?", type=Path, default=CONFIG, metavar="CONFIG.toml")
    add("--out", type=Path, default=Path("runs/scores"), help="where the measurements lie")
    add("--results", type=Path, help="default: scores.json in OUT")
    add("--plans", type=int, default=Sets().plans, help="in each set")
    arguments = parser.parse_args(argv)
    config = load_search_config(arguments.config)
    result = measure_scores(config, arguments.out, sets=Sets(plans=arguments.plans))
    write_json(arguments.results or arguments.out / "scores.json", result)
    print(table_of(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
