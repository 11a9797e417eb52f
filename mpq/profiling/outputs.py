"""Damage by the Fisher information of layer outputs: the gradient score of Model Optimizer.

With L the negative log-likelihood of the true tokens, y the output of a linear layer and Δy what
y changes by when one tensor of the layer is held in a format while the layer's input is the
untouched model's,

    damage(tensor, format) = ½ Σ_t Σ_o (∂L/∂y_to)² Δy_to² / positions

where Δy = x ΔWᵀ for the weight and Δx Wᵀ for the input.

Source: NVIDIA Model Optimizer, `modelopt/torch/quantization/algorithms.py`: the sum is its
`_get_auto_quantize_score`, gathered by `AutoQuantizeGradientSearcher` ("Taylor expansion of the
loss function wrt to the quantized output of the layer and substitution of Fisher information for
Hessian"), with the loss of the true tokens as its examples give it, hence the empirical Fisher.
It leaves out the factor ½ of the expansion and differentiates a batch's mean loss; with windows
of one length the score here is its number times a constant. After scoring it lowers a score to
that of the next smaller format where it is larger; the table holds what was measured.

What the sum drops, beside what any diagonal drops: the products of different outputs of one
token, and those of different tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpq.formats.format import Format
from mpq.modeling.linear import Linear, input_through, output_through, weight_axis
from mpq.modeling.scoring import make_batches
from mpq.modeling.sites import Place, places
from mpq.plans.site import Site
from mpq.profiling.candidates import Candidates, Progress
from mpq.profiling.gradients import gradients_to, rounding_error, run_backward, true_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpq.data.examples import Examples

MEASURED = "weights and inputs of linear layers"
"""What `output_damage` can measure, in words."""


def is_measured(place: Place) -> bool:
    """True for a tensor whose rounding shows in the output of one linear layer alone.

    That leaves out lookup tables (a head that is tied to one with it), biases, outputs, fused
    experts and the operands of attention: Model Optimizer scores experts of a block together, at
    the output of the block, and none of the others.
    """
    return isinstance(place.module, Linear) and place.site.role in {"weight", "input"}


def output_damage(
    model: PreTrainedModel,
    data: Tensor | Examples,
    candidates: Candidates,
    *,
    batch_size: int,
    progress: Progress,
) -> Iterator[tuple[Site, dict[str, float]]]:
    """Each site with its damage by format in nats per position, after one pass over `data`.

    Besides the model and a batch's activations, the inputs of the layers that are asked for are
    held until the gradient of the output comes by; changes Δy exist one at a time.

    Args:
        model: A model as loaded, outside of any plan, in eval mode. Gradient flags and gradients
            are afterwards as they were.
        data: Token windows `[N, T]`, or examples of a classification.
        candidates: Which formats of which sites; `is_measured` must be true of their places.
            Identity formats give 0.
        batch_size: Windows in one forward and backward pass; the damage does not depend on it.
        progress: Told how far the pass has come.

    Raises:
        ModelError: The model predicts no probabilities on the data.
    """
    batches = make_batches(data, batch_size, next(model.parameters()).device)
    found = {place.site.name: place for place in places(model)}
    watches: dict[nn.Module, _LayerWatch] = {}
    for site, formats in candidates.items():
        layer = found[site.name].module
        assert isinstance(layer, Linear)
        watches.setdefault(layer, _LayerWatch(layer)).candidates[site] = formats
    with ExitStack() as stack:
        stack.enter_context(gradients_to(model, ()))
        for layer, watch in watches.items():
            stack.enter_context(input_through(layer, watch.see_input))
            stack.enter_context(output_through(layer, watch.see_output))
        run_backward(batches, lambda batch: true_loss(model, batch), progress)
    positions = sum(batch.labels.numel() for batch in batches)
    for done, (site, formats) in enumerate(candidates.items()):
        progress("sites", done, len(candidates))
        totals = watches[found[site.name].module].totals
        yield site, {str(fmt): totals.get((site, fmt), 0.0) / positions for fmt in formats}
    progress("sites", len(candidates), len(candidates))


class _LayerWatch:
    """Adds up ½ Σ (∂L/∂y)² Δy² of a layer's calls, for each of its sites and formats."""

    def __init__(self, layer: Linear) -> None:
        self.layer = layer
        self.candidates: dict[Site, tuple[Format, ...]] = {}
        self.totals: dict[tuple[Site, Format], float] = {}
        self._input: Tensor | None = None

    def see_input(self, x: Tensor) -> Tensor:
        """`x` itself, remembered until the output is there."""
        self._input = x.detach()
        return x

    def see_output(self, y: Tensor) -> Tensor:
        """`y` itself, whose gradient is looked at when it comes by."""
        x, self._input = self._input, None
        assert x is not None
        y.register_hook(lambda gradient: self._add(x, gradient))  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def _add(self, x: Tensor, gradient: Tensor) -> None:
        information = gradient.float().square()
        for site, formats in self.candidates.items():
            for fmt in formats:
                if not fmt.is_identity:
                    change = _output_change(self.layer, site, fmt, x)
                    damage = 0.5 * (information * change.float().square()).sum(dtype=torch.float64)
                    known = self.totals.get((site, fmt), 0.0)
                    self.totals[site, fmt] = known + float(damage)


def _output_change(layer: Linear, site: Site, fmt: Format, x: Tensor) -> Tensor:
    """Δy `[..., out]` of holding the weight or the input `x` of a layer in a format."""
    weight = layer.weight.detach()
    if site.role == "weight":
        # In the model's dtype, as its forward pass: Δ is small, so nothing cancels.
        weight = rounding_error(weight, fmt, site).to(weight.dtype)
    else:
        x = rounding_error(x, fmt, site).to(weight.dtype)
    return x @ weight if weight_axis(layer) == 0 else x @ weight.T
