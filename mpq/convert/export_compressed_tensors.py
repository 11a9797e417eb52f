"""A packed model as a compressed-tensors checkpoint, which transformers and vLLM load.

One config group for each scheme, its layers by their exact names: mixed precision.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpq.convert.compressed_layers import compressed_layer
from mpq.convert.shards import MAX_SHARD_BYTES, load_dtype, write_config, write_shards
from mpq.convert.targets import input_misfit, refuse
from mpq.formats.format import Format
from mpq.modeling.packed import PackedWeight, unpack_weight


@dataclass(kw_only=True)
class _Export:
    """What is known of an export while its tensors stream by."""

    dtype: torch.dtype
    inputs: Mapping[str, Format]
    tables: Mapping[str, str]
    targets: dict[str, list[str]] = field(default_factory=dict)
    unquantized: list[str] = field(default_factory=list)
    untied: bool = False
    faults: list[tuple[str, Format, str]] = field(default_factory=list)


def export_compressed_tensors(
    folder: str | Path,
    packed: Iterable[tuple[str, PackedWeight]],
    dense: Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    *,
    inputs: Mapping[str, Format] | None = None,
    tables: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a checkpoint that `from_pretrained` loads; config.json comes last.

    Float scales are stored in the dtype that `config` names, and only where every scale survives:
    bf16 scales in a bf16 model do. Codes, scales and zero points are those of `packed`.

    Args:
        folder: New or empty.
        packed: Site name (`<module>.weight`) -> weight; streamed.
        dense: Every other tensor of the state dict, streamed and stored as it is.
        config: The model's own config.json.
        inputs: Site name (`<module>.input`) -> format of the layer's input, of those that
            `targets.INPUTS` lists. An engine scales each token by its own rule.
        tables: Site name of each lookup table -> that of the head tied to it, or "". A packed
            table with a head is stored twice and untied: the head packed, the table as the
            values that it reads back as (transformers loads no quantised Embedding).
        max_shard_bytes: The most bytes of a shard.

    Raises:
        ExportError: Lists every weight that compressed-tensors cannot hold exactly with the
            nearest format that it can; or the folder holds files. Nothing is left behind.
    """
    state = _Export(dtype=load_dtype(config), inputs=inputs or {}, tables=tables or {})
    write_shards(Path(folder), _tensors(packed, dense, state), max_shard_bytes)
    write_config(Path(folder), config, _quantization_config(state), is_untied=state.untied)


def _tensors(
    packed: Iterable[tuple[str, PackedWeight]], dense: Iterable[tuple[str, Tensor]], state: _Export
) -> Iterator[tuple[str, Tensor]]:
    seen = set()
    for site, weight in packed:
        head = state.tables.get(site, site)
        module = head.removesuffix(".weight")
        seen.add(f"{module}.input")
        named = weight.encoded.format
        layer = compressed_layer(weight, state.dtype, state.inputs.get(f"{module}.input"))
        if not head:
            layer = "transformers loads no quantised lookup table"
        if isinstance(layer, str):
            state.faults.append((site, named, layer))
            continue
        if layer.scheme is None:
            state.unquantized.append(module)
        else:
            state.targets.setdefault(json.dumps(layer.scheme), []).append(module)
        if head != site:
            state.untied = True
            state.unquantized.append(site.removesuffix(".weight"))
            yield site, unpack_weight(weight, state.dtype)
        if not state.faults:
            yield from ((f"{module}.{name}", part) for name, part in layer.tensors.items())
    for site in sorted(state.inputs.keys() - seen):
        reason = input_misfit(state.inputs[site], "compressed-tensors")
        reason = reason or "it quantises an input only beside its layer's weight"
        state.faults.append((site, state.inputs[site], reason))
    refuse(state.faults, "compressed-tensors")
    for name, tensor in dense:
        if name.endswith(".weight") and tensor.ndim == 2:
            state.unquantized.append(name.removesuffix(".weight"))
        yield name, tensor


def _quantization_config(state: _Export) -> dict[str, Any]:
    schemes = {text: json.loads(text) for text in state.targets}
    layouts = sorted({scheme["format"] for scheme in schemes.values()})
    quantized = {module for modules in state.targets.values() for module in modules}
    # A tied head has no tensor of its own, and vLLM looks for its scheme all the same.
    ignore = {*state.unquantized, "lm_head"} - quantized
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": layouts[0] if len(layouts) == 1 else "mixed-precision",
        "config_groups": {
            f"group_{number}": {"targets": sorted(state.targets[text])} | scheme
            for number, (text, scheme) in enumerate(schemes.items())
        },
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
    }
