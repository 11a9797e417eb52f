"""Sites: the tensors of a model that can be given a format, as plain facts."""

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["weight", "bias", "input", "output", "q", "k", "v", "probs"]
ROLES: tuple[Role, ...] = get_args(Role)
"""What a site's tensor is to its layer, in the order in which tables list them."""

STORED_ROLES: frozenset[Role] = frozenset({"weight", "bias"})
"""Roles whose tensors lie in the checkpoint; all others are activations."""

TOKENS = -1
"""Stands in `Site.shape` for the number of tokens of a sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One tensor that can be given a format.

    Attributes:
        name: Unique, dotted: the module's name, then the role
            (`model.layers.0.self_attn.q_proj.weight`, `model.layers.0.self_attn.k`).
        role: What the tensor is to its layer.
        kind: The family a layer belongs to: the last part of its module's name (`q_proj`).
        block: Index of the decoder (or encoder) block, counted from 0; -1 outside of blocks.
        shape: The tensor's shape; `TOKENS` stands for the sequence length of an activation
            (`input` of a Linear: `(TOKENS, in)`; `k`: `(kv_heads, TOKENS, head_dim)`;
            `probs`: `(heads, TOKENS, TOKENS)`). One sequence, no batch axis.
        axis: The reduction axis of the matmul that reads the tensor; blocks lie along it.
        group: Sites that an inference engine fuses share a group, and under `tie = "fused"` a
            format; a site of its own has its own name here.
        stored_bits: Bits a value of the tensor takes unquantised, in the model's own dtype.
        aliases: Other names of the same tensor (a tied head); it is counted once.
    """

    name: str
    role: Role
    kind: str
    block: int
    shape: tuple[int, ...]
    axis: int = -1
    group: str
    stored_bits: int = 32
    aliases: tuple[str, ...] = ()

    @property
    def is_stored(self) -> bool:
        """True for tensors of the checkpoint, False for activations."""
        return self.role in STORED_ROLES

    def shape_at(self, tokens: int) -> tuple[int, ...]:
        """The tensor's shape in a sequence of `tokens` tokens."""
        return tuple(tokens if size == TOKENS else size for size in self.shape)
