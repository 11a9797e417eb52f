"""mpq finds, proves and ships the best number format for every tensor of a language model.

The public names live here and load on first use, so `import mpq` imports no torch. Everything
else is private to its room; docs/architecture.md is the floor plan.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpq import cost as cost
    from mpq import plots as plots
    from mpq.cost import Cost
    from mpq.formats.format import Format
    from mpq.formats.zoo import parse_format
    from mpq.kernels.fake_quant import decode, encode, quantize
    from mpq.modeling.checkpoint import load
    from mpq.modeling.loading import load_model
    from mpq.modeling.sites import sites
    from mpq.modeling.wrap import apply_plan, uniform_plan
    from mpq.plans.plan import Plan
    from mpq.plans.site import Site
    from mpq.run import open_run

__version__ = "0.1.0"

__all__ = [
    "Cost",
    "Format",
    "Plan",
    "Site",
    "apply_plan",
    "cost",
    "decode",
    "encode",
    "load",
    "load_model",
    "open_run",
    "parse_format",
    "plots",
    "quantize",
    "sites",
    "uniform_plan",
]

_HOMES = {
    "Cost": "mpq.cost",
    "Format": "mpq.formats.format",
    "Plan": "mpq.plans.plan",
    "Site": "mpq.plans.site",
    "apply_plan": "mpq.modeling.wrap",
    "decode": "mpq.kernels.fake_quant",
    "encode": "mpq.kernels.fake_quant",
    "load": "mpq.modeling.checkpoint",
    "load_model": "mpq.modeling.loading",
    "open_run": "mpq.run",
    "parse_format": "mpq.formats.zoo",
    "quantize": "mpq.kernels.fake_quant",
    "sites": "mpq.modeling.sites",
    "uniform_plan": "mpq.modeling.wrap",
}


def __getattr__(name: str) -> Any:
    # A function could not share its module's name: once anything imports `mpq.cost`, that is what
    # the attribute is. So it is the module from the start: `mpq.cost.cost(plan, sites)`.
    if name in ("cost", "plots"):
        return import_module(f"mpq.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mpq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
