"""The directory that `mpq-convert` leaves: checkpoint, report, exports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from mpq.cli.convert_inputs import Subject
    from mpq.convert.conversion import Conversion
    from mpq.convert.finished import FinishedBlocks
    from mpq.convert.report import HeldoutReport, TensorReport
    from mpq.modeling.packed import PackedWeight

CONFIG = "config.json"
REPORT = "report.json"
TABLE = "report.csv"
WINDOWS = "generated.json"
UNFINISHED = "unfinished"
"""Folder in the checkpoint's directory that holds what is done until all is."""

LARGEST_LOSS = 700.0
"""Nats of which a float still holds the perplexity."""


def is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the directory holds the whole checkpoint of a conversion with these settings.

    Raises:
        RunError: It holds one of other settings, or one that says nothing of its settings.
    """
    from mpq.convert.finished import refuse_other_settings

    if not (folder / CONFIG).is_file():
        return False
    if not (folder / REPORT).is_file():
        raise RunError(
            f"{folder} holds a {CONFIG} and no {REPORT}: no checkpoint of mpq-convert; choose "
            "another directory with --out"
        )
    refuse_other_settings(folder, report_of(folder)["settings"], settings)
    return True


def refuse_foreign(folder: Path, unfinished: str) -> None:
    """Nothing comes back, where a directory is new, empty, or a conversion's.

    Raises:
        RunError: It holds something else, which a conversion would write among.
    """
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    known = {unfinished, REPORT, WINDOWS}
    if found and not known & set(found):
        raise RunError(
            f"{folder}: a conversion needs a directory of its own, and this one holds "
            f"{', '.join(found[:5])}; choose another with --out"
        )


def kept_windows(folder: Path, made_by: Mapping[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """Windows [N, T] that lie in the directory, or are made now and kept there.

    Raises:
        RunError: The directory's were made by other settings.
    """
    import torch

    from mpq.convert.finished import refuse_other_settings
    from mpq.files import read_json, write_json

    path = folder / WINDOWS
    if path.is_file():
        kept = read_json(path)
        refuse_other_settings(path, kept["made_by"], made_by)
        return torch.tensor(kept["tokens"])
    tokens = make()
    write_json(path, {"made_by": dict(made_by), "tokens": tokens.tolist()})
    return tokens


def report_of(folder: Path) -> dict[str, Any]:
    """What the checkpoint's report says."""
    from mpq.files import read_json

    report: dict[str, Any] = read_json(folder / REPORT)
    return report


def write_directory(
    folder: Path,
    subject: Subject,
    conversion: Conversion,
    finished: FinishedBlocks,
    heldout: HeldoutReport | None,
    settings: Mapping[str, Any],
    losses: Mapping[str, Any],
) -> None:
    """Writes report, tokenizer and checkpoint; the checkpoint's config.json comes last.

    Raises:
        CheckpointError: The disk takes no more, or the directory holds a checkpoint.
    """
    from mpq.cli.convert_exports import write_tool_plans
    from mpq.convert.report import size_of
    from mpq.files import write_csv, write_json
    from mpq.modeling.checkpoint import config_of, write_checkpoint

    model = subject.loaded.model
    reports = _reports(finished)
    sites = {name: place.site for name, place in conversion.stored.items()}
    biases = _biases(finished)
    own = set(model.state_dict())
    added = sum(bias.nbytes for name, bias in biases.items() if name not in own)
    size = size_of(reports, sites, _stored_bytes(model), added)
    rows = [report.row for report in reports]
    write_json(
        folder / REPORT,
        {
            "settings": dict(settings),
            "size": asdict(size) | {"bits_per_value": size.bits_per_value},
            "heldout": None if heldout is None else _with_perplexity(heldout),
            "candidates": dict(losses),
            "tool_plans": write_tool_plans(folder, conversion.plan),
            "tensors": rows,
        },
    )
    write_csv(folder / TABLE, rows)
    write_checkpoint(
        folder,
        model_config=config_of(model),
        tensors=_tensors(conversion, finished, biases),
        plan=conversion.plan,
        biases_added=sorted(biases.keys() - own),
        files=[*_save_companions(folder, subject), REPORT, TABLE],
    )


def _reports(finished: FinishedBlocks) -> list[TensorReport]:
    return [report for block in finished.blocks() for report in block.reports]


def _biases(finished: FinishedBlocks) -> dict[str, Tensor]:
    return {name: bias for block in finished.blocks() for name, bias in block.biases.items()}


def _with_perplexity(heldout: HeldoutReport) -> dict[str, Any]:
    """The report's numbers and both perplexities; None for what is not finite."""
    found = asdict(heldout)
    for when in ("before", "after"):
        loss = found[f"loss_{when}"]
        found[f"perplexity_{when}"] = math.exp(loss) if loss < LARGEST_LOSS else math.inf
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def _stored_bytes(model: Any) -> int:
    """Bytes of the parameters and persistent buffers, each counted once."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(held.values())


def _tensors(
    conversion: Conversion, finished: FinishedBlocks, biases: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor | PackedWeight]]:
    """Every stored tensor once: packed ones by site, a few at a time; then the others."""
    for block in finished.blocks():
        yield from block.packed.items()
    yield from biases.items()
    yield from _left_alone(conversion, biases)


def _left_alone(
    conversion: Conversion, biases: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    from mpq.modeling.sites import places

    stored = conversion.stored
    by_parameter: dict[int, list[Any]] = {}
    for place in places(conversion.model):
        if place.site.is_stored:
            by_parameter.setdefault(id(place.parameter), []).append(place)
    seen: set[int] = set()
    for name, tensor in conversion.model.state_dict(keep_vars=True).items():
        if name in biases or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        members = by_parameter.get(id(tensor), [])
        packed = [place for place in members if place.site.name in stored]
        if not packed:
            yield name, tensor.detach()
            continue
        # Of fused experts, those that are not packed.
        for place in members:
            if place.site.name not in stored and place.part is not None:
                yield place.site.name, tensor.detach()[place.part]


def _save_companions(folder: Path, subject: Subject) -> list[str]:
    """The names of the files of tokenizer and generation settings, which are written."""
    loaded = subject.loaded
    saved = [Path(name).name for name in loaded.tokenizer.save_pretrained(folder)]
    generation = getattr(loaded.model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)
        saved.append("generation_config.json")
    return sorted(name for name in set(saved) if (folder / name).is_file())
