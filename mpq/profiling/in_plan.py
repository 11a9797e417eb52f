"""What each weight's moves to other formats would do to a plan, from one pass over the data.

A profile looks at one tensor at a time, in a model that is untouched otherwise. Within a plan
errors meet: where few bits are spent, a tensor can cost several times what it costs alone. With D
the divergence of the model under the plan from the model itself, g its gradient there, and d what
a move changes of one tensor's values, Taylor's theorem gives

    D(moved) - D(plan) = g'd + 1/2 d'Hd + ...

The backward pass gives g'd of every move of every tensor at once. The curvature H is not measured
(the diagonal Fisher information is noise in a plan that has broken the model): it is the
profile's, scaled, which `mpq.search.expansion` does; what that needs of d is how far the values in
the two formats are apart. Towards the whole tensor, W - Q(W), half of g'd is left: the gradient of
a weight that was trained is near 0 at its end, so the curvature takes the other half back (the
trapezoid rule). Of a D that is quadratic in all errors together these halves sum to D (Euler's
theorem on homogeneous functions; Aumann and Shapley, Values of Non-Atomic Games, 1974, chapter 3).

The experiment 001_mixed_beats_uniform measures it (part `looks`): tensors moved one by one in
plans of 3 to 5 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpq.formats.format import Format
from mpq.formats.zoo import parse_format
from mpq.kernels.fake_quant import quantize
from mpq.measures import Teacher, teacher_of
from mpq.modeling.scoring import Batch, forward, make_batches
from mpq.modeling.sites import Place, places
from mpq.modeling.wrap import WeightCache, apply_plan
from mpq.plans.move import UNTOUCHED, Move
from mpq.plans.plan import Plan
from mpq.profiling.candidates import Candidates, Progress
from mpq.profiling.gradients import gradients_to, run_backward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpq.data.examples import Examples


def moves_in_plan(  # noqa: PLR0913 (what is looked at, and what a search shares)
    model: PreTrainedModel,
    data: Tensor | Examples,
    plan: Plan,
    candidates: Candidates,
    *,
    judge_every: int = 1,
    cache: WeightCache | None = None,
    teachers: list[Teacher] | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, dict[str, Move]]:
    """Site name -> text of a candidate -> what moving there would do; "fp32" is always among them.

    One backward pass over the data, one window at a time. The gradients of all weights that are
    looked at are kept, in float32, until it is over.

    Args:
        model: A model as loaded, outside of any plan, in eval mode.
        data: Token windows `[N, T]`, or examples of a classification.
        plan: Under which the model is looked at.
        candidates: Where sites may move. Those that hold no weight, or have no format in the
            plan, have no such numbers and are left out.
        judge_every: See `mpq.modeling.scoring.make_batches`.
        cache: Quantised weights that a search keeps anyway.
        teachers: What the model itself predicts on each batch; filled by the first look at the
            data, so that others need not run the model for it.
        progress: Told of each backward pass.
    """
    cache = WeightCache(0) if cache is None else cache
    asked = {
        site.name: formats
        for site, formats in candidates.items()
        if site.is_stored and site.name in plan.formats
    }
    found = [place for place in places(model) if place.site.name in asked]
    gradients = {
        parameter: torch.zeros_like(parameter, dtype=torch.float32)
        for parameter in dict.fromkeys(place.parameter for place in found)
    }

    def add(parameter: nn.Parameter, gradient: Tensor) -> None:
        gradients[parameter] += gradient

    batches = make_batches(data, 1, next(model.parameters()).device, judge_every=judge_every)
    kept = [] if teachers is None else teachers
    kept += teachers_of(model, batches[len(kept) :])
    taught = dict(zip(map(id, batches), kept, strict=True))
    with gradients_to(model, gradients, add), apply_plan(model, plan, cache=cache):
        run_backward(batches, lambda batch: divergence(model, batch, taught[id(batch)]), progress)
    positions = sum(batch.labels.numel() for batch in batches)
    return {
        place.site.name: _moves(
            place,
            gradients[place.parameter],
            positions,
            now=plan.formats[place.site.name],
            formats=asked[place.site.name],
            cache=cache,
        )
        for place in found
    }


@torch.no_grad()
def _moves(
    place: Place,
    gradient: Tensor,
    positions: int,
    *,
    now: Format,
    formats: Sequence[Format],
    cache: WeightCache,
) -> dict[str, Move]:
    """The moves of one site.

    Args:
        place: Where its tensor lies, as loaded.
        gradient: Of the whole parameter, summed over positions.
        positions: How many were judged.
        now: What the plan holds it in.
        formats: Where it may move.
        cache: Quantised weights.
    """
    part = slice(None) if place.part is None else place.part
    whole, gradient = place.parameter.detach()[part], gradient[part]

    def values_in(fmt: Format) -> Tensor:
        if fmt.is_identity:
            return whole.float()
        make = partial(quantize, whole, fmt, place.site.axis, name=place.site.name)
        return cache.get(place.parameter, place.part, str(fmt), make).float()

    held = values_in(now)
    error_now = _squares(held - whole)
    moves = {}
    for fmt in dict.fromkeys((*formats, parse_format(UNTOUCHED))):
        values = values_in(fmt)
        change = values - held
        errors = _squares(values - whole) + error_now
        slope = float((gradient * change).sum())
        moves[str(fmt)] = Move(slope / positions, _squares(change) / errors if errors else 0.0)
    return moves


def _squares(x: Tensor) -> float:
    # torch adds float32 pairwise: seven digits remain, and float64 would take five times as long.
    return float(x.square().sum())


@torch.no_grad()
def teachers_of(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Teacher]:
    """What the model as it stands predicts on each batch."""
    return [teacher_of(forward(model, batch), torch.bfloat16) for batch in batches]


def divergence(model: nn.Module, batch: Batch, teacher: Teacher) -> Tensor:
    """-Σ_t Σ_i r_i log p_i, the divergence but for a constant, summed over a batch's positions."""
    logits = forward(model, batch).float().flatten(0, 1)
    weights = teacher.probabilities.flatten(0, 1).float() / teacher.total.flatten().unsqueeze(-1)
    return nn.functional.cross_entropy(logits, weights, reduction="sum")
