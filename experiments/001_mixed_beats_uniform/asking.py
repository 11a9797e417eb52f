"""What finished searches answer at budgets that none of their trials was sent to."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optima import Answers, Settings, Windows, between, check_settings

from mpq.run import read_json, write_json
from mpq.search.anchors import Anchor
from mpq.search.asked import Finished, ask
from mpq.search.expansion import GroupMoves, InPlan, group_moves
from mpq.search.looks import from_json, to_json
from mpq.search.objective import make_objectives
from mpq.search.space import Choices, Space

if TYPE_CHECKING:
    from samplers import Study

    from mpq.cli.evaluation import Evaluation

OBJECTIVES = ("kl", "weight_bits")


class SeenInPlans:
    """What was seen of plans: by a search, or here, which a file keeps for all searches."""

    def __init__(
        self,
        space: Space,
        in_plan: InPlan,
        by_search: Mapping[str, Any],
        path: Path,
        settings: Settings | None = None,
    ) -> None:
        """Reads what is there.

        Args:
            space: Of the plans.
            in_plan: Looks at a plan that nobody looked at.
            by_search: Digest -> what a search saw of that plan, as `looks.to_json` has it.
            path: The file.
            settings: What is seen depends on, besides the space.

        Raises:
            RunError: See `check_settings`.
        """
        check_settings(path, {**(settings or {}), "space": space.digest})
        self._space = space
        self._in_plan = in_plan
        self._by_search = by_search
        self._path = path

    def __call__(self, choices: Choices) -> GroupMoves:
        """What moves would do within a plan."""
        plan = self._space.plan(choices)
        kept: dict[str, Any] = read_json(self._path) if self._path.exists() else {}
        known = self._by_search.get(plan.digest) or kept.get(plan.digest)
        if known is None:
            known = to_json(group_moves(self._space, self._in_plan(plan)))
            write_json(self._path, kept | {plan.digest: known})
        return from_json(known)


def answers_of(
    space: Space,
    study: Study,
    evaluate: Evaluation,
    out: Path,
    settings: Settings | None = None,
) -> Answers:
    """What a finished search answers half-way between the rungs.

    Args:
        space: What was searched.
        study: The search; its answers are kept in its folder, and not asked for again.
        evaluate: Measures plans on the search's own tokens, and looks at them.
        out: Folder of what was measured and seen for the answers of any search.
        settings: What measurements and looks depend on, besides the space: model and data.

    Raises:
        RunError: What is there was measured under other settings, or answered from another
            profile.
    """
    objectives = make_objectives(OBJECTIVES)
    windows = Windows(evaluate, space, out / "asked_windows.json", settings)
    path = study.folder / "asked.json"
    profile = sha256(space.damage.tobytes()).hexdigest()
    check_settings(path, {**(settings or {}), "space": space.digest, "profile": profile})
    finished = Finished(
        space=space,
        records=study.records,
        objectives=objectives,
        quality=objectives[0],
        anchors=study.anchors,
        evaluate=windows,
        look=SeenInPlans(space, evaluate.in_plan, study.seen, out / "asked_looks.json", settings),
        first_windows=windows.num_windows,
        functions={},
    )
    kept: dict[str, list[int]] = read_json(path) if path.exists() else {}
    optima = between(space)
    for best in optima:
        if key_of(space, best) not in kept:
            kept[key_of(space, best)] = list(ask(finished, anchor_at(space, best)).best.choices)
            write_json(path, kept)
    return {best: tuple(kept[key_of(space, best)]) for best in optima}


def key_of(space: Space, best: Choices) -> str:
    """The cost of an optimum, as the files of answers name it."""
    return f"{space.bits('weight_bits', best)} bits"


def anchor_at(space: Space, best: Choices) -> Anchor:
    """The anchor at the cost of an optimum: an answer spends no more than its rival."""
    return Anchor(
        name=key_of(space, best),
        limits={"weight_bits": space.bits("weight_bits", best)},
        uniform=None,
        uniform_name="",
        allocation=best,
    )
