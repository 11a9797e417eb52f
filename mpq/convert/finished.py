"""Blocks that are done, on disk: what an interrupted conversion goes on from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mpq.convert.block import ConvertedBlock
from mpq.convert.report import TensorReport
from mpq.errors import RunError
from mpq.files import read_json, write_atomic, write_json
from mpq.formats.zoo import parse_format
from mpq.kernels.encoded import Encoded
from mpq.modeling.packed import PackedWeight
from mpq.run import flatten

BEFORE = "before"
AFTER = "after"
"""Keys of what lies before the blocks (embeddings), and of what reads them (a head of its own)."""

PARTS = ("codes", "scales", "zero_points", "tensor_scales")

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class FinishedBlocks:
    """A folder with one file of tensors and one of facts for each block that is done."""

    path: Path

    def __contains__(self, key: str) -> bool:
        return self._facts(key).is_file()

    def write(self, key: str, block: ConvertedBlock) -> None:
        """Keeps a block; it counts as done once its facts lie beside its tensors."""
        write_atomic(self._tensors(key), save(_tensors_of(block)))
        facts = {
            "rows": [report.row for report in block.reports],
            "packed": {site: _facts_of(packed.encoded) for site, packed in block.packed.items()},
        }
        write_json(self._facts(key), facts)

    def read(self, key: str) -> ConvertedBlock:
        """A block that was kept."""
        tensors = load_file(self._tensors(key))
        facts = read_json(self._facts(key))
        packed = {site: _packed(site, tensors, of) for site, of in facts["packed"].items()}
        return ConvertedBlock(
            packed=packed,
            biases={name: tensor for name, tensor in tensors.items() if "/" not in name},
            reports=tuple(map(TensorReport.of_row, facts["rows"])),
        )

    def _tensors(self, key: str) -> Path:
        return self.path / f"{key}.safetensors"

    def _facts(self, key: str) -> Path:
        return self.path / f"{key}.json"


def _tensors_of(block: ConvertedBlock) -> dict[str, Tensor]:
    tensors = dict(block.biases)
    for site, packed in block.packed.items():
        parts = {part: getattr(packed.encoded, part) for part in PARTS} | {"order": packed.order}
        tensors |= {f"{site}/{part}": held for part, held in parts.items() if held is not None}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _facts_of(encoded: Encoded) -> dict[str, Any]:
    return {
        "format": str(encoded.format),
        "axis": encoded.axis,
        "shape": list(encoded.shape),
        "dtype": str(encoded.dtype).removeprefix("torch."),
    }


def _packed(site: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> PackedWeight:
    parts = {part: tensors.get(f"{site}/{part}") for part in PARTS[1:]}
    encoded = Encoded(
        format=parse_format(facts["format"]),
        axis=facts["axis"],
        shape=tuple(facts["shape"]),
        dtype=getattr(torch, facts["dtype"]),
        codes=tensors[f"{site}/codes"],
        **parts,
    )
    return PackedWeight(encoded=encoded, order=tensors.get(f"{site}/order"))


def block_key(index: int) -> str:
    """The key of a block by its number."""
    return f"block-{index:05}"


def open_finished(path: Path, settings: Mapping[str, Any]) -> FinishedBlocks:
    """The blocks that are done of a conversion with these settings; made where there are none.

    Args:
        path: Their folder.
        settings: Whatever the tensors depend on: model, plan, text, options, versions.

    Raises:
        RunError: The folder holds blocks of a conversion with other settings; names the keys.
    """
    keep_settings(path, settings)
    return FinishedBlocks(path)


def keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings into a folder that has none yet.

    Raises:
        RunError: It has other ones; names the keys.
    """
    known = path / SETTINGS
    if known.is_file():
        refuse_other_settings(path, read_json(known), settings)
    else:
        write_json(known, dict(settings))


def refuse_other_settings(
    path: Path, before: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Nothing comes back where both settings are the same.

    Raises:
        RunError: They are not; names the keys, with both values.
    """
    one, other = flatten(before), flatten(json.loads(json.dumps(settings)))
    differing = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    if differing:
        lines = "\n".join(f"  {key}: {one.get(key)!r} -> {other.get(key)!r}" for key in differing)
        raise RunError(
            f"{path}: a conversion goes on with the settings it was started with; these differ:\n"
            f"{lines}\ntake them back, or choose another directory with --out"
        )
