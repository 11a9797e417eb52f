"""What is converted, and how: checked as a whole before any work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpq.convert.block import WalkOptions
from mpq.errors import ModelError, PlanError
from mpq.modeling.blockwise import stack_of
from mpq.modeling.residence import outside_of_blocks, part_of
from mpq.modeling.sites import Place, places
from mpq.modeling.validity import check_plan
from mpq.modeling.wrap import apply_plan
from mpq.plans.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversion:
    """What is converted, and how.

    Attributes:
        model: On the CPU; its weights may be mapped from files.
        plan: Formats of stored tensors, which are converted, and of activations, which are in
            force wherever converted blocks run. Every site under its own name.
        calibration: Token ids [N, T].
        heldout: Token ids [M, T] that are only judged; None for none.
        options: Of the walk.
        device: Where blocks are worked on, one at a time.
    """

    model: PreTrainedModel
    plan: Plan
    calibration: Tensor
    heldout: Tensor | None
    options: WalkOptions
    device: torch.device

    @property
    def stored(self) -> dict[str, Place]:
        """The stored tensors that are converted, by site."""
        return {
            place.site.name: place
            for place in places(self.model)
            if place.site.is_stored and place.site.name in self.plan.formats
        }

    def under_activations(self) -> AbstractContextManager[None]:
        """A context in which activations have their formats."""
        stored = self.stored
        flowing = {name: fmt for name, fmt in self.plan.formats.items() if name not in stored}
        plan = replace(self.plan, formats=flowing)
        return apply_plan(self.model, plan) if flowing else nullcontext()


def prepare(
    model: PreTrainedModel,
    plan: Plan,
    calibration: Tensor,
    heldout: Tensor | None = None,
    *,
    options: WalkOptions,
    device: torch.device,
) -> Conversion:
    """A conversion that was checked: everything that can be refused is, before any work.

    Raises:
        PlanError: The plan does not fit the model, or names no stored tensor.
        ModelError: The blocks are not one stack; biases are to be corrected where there are none.
    """
    found = check_plan(model, plan.formats, places(model))
    kept = {name: fmt for name, fmt in plan.formats.items() if not fmt.is_identity}
    own = replace(plan, formats={found[name].site.name: fmt for name, fmt in kept.items()})
    stack_of(model)
    conversion = Conversion(
        model=model,
        plan=own,
        calibration=calibration,
        heldout=heldout,
        options=options,
        device=device,
    )
    if not conversion.stored:
        raise PlanError(
            "a conversion needs a stored tensor (a weight or a bias) with another format than its "
            f"own, and of the plan's {len(plan.formats)} sites none is; give it one"
        )
    _refuse_shared(conversion)
    _refuse_not_finite(conversion)
    experts = [name for name, place in conversion.stored.items() if place.part is not None]
    if options.bias_correction and experts:
        raise ModelError(
            "biases are corrected in linear layers, and these weights belong to fused experts: "
            f"{', '.join(experts[:5])}{', …' if len(experts) > 5 else ''}; leave bias correction "
            "out, or the experts out of the plan"
        )
    return conversion


def _refuse_shared(conversion: Conversion) -> None:
    """Refuses a tensor that two blocks share: each block is converted and let go by itself."""
    holders: dict[int, set[int]] = {}
    for index, (_, block) in enumerate(stack_of(conversion.model)):
        for parameter in block.parameters():
            holders.setdefault(id(parameter), set()).add(index)
    for module in outside_of_blocks(conversion.model):
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(-1)
    shared = [n for n, p in conversion.stored.items() if len(holders[id(p.parameter)]) > 1]
    if shared:
        raise ModelError(
            f"a tensor is converted in one block, and these are shared by several: "
            f"{', '.join(shared)}; leave them out of the plan"
        )


def _refuse_not_finite(conversion: Conversion) -> None:
    broken = [
        name for name, p in conversion.stored.items() if not bool(part_of(p).isfinite().all())
    ]
    if broken:
        raise ModelError(
            "weights must be finite to be given a format, and these are not: "
            f"{', '.join(broken)}; repair the model, or leave them out of the plan"
        )
