"""Attention reached from outside: its four operands pass through a function of ours.

transformers dispatches attention by name (`AttentionInterface`, `AttentionMaskInterface`), so a
function registered under a name of its own sees every q, k, v and every matrix of probabilities
of a stock model. It repeats the arithmetic of the `eager` implementation, so with untouched
operands the logits equal `eager`'s bit for bit in float32 and below (float64 models keep their
softmax in float64, where `eager` drops to float32).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from mpq.errors import ModelError
from mpq.plans.site import Role

_REMEMBERED_MASKS = 4  # a forward pass makes one mask per kind of attention: full, sliding, cross
_numbers = itertools.count()


@dataclass(frozen=True)
class Keys:
    """Where the keys of one attention call stand in their sequences.

    Attributes:
        offset: Position of the first key that is present; a cache with a sliding window has
            dropped the ones before it.
        padding: `[batch, positions]`, True for real tokens; None where nothing is masked.
    """

    offset: int
    padding: Tensor | None

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Position of each sequence's first unmasked token; `(0,)` where nothing is masked."""
        if self.padding is None:
            return (0,)
        return tuple(self.padding.to(torch.int8).argmax(dim=-1).tolist())

    def phases(self, block: int) -> tuple[int, ...]:
        """How far into a block of `block` keys each sequence's first present key stands."""
        return tuple((self.offset - start) % block for start in self.starts)


OperandTransform = Callable[[nn.Module, Role, Tensor, Keys], Tensor]
"""(attention module, role, operand [batch, heads, tokens, dim], its keys) -> operand"""


@dataclass(frozen=True)
class _SeenMask:
    mask: Tensor | None
    key_length: int
    keys: Keys

    def belongs_to(self, mask: Tensor | None, key_length: int) -> bool:
        if key_length != self.key_length or (mask is None) != (self.mask is None):
            return False
        if mask is None or self.mask is None or mask is self.mask:
            return True
        return mask.untyped_storage().data_ptr() == self.mask.untyped_storage().data_ptr()


class _Masks:
    """The masks of the running forward pass, and the key positions they were made for."""

    def __init__(self) -> None:
        self._seen: deque[_SeenMask] = deque(maxlen=_REMEMBERED_MASKS)

    def make(self, **call: Any) -> Tensor | None:
        """The mask that `eager` attention would get; remembers where its keys stand."""
        mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["eager"](**call)
        keys = Keys(int(call.get("kv_offset", 0)), call.get("attention_mask"))
        self._seen.append(_SeenMask(mask, int(call["kv_length"]), keys))
        return mask

    def forget(self, *_: Any) -> None:
        """Lets the masks of a finished forward pass go."""
        self._seen.clear()

    def keys_of(self, mask: Tensor | None, num_queries: int, num_keys: int) -> Keys:
        """Where the keys of a call with this mask stand.

        Raises:
            ModelError: A hand-made mask came with a key cache, so nobody knows the positions.
        """
        for seen in reversed(self._seen):
            if seen.belongs_to(mask, num_keys):
                return seen.keys
        if num_queries != num_keys:
            raise ModelError(
                f"attention probabilities are quantised in blocks of absolute key positions, and "
                f"a hand-made mask beside a key cache ({num_queries} queries, {num_keys} keys) "
                "hides them; pass a 2-D attention_mask [batch, tokens] instead"
            )
        return Keys(0, None if mask is None else _visible_keys(mask))


def _visible_keys(mask: Tensor) -> Tensor:
    """[batch, keys], True where some query may look at the key, from a 4-D mask."""
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return visible.any(dim=1).any(dim=1)


def _attend(  # noqa: PLR0913, PLR0917 - the signature that transformers calls
    transform: OperandTransform,
    masks: _Masks,
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scaling + mask) v with every operand transformed, in `eager`'s arithmetic.

    Args:
        transform: What happens to each operand.
        masks: The masks of this forward pass.
        module: The attention module that calls.
        q: [batch, heads, queries, head_dim].
        k: [batch, kv_heads, keys, head_dim]; heads are repeated where heads > kv_heads.
        v: [batch, kv_heads, keys, value_dim].
        attention_mask: Added to the scores; None masks nothing.
        scaling: Of the scores; None means 1 / √head_dim.
        dropout: Of the probabilities, in training.
        softcap: Scores become softcap · tanh(scores / softcap) before the mask.
        s_aux: [heads] attention sinks: a further score per head whose probability is dropped.

    Returns:
        [batch, queries, heads, value_dim] and the probabilities [batch, heads, queries, keys].
    """
    keys = masks.keys_of(attention_mask, q.shape[-2], k.shape[-2])
    q = transform(module, "q", q, keys)
    k = _repeat_heads(transform(module, "k", k, keys), q.shape[1])
    v = _repeat_heads(transform(module, "v", v, keys), q.shape[1])
    scores = torch.matmul(q, k.transpose(2, 3)) * (
        q.shape[-1] ** -0.5 if scaling is None else scaling
    )
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = _softmax(scores, s_aux).to(q.dtype)
    probs = transform(module, "probs", probs, keys)
    probs = nn.functional.dropout(probs, p=dropout, training=module.training)
    return torch.matmul(probs, v).transpose(1, 2).contiguous(), probs


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=dtype)
    column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[-2], -1)
    with_sink = torch.cat([scores, column], dim=-1)
    # The maximum is taken off first, as `eager` does: in 16 bits the order of rounding shows.
    with_sink = with_sink - with_sink.amax(dim=-1, keepdim=True)
    return torch.softmax(with_sink, dim=-1, dtype=scores.dtype)[..., :-1]


@contextmanager
def reach_attention(model: PreTrainedModel, transform: OperandTransform) -> Iterator[None]:
    """A context in which the operands of every reachable attention pass through `transform`.

    Inside a context that reaches the same model, operands pass through the outer one's transform
    first. On leaving, the model's own implementation is back in every (sub-)config.
    """
    name = f"mpq_{next(_numbers)}"
    masks = _Masks()
    outer = _TRANSFORMS.get(_implementation(model))
    chained = transform if outer is None else _after(outer, transform)

    def attend(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return _attend(chained, masks, *args, **kwargs)

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, masks.make)
    _TRANSFORMS[name] = chained
    finished = model.register_forward_hook(masks.forget, always_call=True)
    try:
        with use_implementation(model, name):
            yield
    finally:
        finished.remove()
        # The registries have no public way to forget a name.
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)
        _TRANSFORMS.pop(name, None)


_TRANSFORMS: dict[str | None, OperandTransform] = {}
"""The transforms of the contexts that are open, by the name they are registered under."""


def _after(outer: OperandTransform, inner: OperandTransform) -> OperandTransform:
    def both(module: nn.Module, role: Role, x: Tensor, keys: Keys) -> Tensor:
        return inner(module, role, outer(module, role, x, keys), keys)

    return both


def _implementation(model: PreTrainedModel) -> str | None:
    name: str | None = model.config._attn_implementation
    return name


@contextmanager
def use_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """A context in which every config of the model names this attention implementation."""
    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        # Setting one config sets its sub-configs too; parents come first, so the last word on
        # each config is its own.
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation = own


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every config that some module reads, and their sub-configs: parents before children."""
    found: dict[int, Any] = {}

    def add(config: Any) -> None:
        if config is None or id(config) in found or not hasattr(config, "_attn_implementation"):
            return
        found[id(config)] = config
        for key in getattr(config, "sub_configs", {}):
            add(getattr(config, key, None))

    for module in model.modules():
        add(getattr(module, "config", None))
    return list(found.values())
