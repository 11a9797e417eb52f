"""`mpq-search --at`: plans at costs that are asked for once the trials of a run are there."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mpq.cli.search_report import comparison_entry, plan_name, print_comparisons
from mpq.errors import ConfigError

if TYPE_CHECKING:
    from mpq.cli.search_wiring import Subject
    from mpq.config import SearchConfig
    from mpq.run import Run
    from mpq.search.anchors import Anchor
    from mpq.search.asked import Finished
    from mpq.search.kept import Kept
    from mpq.search.objective import Evaluate, Objective
    from mpq.search.prove import Comparison, Proof
    from mpq.search.settings import SearchSettings
    from mpq.search.space import Space
    from mpq.search.study import Search


def check_costs(config: SearchConfig, costs: Sequence[float]) -> None:
    """Refuses costs that no search of this config has plans at; the model is not needed yet.

    Raises:
        ConfigError: The search does not trade bits of weights, or a cost is no
            positive number or comes twice.
    """
    from mpq.search.anchors import TARGET_RESOURCE
    from mpq.search.objective import make_objectives
    from mpq.search.settings import traded_resources

    objectives = make_objectives(config.search.objectives)
    names = [objective.name for objective in objectives]
    if TARGET_RESOURCE not in traded_resources(objectives):
        raise ConfigError(
            "--at takes values of weight_bits, which must be among search.objectives; got "
            f"{names}; search for both, or leave --at out"
        )
    if not all(cost > 0 and math.isfinite(cost) for cost in costs):
        raise ConfigError(f"--at takes positive numbers of bits a weight; got {list(costs)}")
    if len({*costs}) < len(costs):
        raise ConfigError(f"--at takes each value once; got {list(costs)}")


def check_reach(subject: Subject, costs: Sequence[float]) -> None:
    """Refuses costs that no plan of the space has; shapes are enough, nothing is measured.

    Raises:
        MpqError: The space, the budget or the costs do not fit.
    """
    from mpq.cli.search_wiring import make_space, settings_of
    from mpq.search.objective import make_objectives

    objectives = make_objectives(subject.config.search.objectives)
    asked_anchors(make_space(subject, None), settings_of(subject.config), objectives, costs)


def asked_anchors(
    space: Space,
    settings: SearchSettings,
    objectives: Sequence[Objective],
    costs: Sequence[float],
) -> tuple[Anchor, ...]:
    """The anchors at these values of weight_bits, narrowest first; see `check_costs`.

    Raises:
        BudgetError: A cost is out of reach, or two allow the same bits.
    """
    from mpq.search.anchors import AT_BUDGET
    from mpq.search.settings import anchors_of

    wanted = replace(settings, targets=tuple(costs), anchors="targets")
    anchors = anchors_of(space, wanted, objectives)
    asked = tuple(anchor for anchor in anchors if anchor.name != AT_BUDGET)
    # A cost that is the budget's own goes by the name of the budget.
    return asked if len(asked) == len(costs) else anchors


def print_missing(missing: Mapping[str, int]) -> None:
    """Says on stderr why nothing is answered yet, and when it will be."""
    counts = ", ".join(f"{count} {name}" for name, count in missing.items())
    print(
        "--at answers once every trial of the search is over; when this worker was done with its "
        f"own, there were: {counts}; the same command goes on, and answers then",
        file=sys.stderr,
    )


def answer(subject: Subject, run: Run, search: Search, anchors: Sequence[Anchor]) -> None:
    """Finds, proves, writes and prints a plan at each anchor.

    What was measured is kept in asked.json, with what it depends on: a repeat, or a further cost,
    measures no plan twice.
    """
    from mpq.cli.evaluation import Evaluation
    from mpq.run import ASKED
    from mpq.search.kept import Kept

    def keep(part: str, split: Any, evaluate: Evaluate) -> Kept:
        facts = {"data": split.sha256, "model": subject.loaded.fingerprint}
        return Kept(evaluate, run.artefact(ASKED), part=part, settings=facts)

    splits, confidence = subject.splits, subject.config.prove.confidence
    proof = find_plans(
        run,
        search,
        anchors,
        windows=keep("search", splits.search, search.judge.evaluate),
        heldout=keep("heldout", splits.heldout, Evaluation(subject, splits.heldout)),
        confidence=confidence,
    )
    print_comparisons(proof, confidence)


def find_plans(
    run: Run,
    search: Search,
    anchors: Sequence[Anchor],
    *,
    windows: Kept,
    heldout: Kept,
    confidence: float,
) -> Proof:
    """What held-out windows say of the plan that is found at each anchor.

    Each is written as soon as it is there: the plan as `plans/asked_at_<anchor>.toml`
    (`at_<anchor>.toml` is what the search's own proof left there, maybe another plan), and its
    entry in the list `asked` of summary.json, in place of the anchor's former entry.

    Args:
        run: Where.
        search: Its trials are over.
        anchors: At least one.
        windows: Measures plans on the search's windows.
        heldout: On others.
        confidence: Of the intervals.
    """
    from mpq.search.prove import Proof

    finished = finished_search(search, windows)
    proofs = []
    for anchor in anchors:
        proofs.append(find_plan(search, finished, anchor, heldout, confidence))
        write_answer(run, search, proofs[-1].comparisons[0], len(finished.records))
    return Proof(
        measure=proofs[0].measure,
        num_windows=heldout.num_windows,
        contenders=(),
        comparisons=tuple(one for proof in proofs for one in proof.comparisons),
    )


def find_plan(
    search: Search, finished: Finished, anchor: Anchor, heldout: Kept, confidence: float
) -> Proof:
    """What held-out windows say of the plan that is found at an anchor."""
    from mpq.search.asked import ask
    from mpq.search.prove import prove

    asked = ask(finished, anchor)
    print(f"{anchor.name}: {len(asked.measured)} plans beside the trials", file=sys.stderr)
    return prove(
        search.space,
        [*finished.records, *asked.measured],
        search.objectives,
        heldout,
        anchors=[anchor],
        plans=0,
        confidence=confidence,
        seed=search.settings.seed,
        on_plan=lambda *_: None,
    )


def write_answer(run: Run, search: Search, comparison: Comparison, num_trials: int) -> None:
    """Writes the plan that stands at an anchor, and its entry in summary.json."""
    from mpq.run import SUMMARY, read_json, write_json

    name = f"asked_{plan_name(search, comparison)}"
    run.write_plan(name, search.space.plan(comparison.choices))
    entry = comparison_entry(search, comparison, name) | {"trials": num_trials}
    path = run.artefact(SUMMARY)
    table = read_json(path)
    entries = {one["anchor"]: one for one in (*table.get("asked", ()), entry)}
    write_json(path, {**table, "asked": list(entries.values())})


def carried(run: Run, num_trials: int) -> dict[str, Any]:
    """The key `asked` of a run's summary.json, for the one that takes its place.

    Plans that were asked for stay when the search goes on: they cost and measure what they did.
    But what was known when they were found was less, so that is said.

    Args:
        run: Whose summary.json.
        num_trials: Finished trials now; every entry has the number of its time under `trials`.
    """
    from mpq.run import SUMMARY, read_json

    path = run.artefact(SUMMARY)
    entries = read_json(path).get("asked", []) if path.exists() else []
    former = [one["anchor"] for one in entries if one.get("trials", num_trials) != num_trials]
    if former:
        print(
            f"the plans that were asked for at {', '.join(former)} are from before the last "
            "trials; the same --at finds them anew",
            file=sys.stderr,
        )
    return {"asked": entries} if entries else {}


def finished_search(search: Search, windows: Kept) -> Finished:
    """What `ask` needs of a search whose trials are there.

    Args:
        search: The search.
        windows: Measures plans in its evaluation's place.
    """
    from mpq.search.asked import Finished

    assert search.quality is not None  # the rules of the config refuse such a search
    return Finished(
        space=search.space,
        records=search.records(),
        objectives=search.objectives,
        quality=search.quality,
        anchors=search.anchors,
        evaluate=windows,
        look=search.looks,
        first_windows=search.judge.rungs[0][1],
        functions={
            name: windows.function(name, one) for name, one in search.judge.functions.items()
        },
    )
