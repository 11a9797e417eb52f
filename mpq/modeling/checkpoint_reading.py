"""A packed checkpoint opened: checked first, then read tensor by tensor as it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mpq.errors import CheckpointError
from mpq.modeling.checkpoint_checks import (
    StoredTensor,
    checked_config,
    checked_headers,
    require_files,
    require_formats,
    require_parts,
)
from mpq.modeling.checkpoint_parts import PackedFacts, packed_from
from mpq.modeling.packed import PackedWeight
from mpq.plans.plan import Plan


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
    config = checked_config(folder)
    quantization = config.pop("quantization_config")
    require_files(folder, quantization["files"], verify=verify)
    shards = Shards(folder)
    stored, facts = checked_headers(folder, shards.file)
    require_parts(folder, stored, facts)
    plan = Plan.of(
        quantization["plan"],
        model=quantization["model"],
        fingerprint=quantization["fingerprint"],
    )
    require_formats(folder, plan, facts)
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
