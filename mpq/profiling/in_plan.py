"""What each weight's format costs within a plan, all of them from one pass over the data.

A profile looks at one tensor at a time, in a model that is untouched otherwise. Within a plan
errors meet: where few bits are spent, a tensor can cost several times what it costs alone. With D
the divergence of the model under the plan from the model itself, δ = W - Q(W) what the format
took from one tensor, and g₀, g₁ the gradient of D with the tensor in its format and whole,

    D(plan) - D(plan, that tensor whole) = -∫ g(t)ᵀδ dt ≈ -½ (g₀ + g₁)ᵀδ ≈ -½ g₀ᵀδ

by the trapezoid rule, and since a weight of a trained model is near its best, where g₁ is 0. Of a
D that is quadratic in all errors together these are shares that sum to it (Euler's theorem on
homogeneous functions; Aumann and Shapley, Values of Non-Atomic Games, 1974, chapter 3). It takes
no curvature: where a plan has broken the model, second-order terms are wrong by orders of
magnitude, and the diagonal Fisher information is noise for a tensor with outliers anywhere.

The experiment 001_mixed_beats_uniform measures it (part `looks`): tensors lifted one by one out of
plans of 3 to 5 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpq.measures import Teacher, teacher_of
from mpq.modeling.scoring import Batch, forward, make_batches
from mpq.modeling.sites import places
from mpq.modeling.wrap import WeightCache, apply_plan
from mpq.plans.plan import Plan
from mpq.plans.site import Site
from mpq.profiling.candidates import Progress
from mpq.profiling.gradients import SlopeSums, gradients_to, run_backward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpq.data.examples import Examples


def damage_in_plan(  # noqa: PLR0913 (what is looked at, and what a search shares)
    model: PreTrainedModel,
    data: Tensor | Examples,
    plan: Plan,
    wanted: Iterable[Site],
    *,
    judge_every: int = 1,
    cache: WeightCache | None = None,
    teachers: list[Teacher] | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, float]:
    """Site name -> nats per judged position that the plan would gain by giving it no format.

    One backward pass over the data, one window at a time. A number below 0 says that the format's
    errors make up for those of others.

    Args:
        model: A model as loaded, outside of any plan, in eval mode.
        data: Token windows `[N, T]`, or examples of a classification.
        plan: Under which the model is looked at.
        wanted: Sites of the plan; those that hold no weight have no such number and are left out.
        judge_every: See `mpq.modeling.scoring.make_batches`.
        cache: Quantised weights that a search keeps anyway.
        teachers: What the model itself predicts on each batch; filled by the first look at the
            data, so that others need not run the model for it.
        progress: Told of each backward pass.
    """
    names = {site.name for site in wanted if site.is_stored and site.name in plan.formats}
    sums = SlopeSums([place for place in places(model) if place.site.name in names])
    batches = make_batches(data, 1, next(model.parameters()).device, judge_every=judge_every)
    kept = [] if teachers is None else teachers
    kept += teachers_of(model, batches[len(kept) :])
    taught = dict(zip(map(id, batches), kept, strict=True))
    with gradients_to(model, sums.own, sums.add), apply_plan(model, plan, cache=cache):
        run_backward(batches, lambda batch: divergence(model, batch, taught[id(batch)]), progress)
    positions = sum(batch.labels.numel() for batch in batches)
    return {site.name: -0.5 * total / positions for site, total in sums.totals.items()}


@torch.no_grad()
def teachers_of(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Teacher]:
    """What the model as it stands predicts on each batch."""
    return [teacher_of(forward(model, batch), torch.bfloat16) for batch in batches]


def divergence(model: nn.Module, batch: Batch, teacher: Teacher) -> Tensor:
    """-Σ_t Σ_i r_i log p_i, the divergence but for a constant, summed over a batch's positions."""
    logits = forward(model, batch).float().flatten(0, 1)
    weights = teacher.probabilities.flatten(0, 1).float() / teacher.total.flatten().unsqueeze(-1)
    return nn.functional.cross_entropy(logits, weights, reduction="sum")
