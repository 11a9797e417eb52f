"""What the scores that need a backward pass share: losses, their gradients, rounding errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.formats.format import Format
from mpq.kernels.fake_quant import quantize
from mpq.modeling.scoring import Batch, forward
from mpq.modeling.sites import Place
from mpq.plans.site import Site
from mpq.profiling.candidates import Progress


def sampled_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """-Σ log p(y) over a batch's positions, with labels y sampled from the model itself.

    Raises:
        ModelError: The model predicts no probabilities; names the weights that are not finite.
    """
    logits = forward(model, batch).float().flatten(0, 1)
    with torch.no_grad():
        probabilities = logits.softmax(-1)
        if not probabilities.isfinite().all():
            raise ModelError(_broken(model))
        labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
    loss: Tensor = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return loss


def true_loss(model: nn.Module, batch: Batch) -> Tensor:
    """-Σ log p(y) over a batch's positions, with y the true tokens or labels.

    Raises:
        ModelError: The model predicts no probabilities; names the weights that are not finite.
    """
    logits = forward(model, batch).float().flatten(0, 1)
    loss: Tensor = nn.functional.cross_entropy(logits, batch.labels.flatten(), reduction="sum")
    if not loss.isfinite():
        raise ModelError(_broken(model))
    return loss


def _broken(model: nn.Module) -> str:
    """Why a model has no probabilities."""
    names = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    reason = (
        f"these weights are not finite: {', '.join(names)}; repair the checkpoint"
        if names
        else 'its weights are finite, so an activation overflows; load it with dtype = "float32"'
    )
    return f"{type(model).__name__} must predict finite probabilities to be profiled; {reason}"


def run_backward(
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    progress: Progress,
    *,
    done: int = 0,
    total: int | None = None,
) -> None:
    """Runs the loss of every batch backward.

    Args:
        batches: What the model looks at.
        loss: The number of a batch whose gradients are wanted.
        progress: Told of each backward pass.
        done: Backward passes that were run before these.
        total: Backward passes in all; None for as many as these.
    """
    total = done + len(batches) if total is None else total
    for index, batch in enumerate(batches, start=done):
        progress("backward passes", index, total)
        loss(batch).backward()  # type: ignore[no-untyped-call]
    progress("backward passes", done + len(batches), total)


@contextmanager
def gradients_to(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    visit: Callable[[nn.Parameter, Tensor], None] = lambda *_: None,
) -> Iterator[None]:
    """A context in which each backward pass shows `visit` every parameter with its gradient.

    Gradients exist one at a time: each is shown and freed as soon as it is whole. All other
    parameters need none; activations have theirs. Flags and gradients are afterwards as before.
    """
    wanted = list(dict.fromkeys(parameters))
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    own = {parameter: parameter.grad for parameter in wanted}

    def show(parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        visit(parameter, parameter.grad)
        parameter.grad = None

    with ExitStack() as stack:
        for parameter in flags:
            parameter.requires_grad_(parameter in own)
        for parameter in wanted:
            parameter.grad = None
            handle = parameter.register_post_accumulate_grad_hook(show)  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        # Activations ahead of the first weight have a gradient only if something before them has.
        stack.callback(_require_gradients_of_embeddings(model).remove)
        try:
            yield
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
            for parameter, gradient in own.items():
                parameter.grad = gradient


class SlopeSums:
    """Adds up g · (W - Q(W)) of each site; made while the model is as loaded.

    Attributes:
        own: The parameters, each with its own values: under a plan it holds the quantised ones.
        totals: Site -> its sum so far.
    """

    def __init__(
        self, asked: Iterable[Place], term: Callable[[Tensor], Tensor] = lambda product: product
    ) -> None:
        """Nothing is added up yet.

        Args:
            asked: Where the sites' weights are.
            term: The products of gradient and change, value by value -> what is added up.
        """
        self._places: dict[nn.Parameter, list[Place]] = {}
        for place in asked:
            self._places.setdefault(place.parameter, []).append(place)
        self.own = {parameter: parameter.data for parameter in self._places}
        self.totals = {place.site: 0.0 for found in self._places.values() for place in found}
        self._term = term

    @torch.no_grad()
    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Adds one batch's gradient of a parameter to its sites."""
        change = self.own[parameter].float() - parameter.data.float()
        terms = self._term(gradient.float() * change)
        for place in self._places[parameter]:
            part = terms if place.part is None else terms[place.part]
            self.totals[place.site] += float(part.sum(dtype=torch.float64))


def _require_gradients_of_embeddings(model: Any) -> Any:
    def require(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output if output.requires_grad else output.requires_grad_()

    return model.get_input_embeddings().register_forward_hook(require)


def rounding_error(x: Tensor, fmt: Format, site: Site) -> Tensor:
    """Q(x) - x, float32: what a format does to the tensor `x` of a site.

    Raises:
        FormatError: A stored tensor is not finite; names it.
    """
    if fmt.is_identity:
        return torch.zeros_like(x, dtype=torch.float32)
    rounded = quantize(x, fmt, site.axis, name=site.name, check_finite=site.is_stored)
    return rounded.float() - x.float()
