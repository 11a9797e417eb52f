"""`mpq-search --at`: plans at costs that are asked for once the trials of a run are there."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mpq.cli.search_report import comparison_entry, plan_name, print_comparisons
from mpq.errors import ConfigError

if TYPE_CHECKING:
    from mpq.cli.search_wiring import Subject
    from mpq.config import SearchConfig
    from mpq.run import Run
    from mpq.search.anchors import Anchor
    from mpq.search.asked import Finished
    from mpq.search.objective import Objective
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


def answer(subject: Subject, run: Run, search: Search, anchors: Sequence[Anchor]) -> None:
    """Finds, proves, prints and writes a plan at each anchor.

    The files are `plans/asked_at_<anchor>.toml` (`at_<anchor>.toml` is what the search's own
    proof left there, which may be another plan), and the list `asked` in summary.json.
    """
    from mpq.run import SUMMARY, read_json, write_json

    proof = prove_asked(subject, search, anchors)
    for comparison in proof.comparisons:
        plan = search.space.plan(comparison.choices)
        run.write_plan(asked_name(search, comparison), plan)
    entries = [
        comparison_entry(search, comparison, asked_name(search, comparison))
        for comparison in proof.comparisons
    ]
    path = run.artefact(SUMMARY)
    write_json(path, {**read_json(path), "asked": entries})
    print_comparisons(proof, subject.config.prove.confidence)


def asked_name(search: Search, comparison: Comparison) -> str:
    """Name of the file of the plan that is found at a cost that is asked for."""
    return f"asked_{plan_name(search, comparison)}"


def prove_asked(subject: Subject, search: Search, anchors: Sequence[Anchor]) -> Proof:
    """What held-out windows say of the plan that is found at each anchor."""
    from mpq.cli.evaluation import Evaluation
    from mpq.search.asked import ask
    from mpq.search.prove import Proof, prove

    finished = finished_search(search)
    heldout = Evaluation(subject, subject.splits.heldout)
    proofs = []
    for anchor in anchors:
        asked = ask(finished, anchor)
        print(f"{anchor.name}: {len(asked.measured)} plans measured", file=sys.stderr)
        proof = prove(
            search.space,
            [*finished.records, *asked.measured],
            search.objectives,
            heldout,
            anchors=[anchor],
            plans=0,
            confidence=subject.config.prove.confidence,
            seed=subject.config.search.seed,
            on_plan=lambda *_: None,
        )
        proofs.append(proof)
    return Proof(
        measure=proofs[0].measure,
        num_windows=heldout.num_windows,
        contenders=(),
        comparisons=tuple(one for proof in proofs for one in proof.comparisons),
    )


def finished_search(search: Search) -> Finished:
    """What `ask` needs of a search whose trials are there."""
    from mpq.search.asked import Finished

    assert search.quality is not None  # the rules of the config refuse such a search
    return Finished(
        space=search.space,
        records=search.records(),
        objectives=search.objectives,
        quality=search.quality,
        anchors=search.anchors,
        evaluate=search.judge.evaluate,
        look=search.looks,
        first_windows=search.judge.rungs[0][1],
        functions=search.judge.functions,
    )
