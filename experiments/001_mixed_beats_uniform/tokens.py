"""From how many search tokens on a search beats the additive optimum on held-out text.

A setting is a number of search tokens and a seed; all settings of a seed share calibration and
held-out windows, number of trials and profile. The plan that a search found is paired, window by
window, with the exact additive optimum at the same cost: on the tokens that the search looked
at, and on held-out ones. The difference of the two gains is what it overfitted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpq.cli.evaluation import Evaluation
from mpq.cli.search import open_search, start
from mpq.cli.search_wiring import Subject, load_subject
from mpq.config import load_search_config
from mpq.run import read_json, write_json
from mpq.search.front import TrialRecord
from mpq.search.prove import bootstrap_mean
from mpq.search.refine import lineages
from mpq.search.space import Choices, FloatArray
from mpq.search.study import Search

POINTS = "points.json"


def measure_tokens(
    out: Path,
    *,
    config: Path,
    tokens: Sequence[int],
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Every setting's gains over the additive optimum, as plain values.

    What is there already is not run again.

    Args:
        out: Directory of the runs, one a setting.
        config: What is searched, with how many trials; with as many anchors as are of interest.
        tokens: Numbers of search tokens, multiples of the window.
        seeds: Of windows and samplers.
        overrides: Dotted keys of the config -> other values.
        say: Told about each setting.
    """
    points = []
    for seed in seeds:
        for count in tokens:
            keys = {**(overrides or {}), "data.search_tokens": count, "search.seed": seed}
            folder = out / f"{count}_seed{seed}"
            found = read_points(folder)
            if found is None:
                found = measure_setting(load_subject(load_search_config(config, keys)), folder)
            points += [{"tokens": count, "seed": seed, **point} for point in found]
            say(f"{count} tokens, seed {seed}: {line_of(found)}")
    first = out / f"{tokens[0]}_seed{seeds[0]}"
    return {
        "config": load_search_config(config, dict(overrides or {})).resolved(),
        "provenance": read_json(first / "provenance.json"),
        "tokens": list(tokens),
        "seeds": list(seeds),
        "points": points,
        "beats_from": {
            anchor: beats_from([point for point in points if point["anchor"] == anchor])
            for anchor in dict.fromkeys(point["anchor"] for point in points)
        },
    }


def read_points(folder: Path) -> list[dict[str, Any]] | None:
    """What was measured of a setting before; None when it was not measured to the end."""
    path = folder / POINTS
    return list(read_json(path)) if path.exists() else None


def measure_setting(subject: Subject, folder: Path) -> list[dict[str, Any]]:
    """One point for each anchor: runs what the search lacks, then judges it on held-out text."""
    run = start(subject, folder)
    search = open_search(subject, run)
    search.run()
    points = gains(subject, search)
    write_json(folder / POINTS, points)
    return points


def gains(subject: Subject, search: Search) -> list[dict[str, Any]]:
    """What the best plan at each anchor gains over the additive optimum there."""
    records = search.records()
    known = {record.choices: record for record in reversed(records)}
    seen, unseen = (
        Judged(search, subject, split, known if split is subject.splits.search else {})
        for split in (subject.splits.search, subject.splits.heldout)
    )
    points = []
    assert search.quality is not None  # the config asks for KL
    for lineage in lineages(
        search.space, records, search.objectives, quality=search.quality, anchors=search.anchors
    ):
        best, allocation = lineage.best.choices, lineage.anchor.allocation
        point: dict[str, Any] = {
            "anchor": lineage.anchor.name,
            "weight_bits": search.space.mean_bits("weight_bits", best),
            "is_allocation": best == allocation,
            "source": lineage.best.source,
            "trials": len(records),
        }
        for key, judged in (("search", seen), ("heldout", unseen)):
            ours, theirs = judged(best), judged(allocation)
            gain = bootstrap_mean(
                theirs - ours,
                confidence=subject.config.prove.confidence,
                seed=subject.config.search.seed,
            )
            point |= {key: asdict(gain), f"{key}_allocation": float(theirs.mean())}
        points.append(point)
    return points


class Judged:
    """The KL of plans in each window of a split; what a trial measured is not measured again."""

    def __init__(
        self,
        search: Search,
        subject: Subject,
        split: Any,
        known: Mapping[Choices, TrialRecord],
    ) -> None:
        """Measures nothing yet."""
        self._space = search.space
        self._evaluate = Evaluation(subject, split)
        self._windows = {
            choices: record.windows
            for choices, record in known.items()
            if record.windows is not None and len(record.windows) == self._evaluate.num_windows
        }

    def __call__(self, choices: Choices) -> FloatArray:
        """`[N]`: nats a token."""
        if choices not in self._windows:
            self._windows[choices] = self._evaluate(self._space.plan(choices))["kl"]
        return self._windows[choices]


def beats_from(points: Sequence[Mapping[str, Any]]) -> int | None:
    """The least number of tokens from which on the search beats the optimum on held-out text.

    With so many tokens, and with every larger number that was tried, most seeds have a gain whose
    interval lies above 0; None when that is so for none.
    """
    least = None
    for tokens in sorted({point["tokens"] for point in points}, reverse=True):
        seeds = [point for point in points if point["tokens"] == tokens]
        won = sum(point["heldout"]["low"] > 0 for point in seeds)
        if 2 * won <= len(seeds):
            break
        least = tokens
    return least


def line_of(points: Sequence[Mapping[str, Any]]) -> str:
    """One line about a setting, for whoever waits."""
    return ", ".join(
        f"{point['anchor']} {point['heldout']['mean'] / point['heldout_allocation']:+.1%}"
        for point in points
    )
