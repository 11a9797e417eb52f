"""A packed checkpoint opened: checked first, then read tensor by tensor as it is asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mpq.errors import CheckpointError, FormatError, RunError
from mpq.files import read_json
from mpq.modeling.checkpoint_parts import (
    HEADER,
    METHOD,
    VERSION,
    PackedFacts,
    facts_from,
    packed_from,
)
from mpq.modeling.checkpoint_writing import CONFIG, INDEX, config_digest, file_digest
from mpq.modeling.packed import PackedWeight
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


class Shards:
    """The shard files of a checkpoint, each mapped into memory when it is first read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def file(self, name: str) -> Any:
        """The open file of this name.

        Raises:
            CheckpointError: It is missing, or its header cannot be read.
        """
        if name not in self._open:
            path = self._folder / name
            try:
                self._open[name] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{path} cannot be read as a shard of a checkpoint: {error}. Copy or convert "
                    "it again"
                ) from error
        return self._open[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A packed checkpoint on disk; tensors are read when they are asked for.

    Attributes:
        path: Its directory.
        config: The model's configuration, without `quantization_config`.
        quantization: The `quantization_config`: plan, versions, files.
        plan: Formats of the packed weights and of activations.
        packed_facts: What each packed weight's tensors mean, by site, in the order of the files.
        dense_facts: The tensors that are stored as they are, by name.
    """

    path: Path
    config: Mapping[str, Any]
    quantization: Mapping[str, Any]
    plan: Plan
    packed_facts: Mapping[str, PackedFacts]
    dense_facts: Mapping[str, StoredTensor]
    _places: Mapping[str, str] = field(repr=False)
    _shards: Shards = field(repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites whose weights are packed."""
        return tuple(self.packed_facts)

    @property
    def dense_names(self) -> tuple[str, ...]:
        """The names of all other tensors."""
        return tuple(self.dense_facts)

    @property
    def biases_added(self) -> tuple[str, ...]:
        """State-dict names of biases that conversion gave to layers without one."""
        return tuple(self.quantization["biases_added"])

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over the configuration, which holds those of all files."""
        return str(self.quantization["digest"])

    def packed(self, site: str) -> PackedWeight:
        """The packed weight of a site.

        Raises:
            CheckpointError: No weight of this name is packed.
        """
        if site not in self.packed_facts:
            raise CheckpointError(f"{self.path} has no packed weight {site!r}: see .sites")
        facts = self.packed_facts[site]
        return packed_from(
            facts, {part: self._tensor(f"{site}.{part}") for part in facts.part_sizes()}
        )

    def dense(self, name: str) -> Tensor:
        """A tensor that is stored as it is; its memory is the mapped file's.

        Raises:
            CheckpointError: No tensor of this name is stored so.
        """
        if name not in self.dense_facts:
            raise CheckpointError(f"{self.path} has no tensor {name!r}: see .dense_names")
        return self._tensor(name)

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._shards.file(self._places[name]).get_tensor(name)
        return tensor


def open_checkpoint(path: str | Path, *, verify: bool = True) -> Checkpoint:
    """The packed checkpoint of a directory, checked before anything of it is used.

    Args:
        path: The directory that `write_checkpoint` filled.
        verify: Whether every file is hashed and compared (one read of all bytes); sizes, headers
            and shapes are compared in any case.

    Raises:
        CheckpointError: The directory is unfinished or none of mpq's, of a newer version, or
            something in it was changed, is missing, is too much, or has another size or shape.
            Every fault of one kind is listed.
    """
    folder = Path(path)
    config = _config(folder)
    quantization = config.pop("quantization_config")
    _require_files(folder, quantization["files"], verify=verify)
    shards = Shards(folder)
    stored, facts = _headers(folder, shards)
    _require_tensors(folder, stored, facts)
    plan = Plan.of(
        quantization["plan"],
        model=quantization["model"],
        fingerprint=quantization["fingerprint"],
    )
    _require_formats(folder, plan, facts)
    parts = {f"{site}.{part}" for site, one in facts.items() for part in one.part_sizes()}
    return Checkpoint(
        path=folder,
        config=config,
        quantization=quantization,
        plan=plan,
        packed_facts=facts,
        dense_facts={name: one for name, one in stored.items() if name not in parts},
        _places={name: one.file for name, one in stored.items()},
        _shards=shards,
    )


def _config(folder: Path) -> dict[str, Any]:
    """The configuration with its `quantization_config`, both known to be whole."""
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


def _require_files(folder: Path, files: Mapping[str, Any], *, verify: bool) -> None:
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


def _headers(
    folder: Path, shards: Shards
) -> tuple[dict[str, StoredTensor], dict[str, PackedFacts]]:
    """Every tensor that the shards hold, and the facts of the packed weights among them."""
    places: dict[str, str] = _json(folder / INDEX)["weight_map"]
    stored: dict[str, StoredTensor] = {}
    facts: dict[str, PackedFacts] = {}
    for file in sorted(set(places.values())):
        shard = shards.file(file)
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


def _require_tensors(
    folder: Path, stored: Mapping[str, StoredTensor], facts: Mapping[str, PackedFacts]
) -> None:
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


def _require_formats(folder: Path, plan: Plan, facts: Mapping[str, PackedFacts]) -> None:
    faults = [
        f"{site} is packed in {one.format}, and the plan says {plan.formats.get(site, 'nothing')}"
        for site, one in facts.items()
        if plan.formats.get(site) != one.format
    ]
    if faults:
        raise CheckpointError(f"{folder}: {'; '.join(faults)}. Convert again")
