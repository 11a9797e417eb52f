"""A GPTQ checkpoint, v2 or v1, read back: codes, scales and zeros, or values."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mpq.convert.gptq_layers import gptq_values, read_gptq_layer
from mpq.convert.integer_weight import IntegerWeight
from mpq.convert.shards import read_tensor, weight_map
from mpq.convert.verification import verify
from mpq.errors import ExportError
from mpq.files import read_json
from mpq.modeling.packed import PackedWeight

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def read_gptq(folder: str | Path) -> Iterator[tuple[str, IntegerWeight]]:
    """Site name and codes, scales and zeros of every quantised weight, [out, in].

    `mpq.convert.gptq_layers.gptq_values` makes values of them.

    Raises:
        ExportError: A tensor is missing, or the layout is neither version of GPTQ's.
        RunError: config.json cannot be read.
    """
    place = Path(folder)
    files = weight_map(place)
    told = _told(place)
    for name in sorted(files):
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            yield f"{module}.weight", _layer(place, files, told, module)


def verify_gptq(
    folder: str | Path,
    packed: Iterable[tuple[str, PackedWeight]],
    dense: Iterable[tuple[str, Tensor]],
    *,
    tables: Mapping[str, str] | None = None,
) -> None:
    """Nothing, where the files on disk give the source's values, every one of them.

    Values are compared in float32, which a reader in float16 or bfloat16 rounds from. The sign of
    a zero is not compared: an integer's zero has none.

    Args:
        folder: What `export_gptq` wrote.
        packed: As it was given.
        dense: As it was given.
        tables: As it was given.

    Raises:
        ExportError: Names every tensor that differs, is missing, or has no source.
        RunError: config.json cannot be read.
    """
    place = Path(folder)
    files = weight_map(place)
    told = _told(place)
    transposed: set[str] = set()

    def watched() -> Iterator[tuple[str, PackedWeight]]:
        for site, weight in packed:
            if weight.encoded.axis in (0, -2):
                transposed.add((tables or {}).get(site) or site)
            yield site, weight

    def read(site: str) -> Tensor:
        module = site.removesuffix(".weight")
        if f"{module}.qweight" not in files:
            return read_tensor(place, files, site)
        values = gptq_values(_layer(place, files, told, module)).float()
        return values.T if site in transposed else values

    verify(place, files, read, watched(), dense, tables or {})


def _told(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = read_json(folder / "config.json")["quantization_config"]
    if told.get("checkpoint_format") not in ("gptq_v2", "gptq"):
        raise ExportError(
            f"{folder} has the checkpoint format {told.get('checkpoint_format')!r}, and gptq_v2 "
            "and gptq are read: export again"
        )
    return told


def _layer(
    folder: Path, files: Mapping[str, str], told: Mapping[str, Any], module: str
) -> IntegerWeight:
    tensors = {part: read_tensor(folder, files, f"{module}.{part}") for part in PARTS}
    bits = _bits(told, module)
    words, outputs = tensors["qweight"].shape
    if words * 32 != tensors["g_idx"].numel() * bits or outputs != tensors["scales"].shape[1]:
        raise ExportError(
            f"{module} is said to have {bits} bits, and its {words} words of "
            f"{tensors['g_idx'].numel()} codes say otherwise: export again"
        )
    return read_gptq_layer(tensors, bits, told["checkpoint_format"])


def _bits(told: Mapping[str, Any], module: str) -> int:
    """The bits that GPTQModel takes: of the first pattern that matches, else the base's."""
    for pattern, override in told["dynamic"].items():
        if pattern.startswith("+:") and re.match(pattern[2:], module):
            return int(override["bits"])
    return int(told["bits"])
