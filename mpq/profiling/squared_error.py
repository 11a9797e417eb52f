"""Damage by the plain squared error of a weight: no data, no model behind the tensor.

    damage(W, format) = Σ_ij (Q(W) - W)_ij²

in squared units of the weight, not in nats. It is what a table of mean squared errors says of a
plan when each weight counts by its size (the mean over a tensor times its values): the error that
the plan adds to the parameters, as if every parameter mattered alike. It is here to be compared
with: it knows nothing of the model's predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from mpq.modeling.sites import Place, places
from mpq.plans.site import Site
from mpq.profiling.candidates import Candidates, Progress
from mpq.profiling.gradients import rounding_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEASURED = "stored tensors (weights, biases, lookup tables)"
"""What `squared_error_damage` can measure, in words."""


def is_measured(place: Place) -> bool:
    """True for a stored tensor: an activation has no error without data."""
    return place.site.is_stored


def squared_error_damage(
    model: PreTrainedModel, candidates: Candidates, *, progress: Progress
) -> Iterator[tuple[Site, dict[str, float]]]:
    """Each site with the sum of its squared rounding errors by format.

    Args:
        model: A model as loaded, outside of any plan.
        candidates: Which formats of which sites; `is_measured` must be true of their places.
            Identity formats give 0.
        progress: Told how many sites are done.

    Raises:
        FormatError: A weight is not finite; names it.
    """
    found = {place.site.name: place for place in places(model)}
    for done, (site, formats) in enumerate(candidates.items()):
        progress("sites", done, len(candidates))
        place = found[site.name]
        tensor = place.parameter.detach()
        tensor = tensor if place.part is None else tensor[place.part]
        yield (
            site,
            {
                str(fmt): float(
                    rounding_error(tensor, fmt, site).square().sum(dtype=torch.float64)
                )
                for fmt in formats
            },
        )
    progress("sites", len(candidates), len(candidates))
