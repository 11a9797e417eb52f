"""Linear layers: which modules they are, what an engine fuses, and what flows through them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Linear = nn.Linear | Conv1D

_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
"""Sibling layers that read one input, which inference engines store as one matrix."""

_CROSS_ATTENTION = ("cross", "encoder_attn", "encdec")
"""Marks in the names of attention whose keys and values read another tensor than its queries."""

_HOLDS_KEYS = frozenset({"k_proj", "key", "k_lin", "k", "wk"})
_HOLDS_VALUES = frozenset({"v_proj", "value", "v_lin", "v", "wv"})
_HOLDS_BOTH = frozenset({"c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv"})


def linear_layers(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Every `nn.Linear` and GPT-2 `Conv1D` with its name, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            yield name, module


def features(layer: Linear) -> tuple[int, int]:
    """(in, out) features; Conv1D stores its weight [in, out], Linear [out, in]."""
    first, last = layer.weight.shape
    return (first, last) if isinstance(layer, Conv1D) else (last, first)


def weight_axis(layer: Linear) -> int:
    """The axis of the weight that the matmul sums over."""
    return 0 if isinstance(layer, Conv1D) else -1


def fusion_group(model: nn.Module, name: str) -> str:
    """The name of what an engine fuses this layer into; the layer's own name where nothing.

    q, k, v of one attention and gate, up of one MLP fuse; in cross-attention only k and v do,
    whose input is another than q's.
    """
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    for members in _FUSED:
        if leaf not in members:
            continue
        if len(members) == 3 and any(mark in parent_name.lower() for mark in _CROSS_ATTENTION):
            members = members[1:]  # noqa: PLW2901
        if leaf in members and all(
            isinstance(getattr(parent, member, None), Linear) for member in members
        ):
            return f"{parent_name}.{'+'.join(members)}"
    return name


def stores_cache_of(leaf: str) -> frozenset[str]:
    """Which of the operands "k" and "v" a layer of this last name computes."""
    if leaf in _HOLDS_BOTH:
        return frozenset({"k", "v"})
    return frozenset({"k"} if leaf in _HOLDS_KEYS else {"v"} if leaf in _HOLDS_VALUES else ())


@contextmanager
def input_through(module: nn.Module, transform: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A context in which a module's first argument passes through `transform` on its way in."""

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (transform(args[0]), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: transform(kwargs[first])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def output_through(module: nn.Module, transform: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A context in which a module's output passes through `transform` on its way out."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return transform(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
