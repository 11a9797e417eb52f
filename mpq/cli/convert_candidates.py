"""A plan assigned by what a solver loses in each candidate format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.cli.profile_inputs import shown_progress
from mpq.errors import PlanError

if TYPE_CHECKING:
    from mpq.cli.convert_inputs import Subject
    from mpq.convert.assignment import CandidateLosses
    from mpq.convert.losses import LossWork
    from mpq.formats.format import Format
    from mpq.plans.plan import Plan


def assigned_plan(
    args: argparse.Namespace, subject: Subject, folder: Path, settings: dict[str, Any]
) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the losses that it was assigned by, as plain values.

    Losses lie in the folder until the conversion is done; another budget needs no new ones.

    Raises:
        MpqError: A candidate is no format, the budget is out of reach, an input is not finite.
    """
    from mpq.convert.finished import keep_settings
    from mpq.convert.losses import LossWork, measure_losses
    from mpq.formats.zoo import parse_format
    from mpq.modeling.sites import places
    from mpq.plans.plan import Plan

    loaded = subject.loaded
    weights = [place for place in places(loaded.model) if _is_converted(place)]
    work = LossWork(
        model=loaded.model,
        places=tuple(weights),
        formats=tuple(parse_format(text) for text in args.candidate_formats),
        calibration=subject.calibration,
        options=subject.options,
        device=subject.device,
    )
    if args.profile is not None:
        refuse_other_profile(args.profile, loaded.fingerprint)
    refuse_unreachable(args, work)
    kept = ("model", "fingerprint", "solver", "walk", "text", "device", "versions")
    keep_settings(
        folder / "losses",
        {key: settings[key] for key in kept} | {"formats": list(map(str, work.formats))},
    )
    with shown_progress() as progress:
        found = measure_losses(work, folder / "losses", progress)
    plan = Plan(formats=chosen(args, found), model=loaded.id, fingerprint=loaded.fingerprint)
    return plan, {
        "losses": dict(found.losses),
        "rounded": dict(found.rounded),
        "energies": dict(found.energies),
    }


def _is_converted(place: Any) -> bool:
    """Whether a weight lies in a block and its input can be reached."""
    from mpq.modeling.experts import is_dispatched

    is_outside = place.is_head or place.is_embedding or place.site.block < 0
    is_seen = place.part is None or is_dispatched(place.module)
    return place.site.role == "weight" and not is_outside and is_seen


def refuse_unreachable(args: argparse.Namespace, work: LossWork) -> None:
    """Nothing comes back, where the rule can assign something, whatever the losses.

    Raises:
        MpqError: The budget or the threshold is out of reach.
    """
    from mpq.convert.assignment import CandidateLosses

    none = {str(fmt): 0.0 for fmt in work.formats}
    sites = tuple(place.site for place in work.places)
    chosen(
        args,
        CandidateLosses(
            sites=sites,
            formats=work.formats,
            losses={site.name: none for site in sites},
            rounded={site.name: none for site in sites},
            energies={site.name: 1.0 for site in sites},
            stores_order=work.options.solver.stores_order,
        ),
    )


def chosen(args: argparse.Namespace, found: CandidateLosses) -> dict[str, Format]:
    """Site -> format by the rule that the arguments name.

    Raises:
        MpqError: The budget or the threshold is out of reach.
    """
    from mpq.convert.assignment import assign_by_threshold, assign_under_budget

    tied = args.tie != "none"
    if args.target_bits is None:
        return assign_by_threshold(found, args.loss_threshold, tied=tied)
    damages = None if args.profile is None else read_damages(args.profile)
    return assign_under_budget(
        found, args.target_bits, tied=tied, relative=bool(args.relative_loss), damages=damages
    )


def read_damages(path: Path) -> dict[str, dict[str, float]]:
    """Site -> format's text -> damage, of a table that `mpq-profile sensitivity` wrote.

    Raises:
        RunError: The file is no such table.
    """
    from mpq.profiling.table import DamageTable

    damages: dict[str, dict[str, float]] = {}
    table = DamageTable.read(path)
    for row, site in enumerate(table.sites):
        damages[site] = dict(zip(table.formats, map(float, table.damage[row]), strict=True))
    return damages


def refuse_other_profile(path: Path, fingerprint: str) -> None:
    """Nothing comes back, where a table was measured on these weights.

    Raises:
        PlanError: It was measured on others.
    """
    from mpq.profiling.table import DamageTable

    found = DamageTable.read(path).fingerprint
    if found != fingerprint:
        raise PlanError(
            f"{path}: a profile counts for the weights it was measured on, {found}, and this "
            f"model's fingerprint is {fingerprint}; profile this model, in this --dtype"
        )
