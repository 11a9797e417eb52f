"""A compressed-tensors checkpoint read back by the library's rules, and compared with its source.

Written from the layouts alone, without the library and without what wrote the files.
Source: compressed-tensors 0.20, `compressors/` and `quantization/lifecycle/forward_helpers.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpq.convert.shards import read_tensor, weight_map
from mpq.convert.verification import verify
from mpq.convert.words import unpack_words
from mpq.errors import ExportError
from mpq.files import read_json
from mpq.modeling.packed import PackedWeight

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M3 = torch.tensor(
    [i / 8 for i in range(8)] + [(1 + i / 8) * 2**e for e in range(3) for i in range(8)]
)
"""Magnitudes by code. Source: OCP MX v1.0 §5.3."""

Part = Callable[[str], Tensor]
"""The tensor of a layer by its name within the layer."""


def read_compressed_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Site name and values of every quantised weight, [out, in], as the library dequantises it.

    Raises:
        ExportError: A tensor is missing, or a layout that no export of mpq writes.
        RunError: config.json cannot be read.
    """
    place = Path(folder)
    files = weight_map(place)
    for module, group in _schemes(place).items():
        yield f"{module}.weight", _values(_part(place, files, module), group)


def verify_compressed_tensors(
    folder: str | Path,
    packed: Iterable[tuple[str, PackedWeight]],
    dense: Iterable[tuple[str, Tensor]],
    *,
    tables: Mapping[str, str] | None = None,
) -> None:
    """Nothing, where the files on disk give the source's values, every one of them.

    The sign of a zero is not compared: an integer's zero has none.

    Args:
        folder: What `export_compressed_tensors` wrote.
        packed: As it was given.
        dense: As it was given.
        tables: As it was given.

    Raises:
        ExportError: Names every tensor that differs, is missing, or has no source.
        RunError: config.json cannot be read.
    """
    place = Path(folder)
    files = weight_map(place)
    schemes = _schemes(place)

    def read(site: str) -> Tensor:
        module = site.removesuffix(".weight")
        if module in schemes:
            return _values(_part(place, files, module), schemes[module])
        return read_tensor(place, files, site)

    verify(place, files, read, packed, dense, tables or {})


def _schemes(folder: Path) -> dict[str, Any]:
    groups = read_json(folder / "config.json")["quantization_config"]["config_groups"]
    return {module: group for group in groups.values() for module in group["targets"]}


def _part(folder: Path, files: Mapping[str, str], module: str) -> Part:
    return lambda name: read_tensor(folder, files, f"{module}.{name}")


def _values(part: Part, group: Mapping[str, Any]) -> Tensor:
    layout, args = group["format"], group["weights"]
    if layout == "pack-quantized":
        shape = part("weight_shape").tolist()
        codes = unpack_words(part("weight_packed"), args["num_bits"], shape[1])
        return _scaled(codes - (1 << args["num_bits"] - 1), part("weight_scale"))
    if layout in ("int-quantized", "naive-quantized", "float-quantized"):
        scales = part("weight_scale")
        steps = part("weight").to(scales.dtype)
        if not args["symmetric"]:
            zeros = part("weight_zero_point").to(scales.dtype)
            steps = steps - zeros.repeat_interleave(steps.shape[1] // zeros.shape[1], 1)
        return _scaled(steps, scales)
    return _float_values(part, layout)


def _float_values(part: Part, layout: str) -> Tensor:
    scales = part("weight_scale")
    if layout == "nvfp4-pack-quantized":
        units = scales.bfloat16() / part("weight_global_scale")
        return _scaled(_e2m1(part("weight_packed")).bfloat16(), units).bfloat16()
    units = torch.exp2(scales.double() - 127).bfloat16()
    if layout == "mxfp4-pack-quantized":
        return _scaled(_e2m1(part("weight_packed")), units)
    if layout == "mxfp6-pack-quantized":
        return _scaled(_e2m3(part("weight_packed")), units)
    if layout == "mxfp8-quantized":
        return _scaled(part("weight"), units)
    raise ExportError(f"{layout!r} is a layout that no export of mpq writes: export again")


def _scaled(steps: Tensor, scales: Tensor) -> Tensor:
    """The product in the scales' dtype: one rounding, as a code is exact in bfloat16."""
    each = scales.repeat_interleave(steps.shape[1] // scales.shape[1], 1)
    return steps.to(scales.dtype) * each


def _e2m1(packed: Tensor) -> Tensor:
    codes = torch.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1).long()
    return torch.where(codes & 8 == 8, -E2M1[codes & 7], E2M1[codes & 7])


def _e2m3(packed: Tensor) -> Tensor:
    three = packed.long().reshape(packed.shape[0], -1, 3)
    word = three[..., 0] | three[..., 1] << 8 | three[..., 2] << 16
    codes = torch.stack([word >> at & 63 for at in (0, 6, 12, 18)], -1).reshape(word.shape[0], -1)
    return torch.where(codes & 32 == 32, -E2M3[codes & 31], E2M3[codes & 31])
