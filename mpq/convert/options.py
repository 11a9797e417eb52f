"""How the solver is asked to round a weight."""

from dataclasses import dataclass
from typing import Literal, get_args

from mpq.convert.factor import MAX_DAMPING
from mpq.errors import ConfigError

Method = Literal["gptq", "rtn"]
GroupMode = Literal["static", "stale", "exact"]
GridSearch = Literal["absmax", "mse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverOptions:
    """How weights are rounded.

    Attributes:
        method: `gptq`, or `rtn`: each value to the nearest.
        act_order: Whether columns are rounded in the order of descending diag H.
        groups: When a block's grid is chosen: before the sweep from the original weight
            (`static`); when the sweep reaches it, from the weight without (`stale`) or with
            (`exact`) the updates of the running batch of columns. With `act_order` the latter two
            form blocks in the order of the sweep, and the order is stored. Where all columns
            share their scales, or nothing is shared, there is one group, which the sweep reaches
            before any update: the modes are the same. A tensor-wide scale above block scales is
            always the original weight's.
        grid: The format's own rule (`absmax`), or of shrunk ranges the one with the least squared
            error, weighted by diag H (`mse`). Formats whose scales no value chooses (static,
            calibrated, none) have one grid only, which both name.
        damping: The share of mean(diag H) added to the diagonal; tenfold on failure up to
            `MAX_DAMPING`, then the weight is rounded to nearest, with a reason.
        batch_columns: After how many columns all later ones are updated.

    Raises:
        ConfigError: An unknown word, an impossible number, or a setting of GPTQ under `rtn`.
    """

    method: Method = "gptq"
    act_order: bool = False
    groups: GroupMode = "static"
    grid: GridSearch = "absmax"
    damping: float = 0.01
    batch_columns: int = 128

    @property
    def stores_order(self) -> bool:
        """Whether a format with groups is stored in the order of the sweep."""
        return self.act_order and self.groups != "static"

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be one of {', '.join(words)}, not {getattr(self, name)!r}"
            for name, words in (
                ("method", get_args(Method)),
                ("groups", get_args(GroupMode)),
                ("grid", get_args(GridSearch)),
            )
            if getattr(self, name) not in words
        ]
        if not 0 <= self.damping <= MAX_DAMPING:
            faults.append(f"damping must be from 0 to {MAX_DAMPING}, not {self.damping}")
        if self.batch_columns < 1:
            faults.append(f"batch_columns must be at least 1, not {self.batch_columns}")
        if self.method == "rtn" and (self.act_order or self.groups != "static"):
            faults.append(
                "act_order and groups say how GPTQ goes through the columns, and method rtn does "
                "not: leave them out, or use method gptq"
            )
        if faults:
            raise ConfigError("; ".join(faults))
