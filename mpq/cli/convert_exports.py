"""A finished checkpoint for other engines, and its plan for other tools."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpq.cli.convert_writing import CONFIG, REPORT, TABLE
from mpq.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

    from mpq.convert.conversion import Conversion
    from mpq.convert.streams import Progress
    from mpq.modeling.checkpoint import Checkpoint
    from mpq.modeling.packed import PackedWeight
    from mpq.modeling.sites import Place
    from mpq.plans.plan import Plan

    Count = Callable[[int, int], None]
    """Told how many tensors are done, and how many there are."""

Read = TypeVar("Read")

EXPORTS = ("compressed-tensors", "gptq")
TOOL_PLANS = "tool_plans"
"""Folder in the checkpoint's directory with one file for each tool that takes a plan."""


def refuse_inexpressible(conversion: Conversion, names: Sequence[str]) -> None:
    """Nothing comes back, where every target can hold what the conversion will make.

    What values alone can tell (a scale that a target's dtype does not hold) is told on export.

    Raises:
        ExportError: Lists what one of them cannot hold, with the nearest format that it can.
    """
    from mpq.convert.targets import plan_faults, refuse

    targets: Any = names
    known: dict[Any, str] = {}
    for target in targets:
        faults = {fault[0]: fault for fault in plan_faults(conversion.plan, target)}
        for site, place in conversion.stored.items():
            fmt = conversion.plan.formats[site]
            # Layers of one shape and format have one answer.
            alike = (target, fmt, place.site.shape, place.site.axis, place.part is None)
            own = (place.site.role, place.is_embedding, place.site.aliases, _lacks_bias(place))
            if (alike, own) not in known:
                known[alike, own] = _layout_fault(conversion, place, target)
            if known[alike, own] and site not in faults:
                faults[site] = (site, fmt, known[alike, own])
        refuse(faults.values(), target)


def _lacks_bias(place: Place) -> bool:
    return getattr(place.module, "bias", None) is None


def _layout_fault(conversion: Conversion, place: Place, target: str) -> str:
    """Why a target cannot hold a weight of this shape and order; empty if it can."""
    import torch

    from mpq.convert.assignment import has_groups
    from mpq.convert.compressed_layers import compressed_layer
    from mpq.convert.gptq_layers import gptq_layer
    from mpq.convert.targets import kind_of
    from mpq.kernels.fake_quant import encode
    from mpq.modeling.packed import PackedWeight

    site, format = place.site, conversion.plan.formats[place.site.name]
    if place.part is not None:
        return "experts are stored in a layout of each model's own, which is not written"
    if site.role == "weight" and conversion.options.bias_correction and _lacks_bias(place):
        return "its layer has no bias, and engines drop one that a correction adds"
    if place.is_embedding and not site.aliases:
        return "transformers loads no quantised lookup table"
    if site.role != "weight" or place.is_embedding or kind_of(format) == "dense":
        return ""
    dtype = conversion.model.dtype
    has_order = conversion.options.solver.stores_order and has_groups(site, format)
    blank = PackedWeight(
        encoded=encode(torch.zeros(site.shape, dtype=dtype), format, site.axis),
        order=torch.arange(site.shape[site.axis]).flip(0) if has_order else None,
    )
    inputs = conversion.plan.formats.get(f"{site.name.removesuffix('.weight')}.input")
    found = compressed_layer(blank, dtype, inputs) if target != "gptq" else gptq_layer(blank)
    reason = found if isinstance(found, str) else ""
    return f"{reason} (--groups static needs no order)" if reason and has_order else reason


def lookup_tables(model: Any) -> dict[str, str]:
    """Site of each lookup table -> that of the head tied to it, or ""."""
    from mpq.modeling.sites import places

    return {
        place.site.name: next(iter(place.site.aliases), "")
        for place in places(model)
        if place.is_embedding and place.site.role == "weight"
    }


def export_all(folder: Path, names: Sequence[str], tables: Mapping[str, str]) -> None:
    """Writes the checkpoint of a directory for other engines; each is read back and compared.

    An export that is there is only read back.

    Args:
        folder: The checkpoint's; an export lies in the folder of its name there.
        names: Of `EXPORTS`.
        tables: See `lookup_tables`.

    Raises:
        ExportError: A target cannot hold a tensor, or gives other values than were written.
        CheckpointError: The checkpoint is not whole.
    """
    from mpq.cli.profile_inputs import shown_progress
    from mpq.modeling.checkpoint import open_checkpoint

    if not names:
        return
    checkpoint = open_checkpoint(folder)
    with shown_progress() as progress:
        for name in names:
            _export(name, folder / name, checkpoint, tables, progress)


def _export(
    name: str, out: Path, checkpoint: Checkpoint, tables: Mapping[str, str], progress: Progress
) -> None:
    if not (out / CONFIG).is_file():
        shutil.rmtree(out, ignore_errors=True)
        _write(name, out, checkpoint, tables, partial(progress, f"{name}: written"))
    _copy_companions(checkpoint, out)
    try:
        _verify(name, out, checkpoint, tables, partial(progress, f"{name}: read back"))
    except ExportError:
        # What reads back otherwise must not be loaded by anybody.
        (out / CONFIG).unlink(missing_ok=True)
        raise


def _write(
    name: str, out: Path, checkpoint: Checkpoint, tables: Mapping[str, str], count: Count
) -> None:
    from mpq.convert.export_compressed_tensors import export_compressed_tensors
    from mpq.convert.export_gptq import export_gptq

    if checkpoint.biases_added:
        raise ExportError(
            f"{name} has no place for biases that layers without one were given "
            f"({checkpoint.biases_added[0]}, …): convert without --bias-correction to export"
        )
    (packed, dense), config = _tensors(checkpoint, count), checkpoint.config
    if name == "gptq":
        export_gptq(out, packed, dense, config, tables=tables)
        return
    stored = set(checkpoint.sites)
    inputs = {site: fmt for site, fmt in checkpoint.plan.formats.items() if site not in stored}
    export_compressed_tensors(out, packed, dense, config, inputs=inputs, tables=tables)


def _verify(
    name: str, out: Path, checkpoint: Checkpoint, tables: Mapping[str, str], count: Count
) -> None:
    from mpq.convert.read_compressed_tensors import verify_compressed_tensors
    from mpq.convert.read_gptq import verify_gptq

    verify = verify_gptq if name == "gptq" else verify_compressed_tensors
    packed, dense = _tensors(checkpoint, count)
    verify(out, packed, dense, tables=tables)


def _tensors(
    checkpoint: Checkpoint, count: Count
) -> tuple[Iterator[tuple[str, PackedWeight]], Iterator[tuple[str, Tensor]]]:
    """The packed weights, then all others, to be taken in that order; each is counted."""
    sites, names = checkpoint.sites, checkpoint.dense_names
    packed = _counted(sites, checkpoint.packed, 0, len(sites) + len(names), count)
    return packed, _counted(names, checkpoint.dense, len(sites), len(sites) + len(names), count)


def _counted(
    names: Sequence[str], read: Callable[[str], Read], before: int, total: int, count: Count
) -> Iterator[tuple[str, Read]]:
    for number, name in enumerate(names, before):
        yield name, read(name)
        count(number + 1, total)


def _copy_companions(checkpoint: Checkpoint, out: Path) -> None:
    """Copies the files of the tokenizer and of generation beside an export."""
    for name in checkpoint.quantization["files"]:
        if (
            not name.endswith(".safetensors")
            and "index" not in name
            and name not in (REPORT, TABLE)
        ):
            shutil.copyfile(checkpoint.path / name, out / name)


def write_tool_plans(folder: Path, plan: Plan) -> dict[str, int]:
    """Tool -> how many of the plan's sites it can make; a file for each that can make some."""
    from mpq.convert.tool_plans import TOOLS, tool_plan
    from mpq.files import write_atomic, write_json

    made = {}
    for tool in TOOLS:
        found = tool_plan(plan, tool)
        made[tool] = len(plan.formats) - len(found.without_equivalent)
        if not made[tool]:
            continue
        if isinstance(found.content, dict):
            write_json(folder / TOOL_PLANS / f"{tool}.json", found.content)
        else:
            lines = "".join(f"{line}\n" for line in found.content)
            write_atomic(folder / TOOL_PLANS / f"{tool}.txt", lines)
    return made
