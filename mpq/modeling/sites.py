"""The sites of a model: every tensor that can be given a format, and where each one lies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedModel

from mpq.modeling.blockwise import blocks
from mpq.modeling.experts import (
    expert_layers,
    is_dispatched,
    is_router,
    is_transposed,
    projections,
    top_k,
)
from mpq.modeling.linear import Linear, features, fusion_group, linear_layers, weight_axis
from mpq.modeling.probe import AttentionShape, probe
from mpq.plans.site import TOKENS, Role, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a site's tensor lies in a model.

    Attributes:
        site: The facts.
        module: The module that holds or sees the tensor.
        tensor: The attribute of a stored tensor; the projection of an expert's input; else the
            role.
        part: Index along a stored tensor's first axis (one expert of a fused parameter).
        is_head: True for the layer that maps hidden states to the vocabulary.
        is_embedding: True for a lookup table.
    """

    site: Site
    module: nn.Module
    tensor: str
    part: int | None = None
    is_head: bool = False
    is_embedding: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """The stored tensor, whole."""
        parameter: nn.Parameter = getattr(self.module, self.tensor)
        return parameter


def sites(
    model: PreTrainedModel,
    *,
    lm_head: bool = False,
    embeddings: bool = False,
    bias: bool = False,
    output: bool = False,
) -> tuple[Site, ...]:
    """The model's sites, in model order.

    Weights and inputs of every `nn.Linear` and GPT-2 `Conv1D`, the q, k, v and probs of every
    attention module that can be reached, and per expert the fused weights of mixture models.
    Routers are left out (see `mpq.modeling.experts`). The first call runs a forward pass on a
    few tokens, to see which attention can be reached; the answer is kept with the model.

    Args:
        model: A transformers model, in any mode.
        lm_head: Also the output head. A head that is tied to the embedding is one site under the
            embedding's name, with the head's name as alias.
        embeddings: Also the lookup tables.
        bias: Also the biases.
        output: Also the outputs of linear layers.
    """
    return tuple(
        place.site
        for place in places(model)
        if (bias or place.site.role != "bias")
        and (output or place.site.role != "output")
        and _is_asked_for(place, lm_head=lm_head, embeddings=embeddings)
    )


def _is_asked_for(place: Place, *, lm_head: bool, embeddings: bool) -> bool:
    if place.is_head or place.is_embedding:
        return (lm_head and place.is_head) or (embeddings and place.is_embedding)
    return True


_PLACES: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], list[Place]]] = WeakKeyDictionary()
"""The places of the models that were asked for, each with what it was asked about."""


def places(model: PreTrainedModel) -> list[Place]:
    """Every site that the model could have, with its place, in model order; ties merged.

    The answer is kept until a parameter of the model is another one or of another dtype.
    """
    asked = tuple((id(parameter), parameter.dtype) for parameter in model.parameters())
    known = _PLACES.get(model)
    if known is None or known[0] != asked:
        _PLACES[model] = known = (asked, _find_places(model))
    return known[1]


def _find_places(model: PreTrainedModel) -> list[Place]:
    names = [name for name, _ in blocks(model)]
    found = [
        *_of_embeddings(model),
        *_of_linear_layers(model),
        *_of_attention(model),
        *_of_experts(model),
    ]
    rank = {id(module): index for index, module in enumerate(model.modules())}
    found.sort(key=lambda place: rank[id(place.module)])
    return [
        replace(place, site=replace(place.site, block=_block_of(place.site.name, names)))
        for place in _merge_tied(found)
    ]


def _block_of(site: str, blocks: Sequence[str]) -> int:
    parts = site.split(".")
    prefixes = {".".join(parts[:length]) for length in range(1, len(parts))}
    return next((index for index, name in enumerate(blocks) if name in prefixes), -1)


def _merge_tied(found: Sequence[Place]) -> list[Place]:
    """The same places with stored tensors that are one parameter merged into the first."""
    first: dict[tuple[int, int | None], int] = {}
    merged: list[Place] = []
    for place in found:
        if not place.site.is_stored:
            merged.append(place)
            continue
        key = (id(place.parameter), place.part)
        if key not in first:
            first[key] = len(merged)
            merged.append(place)
            continue
        kept = merged[first[key]]
        merged[first[key]] = replace(
            kept,
            site=replace(kept.site, aliases=(*kept.site.aliases, place.site.name)),
            is_head=kept.is_head or place.is_head,
            is_embedding=kept.is_embedding or place.is_embedding,
        )
    return merged


def _of_embeddings(model: PreTrainedModel) -> Iterator[Place]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            yield Place(
                site=Site(
                    name=f"{name}.weight",
                    role="weight",
                    kind=_leaf(name),
                    block=-1,
                    shape=tuple(module.weight.shape),
                    group=f"{name}.weight",
                    stored_bits=_bits(module.weight),
                ),
                module=module,
                tensor="weight",
                is_embedding=True,
            )


def _of_linear_layers(model: PreTrainedModel) -> Iterator[Place]:
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, layer in linear_layers(model):
        if not is_router(model, name):
            for site in _layer_sites(model, name, layer):
                yield Place(site=site, module=layer, tensor=site.role, is_head=layer is head)


def _layer_sites(model: nn.Module, name: str, layer: Linear) -> Iterator[Site]:
    num_in, num_out = features(layer)
    fused = fusion_group(model, name)
    shapes: dict[Role, tuple[int, ...]] = {
        "weight": tuple(layer.weight.shape),
        "bias": (num_out,),
        "input": (TOKENS, num_in),
        "output": (TOKENS, num_out),
    }
    for role, shape in shapes.items():
        if role == "bias" and getattr(layer, "bias", None) is None:
            continue
        yield Site(
            name=f"{name}.{role}",
            role=role,
            kind=_leaf(name),
            block=-1,
            shape=shape,
            axis=weight_axis(layer) if role == "weight" else -1,
            group=f"{fused if role in {'weight', 'input'} else name}.{role}",
            stored_bits=_bits(layer.weight),
        )


def _of_attention(model: PreTrainedModel) -> Iterator[Place]:
    bits = _bits(next(model.parameters()))
    for name, sizes in probe(model).attention.items():
        module = model.get_submodule(name)
        for role, shape in _operand_shapes(sizes).items():
            site = Site(
                name=f"{name}.{role}",
                role=role,
                kind=_leaf(name),
                block=-1,
                shape=shape,
                group=f"{name}.{role}",
                stored_bits=bits,
            )
            yield Place(site=site, module=module, tensor=role)


def _operand_shapes(sizes: AttentionShape) -> dict[Role, tuple[int, ...]]:
    return {
        "q": (sizes.heads, TOKENS, sizes.head_dim),
        "k": (sizes.kv_heads, TOKENS, sizes.head_dim),
        "v": (sizes.kv_heads, TOKENS, sizes.value_dim),
        "probs": (sizes.heads, TOKENS, TOKENS),
    }


def _of_experts(model: PreTrainedModel) -> Iterator[Place]:
    for name, experts in expert_layers(model):
        first, second = projections(experts)
        for projection in (first, second):
            yield from _expert_weights(name, experts, projection)
        if not is_dispatched(experts):
            continue
        for projection, copies in ((first, ()), (second, (top_k(model, name),))):
            weight = getattr(experts, projection)
            num_in = weight.shape[1] if is_transposed(experts) else weight.shape[2]
            site = Site(
                name=f"{name}.{projection}.input",
                role="input",
                kind=projection,
                block=-1,
                shape=(*copies, TOKENS, num_in),
                group=f"{name}.input",
                stored_bits=_bits(weight),
            )
            yield Place(site=site, module=experts, tensor=projection)


def _expert_weights(name: str, experts: nn.Module, projection: str) -> Iterator[Place]:
    stored: tuple[tuple[Role, str], ...] = (
        ("weight", projection),
        ("bias", f"{projection}_bias"),
    )
    for role, tensor in stored:
        parameter = getattr(experts, tensor, None)
        if not isinstance(parameter, nn.Parameter):
            continue
        for expert in range(parameter.shape[0]):
            site = Site(
                name=f"{name}.{expert}.{projection}.{role}",
                role=role,
                kind=projection,
                block=-1,
                shape=tuple(parameter.shape[1:]),
                axis=0 if role == "weight" and is_transposed(experts) else -1,
                group=f"{name}.{role}",
                stored_bits=_bits(parameter),
            )
            yield Place(site=site, module=experts, tensor=tensor, part=expert)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _bits(parameter: Tensor) -> int:
    return parameter.element_size() * 8
