"""`mpq-search --at`: plans at costs that are asked for once the trials of a run are there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mpq.cli.search_report import comparison_entry, plan_name, print_comparisons
from mpq.errors import ConfigError

if TYPE_CHECKING:
    from mpq.cli.search_wiring import Subject
    from mpq.run import Run
    from mpq.search.anchors import Anchor
    from mpq.search.asked import Finished
    from mpq.search.prove import Proof
    from mpq.search.study import Search


def asked_anchors(search: Search, costs: Sequence[float]) -> tuple[Anchor, ...]:
    """The anchors at these values of weight_bits, narrowest first.

    Raises:
        BudgetError: A cost is out of reach.
        ConfigError: The search does not trade bits of weights for a measure.
    """
    from mpq.search.anchors import AT_BUDGET, make_anchors
    from mpq.search.settings import check_space

    if search.quality is None:
        raise ConfigError(
            "--at finds the plan that is best by a measure, and search.objectives has none but "
            f"costs: {[objective.name for objective in search.objectives]}; search for one such "
            "as kl, or leave --at out"
        )
    targets = tuple(costs)
    check_space(search.space, replace(search.settings, targets=targets), search.objectives)
    anchors = make_anchors(
        search.space,
        search.objectives,
        compared=search.compared,
        limits=search.limits,
        targets=targets,
        which="targets",
    )
    return tuple(anchor for anchor in anchors if anchor.name != AT_BUDGET)


def answer(subject: Subject, run: Run, search: Search, anchors: Sequence[Anchor]) -> None:
    """Finds, proves, prints and writes a plan at each anchor.

    The files are `plans/at_<anchor>.toml`, and the list `asked` in summary.json.
    """
    from mpq.run import SUMMARY, read_json, write_json

    proof = prove_asked(subject, search, anchors)
    for comparison in proof.comparisons:
        plan = search.space.plan(comparison.choices)
        run.write_plan(plan_name(search, comparison), plan)
    entries = [comparison_entry(search, comparison) for comparison in proof.comparisons]
    path = run.artefact(SUMMARY)
    write_json(path, {**read_json(path), "asked": entries})
    print_comparisons(proof, subject.config.prove.confidence)


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

    assert search.quality is not None  # `asked_anchors` refuses such a search
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
