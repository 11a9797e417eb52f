"""Site name -> where a figure puts it: which block, which row, under which label.

Works on names alone, so a plan or a table on disk can be drawn without its model. The name of a
site is its module's path and its role; the first number in the path is the block.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpq.plans.site import ROLES

OUTSIDE = -1
"""The block of a site that lies in none (embeddings, head)."""

SECTIONS: Mapping[str, str] = {
    "weight": "weights",
    "bias": "biases",
    "input": "inputs",
    "output": "outputs",
    "q": "attention",
    "k": "attention",
    "v": "attention",
    "probs": "attention",
}
"""Role -> the section of a figure, in the order in which figures list them."""

# The order of the matmuls inside a block, by the last part of the module's name.
_KINDS = (
    *("q_proj", "query", "k_proj", "key", "v_proj", "value", "qkv_proj", "c_attn", "q_lin"),
    *("k_lin", "v_lin", "query_key_value", "o_proj", "out_proj", "out_lin", "gate", "gate_proj"),
    *("w1", "up_proj", "w3", "gate_up_proj", "c_fc", "fc1", "lin1", "dense_h_to_4h"),
    *("down_proj", "w2", "fc2", "lin2", "dense_4h_to_h", "c_proj", "dense"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a site stands in a figure.

    Attributes:
        path: The module's path inside its block, numbers as `*` (`mlp.experts.*.w1`): sites that
            share it and the role share a row.
        block: Index of the block, `OUTSIDE` where there is none.
        role: What the tensor is to its layer.
    """

    path: str
    block: int
    role: str

    @property
    def section(self) -> str:
        """The section of the figure that the site's row belongs to."""
        return SECTIONS[self.role]


def place(site: str) -> Place:
    """The place of a site, read from its name; an unknown role counts as a weight's."""
    parts = site.split(".")
    role = parts.pop() if parts[-1] in ROLES else "weight"
    at = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    block = OUTSIDE if at is None else int(parts[at])
    inside = parts if at is None else parts[at + 1 :]
    path = ".".join("*" if part.isdigit() else part for part in inside)
    return Place(path=path, block=block, role=role)


def row_keys(places: Iterable[Place]) -> list[tuple[str, str]]:
    """The (path, role) pairs of all rows, in the order of the matmuls inside a block."""
    seen = list(dict.fromkeys((one.path, one.role) for one in places))
    sections = list(dict.fromkeys(SECTIONS.values()))

    def rank(key: tuple[str, str]) -> tuple[int, int, int, int]:
        path, role = key
        kind = path.rsplit(".", 1)[-1]
        known = _KINDS.index(kind) if kind in _KINDS else len(_KINDS)
        # A projection called alike in both halves of a block: the attention's comes first.
        second_half = int("attn" not in path and "attention" not in path)
        operand = ROLES.index(role) if SECTIONS[role] == "attention" else 0
        return sections.index(SECTIONS[role]), operand, second_half, known

    return sorted(seen, key=rank)


def row_labels(keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A short label for every row: the last part of its path, more parts where two would clash.

    Attention operands go by their role (`q`, `k`, `v`, `probs`).
    """
    labels: dict[tuple[str, str], str] = {}
    for path, role in keys:
        if SECTIONS[role] == "attention":
            labels[path, role] = role
            continue
        rivals = [other for other, other_role in keys if other_role == role and other != path]
        parts = path.split(".")
        sizes = range(1, len(parts) + 1)
        ends = (".".join(parts[-size:]) for size in sizes)
        labels[path, role] = next(
            (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in rivals)),
            path,
        )
    return labels
