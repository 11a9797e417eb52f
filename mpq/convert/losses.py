"""Sensitivity by the solver's own loss: every weight solved in every candidate format.

Sparsebit's rule (its LLaMA tool, `convert.py`): run GPTQ for each candidate from the original
weights, and compare what it loses. Here every weight of a block is calibrated on one pass of the
model as it was given, so the losses of different weights have one reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mpq.convert.assignment import CandidateLosses
from mpq.convert.block import WalkOptions, hessian_room, in_portions, sums_seen
from mpq.convert.solver import solve
from mpq.convert.streams import Progress, Stream, advance, passes, start_stream
from mpq.errors import PlanError
from mpq.files import read_json, write_json
from mpq.formats.format import Format
from mpq.modeling.blockwise import stack_of
from mpq.modeling.capture import Reader, readers_of
from mpq.modeling.residence import on_device, part_of
from mpq.modeling.sites import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossWork:
    """The weights that are solved in every candidate, and how.

    Attributes:
        model: On the CPU, as it was given.
        places: The weights, each in a block.
        formats: The candidates.
        calibration: Token ids [N, T].
        options: Of solver and passes.
        device: Where blocks are worked on.
    """

    model: PreTrainedModel
    places: tuple[Place, ...]
    formats: tuple[Format, ...]
    calibration: Tensor
    options: WalkOptions
    device: torch.device


def measure_losses(work: LossWork, folder: Path, progress: Progress) -> CandidateLosses:
    """What each weight loses in each candidate; blocks that are in the folder are not run again.

    Args:
        work: What is asked.
        folder: Holds one file a block, which must come from the same work.
        progress: Told about every block.

    Raises:
        PlanError: A weight lies in no block, or its input cannot be seen.
        ModelError: A weight or an activation is not finite; names it.
    """
    readers = {
        index: readers_of([p for p in work.places if p.site.block == index], {})
        for index in sorted({place.site.block for place in work.places})
    }
    _refuse_blind(readers)
    model, size = work.model, work.options.batch_size
    found = stack_of(model)
    paths = [folder / f"losses-{index:05}.json" for index in range(len(found))]
    if not all(path.exists() for path in paths):
        states = work.options.activations
        stream = start_stream(model, torch.split(work.calibration, size), states)
        for index, (_, block) in enumerate(found):
            progress("losses", index, len(found))
            with on_device([block], work.device):
                if not paths[index].exists():
                    of_block = _losses_of(work, stream, (index, block), readers.get(index, []))
                    write_json(paths[index], of_block)
                advance(stream, block, index, work.device)
        progress("losses", len(found), len(found))
    rows: dict[str, Any] = {}
    for path in paths:
        rows |= read_json(path)
    return CandidateLosses(
        sites=tuple(place.site for place in work.places),
        stores_order=work.options.solver.stores_order,
        formats=work.formats,
        losses={name: row["losses"] for name, row in rows.items()},
        rounded={name: row["rounded"] for name, row in rows.items()},
        energies={name: row["energy"] for name, row in rows.items()},
    )


def _refuse_blind(readers: Mapping[int, Sequence[Reader]]) -> None:
    blind = [
        place.site.name
        for index, found in readers.items()
        for reader in found
        for place in reader.places
        if index < 0 or not reader.can_be_seen
    ]
    if blind:
        raise PlanError(
            "a solver's loss needs a weight's inputs, and these are outside of the blocks or out "
            f"of reach: {', '.join(blind[:5])}{', …' if len(blind) > 5 else ''}; leave them out"
        )


def _losses_of(
    work: LossWork, stream: Stream, numbered: tuple[int, nn.Module], readers: Sequence[Reader]
) -> dict[str, Any]:
    """The rows of a block's weights.

    An expert without tokens is given the mean Hessian of those of its size, as if one token had
    come.
    """
    index, block = numbered
    runs = tuple(passes(stream, block, index, work.device))
    num_tokens = work.calibration.numel()
    means: dict[int, _Mean] = {}
    unseen: list[Reader] = []
    rows: dict[str, Any] = {}
    for portion in in_portions(readers, hessian_room(work.device)):
        sums = sums_seen(portion, runs, work.device)
        for reader in portion:
            seen = sums.pop(reader.name)
            if not seen.num_tokens:
                unseen.append(reader)
                continue
            hessian = seen.hessian()
            if reader.is_expert:
                means.setdefault(seen.size, _Mean()).add(hessian, seen.num_tokens)
            rows |= _rows_of(work, reader, hessian, seen.num_tokens / num_tokens)
    for reader in unseen:
        site = reader.places[0].site
        size = site.shape[site.axis]
        eye = torch.eye(size, dtype=torch.float64, device=work.device)
        hessian = means[size].mean() if size in means else eye
        rows |= _rows_of(work, reader, hessian, 1 / num_tokens)
    return rows


class _Mean:
    """The mean of Hessians, weighted by their tokens."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._num_tokens = 0

    def add(self, hessian: Tensor, num_tokens: int) -> None:
        part = hessian * num_tokens
        self._total = part if self._total is None else self._total.add_(part)
        self._num_tokens += num_tokens

    def mean(self) -> Tensor:
        if self._total is None:
            raise TypeError("there is a mean once something was added")
        return self._total / self._num_tokens


def _rows_of(
    work: LossWork, reader: Reader, hessian: Tensor, share: float
) -> dict[str, dict[str, Any]]:
    return {
        place.site.name: _losses_of_weight(work, place, hessian, share) for place in reader.places
    }


def _losses_of_weight(
    work: LossWork, place: Place, hessian: Tensor, share: float
) -> dict[str, Any]:
    """Loss in each candidate and energy, means over all calibration tokens."""
    weight, site = part_of(place), place.site
    wide = weight.double() if site.axis != 0 else weight.double().T
    solved = {
        str(format): solve(
            weight,
            hessian,
            format,
            axis=site.axis,
            options=work.options.solver,
            name=site.name,
        )
        for format in work.formats
    }
    return {
        "energy": share * float(((wide @ hessian) * wide).sum()) / 2,
        "losses": {text: share * found.loss for text, found in solved.items()},
        "rounded": {text: share * found.rtn_loss for text, found in solved.items()},
    }
