"""What is converted, on what, and how: plain facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpq.convert.solver import SolverOptions

WEIGHINGS = ("damage", "absolute", "relative")
"""How losses may be weighed; by damage where the profile lies in the directory."""

FULL_RANGE = ("int4f-g128", "int3f-g128")
"""Formats with all codes of a width, as other tools' integers have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way of converting beside the setting's own.

    Attributes:
        name: What a score's name says of it.
        formats: What is converted so.
        changes: Fields of the solver's options -> other values.
        true_sequential: Whether a weight is calibrated behind the ones before it in its block.
    """

    name: str
    formats: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    true_sequential: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Formats that are assigned by the solver's losses.

    Attributes:
        name: What a score's name says of it.
        formats: The candidates.
        reference: The uniform format whose bits they may take.
        profile: File in the directory with the damages of the candidates.
        weighings: How the losses count, in turn.
    """

    name: str
    formats: tuple[str, ...]
    reference: str
    profile: str = "sensitivity_kl.csv"
    weighings: tuple[str, ...] = WEIGHINGS


MIXTURES = (
    Mixture(
        name="full",
        formats=("int4f-g128", "int3f-g128", "int2f-g128"),
        reference="int3f-g128",
        profile="sensitivity_fisher.csv",
        weighings=("damage",),
    ),
    Mixture(
        name="groups",
        formats=("int4-g128", "int3-g128", "int2-g128"),
        reference="int3-g128",
    ),
    Mixture(
        name="rows",
        formats=("int4", "int3", "int2"),
        reference="int3",
        weighings=("absolute", "relative"),
    ),
)

AT_GROUPS = ("int4-g128", "int3-g128")
VARIANTS = (
    Variant(name="absmax", formats=(*AT_GROUPS, *FULL_RANGE), changes={"grid": "absmax"}),
    Variant(
        name="absmax, one pass",
        formats=("int4-g128",),
        changes={"grid": "absmax"},
        true_sequential=False,
    ),
    Variant(name="unordered", formats=AT_GROUPS, changes={"act_order": False}),
    Variant(name="exact groups", formats=(*AT_GROUPS, "bfp3"), changes={"groups": "exact"}),
)
"""Range, order, groups, and passes, each changed alone (one pass as other tools have it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is converted, on what, and how; the tests have a small one.

    Attributes:
        model: Id or directory.
        dtype: Of its weights.
        calibration: (windows, tokens a window) of the first text.
        heldout: The same of the second.
        formats: Each given to every weight of the blocks.
        mixtures: Formats that are assigned.
        options: Of the solver.
        variants: Formats that are also solved in other ways.
    """

    model: str
    dtype: str
    calibration: tuple[int, int]
    heldout: tuple[int, int]
    formats: tuple[str, ...] = (
        "int4-g128", "int3-g128", "int3", "bfp4", "bfp3", "mxfp4", "nf4-g64", *FULL_RANGE,
    )  # fmt: skip
    mixtures: tuple[Mixture, ...] = MIXTURES
    options: SolverOptions = field(
        default_factory=lambda: SolverOptions(act_order=True, grid="mse")
    )
    variants: tuple[Variant, ...] = VARIANTS


SETTINGS = {
    "tiny_llama": Setting(
        model="mpq/tiny-llama", dtype="float32", calibration=(16, 256), heldout=(32, 256)
    ),
    "gemma": Setting(
        model="runs/gemma", dtype="bfloat16", calibration=(16, 512), heldout=(12, 512)
    ),
}
