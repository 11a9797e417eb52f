"""What a packed checkpoint is held against before anything of it is used."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpq.errors import CheckpointError, FormatError, RunError
from mpq.files import read_json
from mpq.modeling.checkpoint_parts import HEADER, METHOD, VERSION, PackedFacts, facts_from
from mpq.modeling.checkpoint_writing import CONFIG, INDEX, config_digest, file_digest
from mpq.plans.plan import Plan

_STORED_AS = {
    "U8": torch.uint8,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of a file, as its header tells of it."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def checked_config(folder: Path) -> dict[str, Any]:
    """The configuration with its `quantization_config`, both known to be as they were written.

    Raises:
        CheckpointError: There is none, of another method or version, or it was changed.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} has no {CONFIG}, which is written last: its conversion was not finished, "
            "or it is no checkpoint. Convert again, or give another directory"
        )
    config = _json(folder / CONFIG)
    quantization = config.get("quantization_config")
    if not quantization:
        raise CheckpointError(
            f"{folder} holds a model that is not quantised ({CONFIG} has no "
            "quantization_config); load it with mpq.load_model"
        )
    method = quantization.get("quant_method")
    if method != METHOD:
        raise CheckpointError(
            f"{folder} was quantised with {method!r}, not {METHOD!r}; load it with the library "
            "that wrote it"
        )
    found = quantization.get("version")
    if not isinstance(found, int) or not 1 <= found <= VERSION:
        raise CheckpointError(
            f"{folder} has version {found!r} of the layout, and this mpq reads 1 to {VERSION}; "
            f"take a newer mpq (it was written by {quantization.get('packages', {}).get('mpq')})"
        )
    if quantization.get("digest") != config_digest(config):
        raise CheckpointError(
            f"{folder / CONFIG} was changed after it was written (its digest differs); "
            "bring the file back, or convert again"
        )
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except RunError as error:
        raise CheckpointError(f"{error}; convert again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no table; convert again")
    return value


def require_files(folder: Path, files: Mapping[str, Any], *, verify: bool) -> None:
    """Nothing comes back; the files are there, of their sizes and, under `verify`, their bytes.

    Raises:
        CheckpointError: Lists every file that is not.
    """
    faults = [
        fault for name, facts in files.items() for fault in _file_faults(folder / name, facts)
    ]
    if verify and not faults:
        faults = [
            f"{name}: its content was changed (sha256 differs)"
            for name, facts in files.items()
            if file_digest(folder / name) != facts["sha256"]
        ]
    if faults:
        raise CheckpointError(
            f"{folder} is not what was written: {'; '.join(faults)}. Copy or convert it again"
        )


def _file_faults(path: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name}: missing"
    elif path.stat().st_size != facts["bytes"]:
        yield f"{path.name}: {path.stat().st_size} bytes, not {facts['bytes']}"


def checked_headers(
    folder: Path, open_shard: Callable[[str], Any]
) -> tuple[dict[str, StoredTensor], dict[str, PackedFacts]]:
    """Every tensor that the shards hold, and the facts of the packed weights among them.

    Raises:
        CheckpointError: A header cannot be read, or index and shards disagree.
    """
    places: dict[str, str] = _json(folder / INDEX)["weight_map"]
    stored: dict[str, StoredTensor] = {}
    facts: dict[str, PackedFacts] = {}
    for file in sorted(set(places.values())):
        shard = open_shard(file)
        for name in shard.keys():  # noqa: SIM118 - no mapping
            slice_ = shard.get_slice(name)
            stored[name] = StoredTensor(
                file=file, dtype=slice_.get_dtype(), shape=tuple(slice_.get_shape())
            )
        try:
            facts |= facts_from((shard.metadata() or {}).get(HEADER, ""))
        except FormatError as error:
            raise CheckpointError(f"{folder / file}: {error}; convert again") from error
    wrong = sorted(
        name
        for name in stored.keys() | places.keys()
        if name not in stored or places.get(name) != stored[name].file
    )
    if wrong:
        raise CheckpointError(
            f"{folder / INDEX} and the shards disagree on where {', '.join(wrong)} lie; "
            "convert again"
        )
    return stored, facts


def require_parts(
    folder: Path, stored: Mapping[str, StoredTensor], facts: Mapping[str, PackedFacts]
) -> None:
    """Nothing comes back; every part of every packed weight is there, of its dtype and size.

    Raises:
        CheckpointError: Lists every part that is not.
    """
    faults = []
    for site, one in facts.items():
        for part, (dtype, size) in one.part_sizes().items():
            found = stored.get(f"{site}.{part}")
            if found is None:
                faults.append(f"{site}.{part} is missing")
            elif found.shape != (size,) or _STORED_AS.get(found.dtype) != dtype:
                faults.append(
                    f"{site}.{part} is {found.dtype} of shape {found.shape}, and {one.format} of "
                    f"shape {one.shape} takes {dtype} of shape ({size},)"
                )
    if faults:
        raise CheckpointError(f"{folder}: {'; '.join(faults)}. Convert again")


def require_formats(folder: Path, plan: Plan, facts: Mapping[str, PackedFacts]) -> None:
    """Nothing comes back; every packed weight has the plan's format.

    Raises:
        CheckpointError: Lists every weight that has not.
    """
    faults = [
        f"{site} is packed in {one.format}, and the plan says {plan.formats.get(site, 'nothing')}"
        for site, one in facts.items()
        if plan.formats.get(site) != one.format
    ]
    if faults:
        raise CheckpointError(f"{folder}: {'; '.join(faults)}. Convert again")
