"""A packed model of integers as a GPTQ checkpoint, v2 or v1, as GPTQModel and vLLM read it.

Layers that differ from the most frequent scheme stand in `dynamic`, one exact pattern each.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpq import __version__
from mpq.convert.gptq_layers import Version, gptq_layer, gptq_scheme
from mpq.convert.shards import MAX_SHARD_BYTES, load_dtype, write_config, write_shards
from mpq.convert.targets import kind_of, refuse
from mpq.formats.format import Format
from mpq.modeling.packed import PackedWeight, unpack_weight


@dataclass(kw_only=True)
class _Export:
    """What is known of an export while its tensors stream by."""

    version: Version
    dtype: torch.dtype
    tables: Mapping[str, str]
    schemes: dict[str, dict[str, Any]] = field(default_factory=dict)
    unquantized: list[str] = field(default_factory=list)
    untied: bool = False
    faults: list[tuple[str, Format, str]] = field(default_factory=list)


def export_gptq(
    folder: str | Path,
    packed: Iterable[tuple[str, PackedWeight]],
    dense: Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    *,
    version: Version = "gptq_v2",
    tables: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a GPTQ checkpoint; config.json comes last.

    Scales become float16, and only where every one survives: of bfloat16 scales those from 2^-17
    to 65,280 do. Codes, scales and zero points are those of `packed`; a symmetric weight's zeros
    are 2^(bits-1).

    Args:
        folder: New or empty.
        packed: Site name (`<module>.weight`) -> weight; streamed.
        dense: Every other tensor of the state dict, streamed and stored as it is.
        config: The model's own config.json.
        version: `gptq_v2` stores zeros as they are; `gptq` is the older layout.
        tables: Site name of each lookup table -> that of the head tied to it, or "". A packed
            table with a head is stored twice and untied: the head packed, the table as the
            values that it reads back as.
        max_shard_bytes: The most bytes of a shard.

    Raises:
        ExportError: Lists every weight that the layout cannot hold exactly with the nearest
            format that it can; or the folder holds files. Nothing is left behind.
    """
    state = _Export(version=version, dtype=load_dtype(config), tables=tables or {})
    write_shards(Path(folder), _tensors(packed, dense, state), max_shard_bytes)
    write_config(Path(folder), config, _quantization_config(state), is_untied=state.untied)


def _tensors(
    packed: Iterable[tuple[str, PackedWeight]], dense: Iterable[tuple[str, Tensor]], state: _Export
) -> Iterator[tuple[str, Tensor]]:
    for site, weight in packed:
        head = state.tables.get(site, site)
        layer = _layer(weight, state)
        if not head:
            layer = "it holds no quantised lookup table"
        if isinstance(layer, str):
            state.faults.append((site, weight.encoded.format, layer))
            continue
        module = head.removesuffix(".weight")
        if "weight" in layer:
            state.unquantized.append(module)
        else:
            state.schemes[module] = gptq_scheme(weight)
        if head != site:
            state.untied = True
            yield site, unpack_weight(weight, state.dtype)
        if not state.faults:
            yield from ((f"{module}.{name}", part) for name, part in layer.items())
    refuse(state.faults, "gptq")
    for name, tensor in dense:
        if name.endswith(".weight") and tensor.ndim == 2:
            state.unquantized.append(name.removesuffix(".weight"))
        yield name, tensor


def _layer(weight: PackedWeight, state: _Export) -> dict[str, Tensor] | str:
    if kind_of(weight.encoded.format) != "dense":
        return gptq_layer(weight, state.version)
    values = unpack_weight(weight, torch.float32)
    if not torch.equal(values.to(state.dtype).float(), values):
        return f"unquantised weights are stored in {state.dtype}, which does not hold all of them"
    return {"weight": values.to(state.dtype)}


def _quantization_config(state: _Export) -> dict[str, Any]:
    counts = Counter(json.dumps(scheme) for scheme in state.schemes.values())
    base = json.loads(counts.most_common(1)[0][0]) if counts else {}
    return {
        "quant_method": "gptq",
        "checkpoint_format": state.version,
        "pack_dtype": "int32",
        **base,
        "lm_head": "lm_head" in state.schemes,
        "dynamic": dynamic_rules(state.schemes, state.unquantized, base),
        "meta": {"quantizer": [f"mpq:{__version__}"]},
    }


def dynamic_rules(
    schemes: Mapping[str, Mapping[str, Any]],
    unquantized: Iterable[str],
    base: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """GPTQModel's `dynamic`: pattern of one module -> what differs from the base scheme.

    `+:` is an override, `-:` leaves a module alone. The first pattern that matches decides, and
    each matches one module only. Source: GPTQModel 7.7, `quantization/config.py`.

    Args:
        schemes: Module -> its scheme, as `gptq_scheme` words it.
        unquantized: Modules that are left alone.
        base: The scheme of whatever no pattern matches.
    """
    rules = {
        f"+:^{re.escape(module)}$": dict(scheme)
        for module, scheme in sorted(schemes.items())
        if dict(scheme) != dict(base)
    }
    return rules | {f"-:^{re.escape(module)}$": {} for module in sorted(unquantized)}
