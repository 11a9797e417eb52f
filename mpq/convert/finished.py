"""Blocks that are done, on disk: what an interrupted conversion goes on from."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from mpq.convert.block import ConvertedBlock
from mpq.convert.report import TensorReport
from mpq.errors import RunError
from mpq.files import read_json, write_atomic, write_json
from mpq.modeling.checkpoint_parts import (
    HEADER,
    PARTS,
    PackedFacts,
    facts_from,
    header_of,
    packed_from,
    parts_of,
)
from mpq.run import flatten

BEFORE = "before"
AFTER = "after"
"""Keys of what lies before the blocks (embeddings), and of what reads them (a head of its own)."""

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class FinishedBlocks:
    """A folder with one file of tensors and one of facts for each block that is done."""

    path: Path

    def __contains__(self, key: str) -> bool:
        return self._rows(key).is_file()

    def blocks(self) -> Iterator[ConvertedBlock]:
        """What is done, in the model's order, read one by one."""
        done = {path.stem for path in self.path.glob("*.json")} - {Path(SETTINGS).stem}
        for key in sorted(done, key=lambda key: (key == AFTER, key != BEFORE, key)):
            yield self.read(key)

    def write(self, key: str, block: ConvertedBlock) -> None:
        """Keeps a block; it counts as done once its rows lie beside its tensors."""
        tensors = dict(block.biases)
        for site, packed in block.packed.items():
            tensors |= {f"{site}.{part}": held for part, held in parts_of(packed).items()}
        facts = {site: PackedFacts.of(packed) for site, packed in block.packed.items()}
        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(self._tensors(key), save(stored, {HEADER: header_of(facts)}))
        write_json(self._rows(key), [report.row for report in block.reports])

    def read(self, key: str) -> ConvertedBlock:
        """A block that was kept."""
        with safe_open(self._tensors(key), framework="pt") as file:
            facts = facts_from(file.metadata()[HEADER])
            names = set(file.keys())
            packed = {}
            for site, of in facts.items():
                held = {part for part in PARTS if f"{site}.{part}" in names}
                names -= {f"{site}.{part}" for part in held}
                parts = {part: file.get_tensor(f"{site}.{part}") for part in held}
                packed[site] = packed_from(of, parts)
            biases = {name: file.get_tensor(name) for name in sorted(names)}
        reports = tuple(map(TensorReport.of_row, read_json(self._rows(key))))
        return ConvertedBlock(packed=packed, biases=biases, reports=reports)

    def _tensors(self, key: str) -> Path:
        return self.path / f"{key}.safetensors"

    def _rows(self, key: str) -> Path:
        return self.path / f"{key}.json"


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
