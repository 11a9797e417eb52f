"""What is converted: one format everywhere, or formats assigned by what GPTQ loses in them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpq.cli.convert_candidates import read_damages
from mpq.convert.assignment import CandidateLosses, assign_under_budget
from mpq.convert.block import WalkOptions
from mpq.convert.conversion import prepare
from mpq.convert.finished import FinishedBlocks, open_finished
from mpq.convert.losses import LossWork, measure_losses
from mpq.convert.solver import SolverOptions
from mpq.convert.walk import walk
from mpq.files import write_json
from mpq.formats.format import Format
from mpq.formats.zoo import parse_format
from mpq.modeling.loading import LoadedModel
from mpq.modeling.packed import PackedWeight
from mpq.modeling.sites import Place, places
from mpq.modeling.wrap import uniform_plan
from mpq.plans.plan import Plan

DONE = "done.json"
CPU = torch.device("cpu")


def block_weights(loaded: LoadedModel) -> list[Place]:
    """The weights of the blocks, in the model's order."""
    return [
        place
        for place in places(loaded.model)
        if place.site.role == "weight" and place.site.block >= 0
    ]


def uniform(loaded: LoadedModel, format: str) -> Plan:
    """The plan that gives one format to every weight of the blocks."""
    return uniform_plan(loaded.model, format, roles=("weight",))


def bits_of(plan: Plan, weights: Sequence[Place]) -> int:
    """Bits that the weights take under a plan, scales and all."""
    return sum(
        plan.formats[place.site.name].bits(place.site.shape, place.site.axis) for place in weights
    )


def convert(
    folder: Path, loaded: LoadedModel, plan: Plan, windows: Tensor, walking: WalkOptions
) -> FinishedBlocks:
    """The blocks converted by a plan; goes on where it was interrupted."""
    settings = {
        "plan": plan.digest,
        "model": loaded.fingerprint,
        "solver": asdict(walking.solver),
        "true_sequential": walking.true_sequential,
    }
    finished = open_finished(folder, settings)
    if not (folder.parent / f"{folder.name}.{DONE}").exists():
        conversion = prepare(loaded.model, plan, windows, options=walking, device=CPU)
        walk(conversion, finished, lambda *_: None)
        rows = [report.row for block in finished.blocks() for report in block.reports]
        write_json(folder.parent / f"{folder.name}.{DONE}", rows)
    return finished


def packed_in(finished: FinishedBlocks) -> list[PackedWeight]:
    """Every weight that was converted, as stored."""
    return [packed for block in finished.blocks() for packed in block.packed.values()]


def losses_in(
    folder: Path,
    loaded: LoadedModel,
    formats: Sequence[str],
    windows: Tensor,
    options: SolverOptions,
) -> CandidateLosses:
    """What every weight loses in each candidate when GPTQ solves it."""
    work = LossWork(
        model=loaded.model,
        places=tuple(block_weights(loaded)),
        formats=tuple(map(parse_format, formats)),
        calibration=windows,
        options=WalkOptions(solver=options, batch_size=1),
        device=CPU,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return measure_losses(work, folder, lambda *_: None)


def assigned(
    loaded: LoadedModel,
    found: CandidateLosses,
    reference: str,
    weighing: str,
    profile: Path,
) -> Plan:
    """The plan of least summed loss that takes no more bits than a uniform one.

    Args:
        loaded: The model.
        found: What its weights lose.
        reference: The uniform plan's format.
        weighing: How a loss counts: `absolute`, `relative` to the output, or by `damage`.
        profile: The damages: a table of `mpq-profile sensitivity`.
    """
    weights = block_weights(loaded)
    target = bits_of(uniform(loaded, reference), weights) / sum(
        place.site.shape[0] * place.site.shape[1] for place in weights
    )
    formats: dict[str, Format] = assign_under_budget(
        found,
        target,
        tied=False,
        relative=weighing == "relative",
        damages=read_damages(profile) if weighing == "damage" else None,
    )
    return Plan(formats=formats)


def shares(plan: Plan) -> dict[str, Any]:
    """How many weights have each format."""
    texts = [str(fmt) for fmt in plan.formats.values()]
    return {text: texts.count(text) for text in sorted(set(texts))}
