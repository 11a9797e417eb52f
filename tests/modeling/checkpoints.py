"""Packed checkpoints of small random models, and ways to damage them."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from mpq import Plan, encode, uniform_plan
from mpq.modeling.checkpoint import config_of, write_checkpoint
from mpq.modeling.checkpoint_writing import config_digest, file_digest
from mpq.modeling.packed import PackedWeight
from mpq.modeling.sites import places


def packed_tensors(model: PreTrainedModel, plan: Plan) -> dict[str, Tensor | PackedWeight]:
    """The model's tensors as conversion would write them, each rounded to nearest, tied once."""
    known = {
        name: place
        for place in places(model)
        for name in (place.site.name, *place.site.aliases)
        if place.site.is_stored
    }
    tensors: dict[str, Tensor | PackedWeight] = {}
    packed: dict[int, set[int | None]] = {}
    for name, fmt in plan.formats.items():
        if name in known and not fmt.is_identity:
            place = known[name]
            whole = place.parameter.detach()
            weight = whole if place.part is None else whole[place.part]
            tensors[name] = PackedWeight(encoded=encode(weight, fmt, place.site.axis))
            packed.setdefault(id(place.parameter), set()).add(place.part)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in packed:
            tensors[name] = tensor.detach()
            packed[id(tensor)] = {None}
    for place in places(model):  # experts that the plan leaves out, beside some that it names
        parts = packed.get(id(place.parameter), set()) if place.site.is_stored else {None}
        if place.part is not None and None not in parts and place.part not in parts:
            tensors[place.site.name] = place.parameter.detach()[place.part]
    return tensors


def saved(
    model: PreTrainedModel, path: Path, plan: Plan | str = "int4-g16", **options: object
) -> Plan:
    """The plan of a checkpoint written to `path`; a format stands for all weights in it."""
    if isinstance(plan, str):
        plan = uniform_plan(model, plan, roles=("weight",))
    tensors = packed_tensors(model, plan)
    write_checkpoint(
        path, model_config=config_of(model), tensors=tensors.items(), plan=plan, **options
    )
    return plan


def signed(path: Path, **changes: object) -> None:
    """The checkpoint's facts as if its files had been written as they now are."""
    config = json.loads((path / "config.json").read_text())
    quantization = config["quantization_config"] | changes
    quantization["files"] = {
        name: {"sha256": file_digest(path / name), "bytes": (path / name).stat().st_size}
        for name in quantization["files"]
        if (path / name).exists()
    }
    config["quantization_config"] = quantization
    quantization["digest"] = config_digest(config)
    (path / "config.json").write_text(json.dumps(config))


def rewrite(path: Path, changes: dict[str, Tensor | None]) -> None:
    """The only shard with other tensors (None: without them), signed like a whole checkpoint."""
    (shard,) = path.glob("model-*.safetensors")
    with safe_open(shard, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors |= changes
    save_file({k: v for k, v in tensors.items() if v is not None}, shard, metadata=metadata)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {k: shard.name for k, v in tensors.items() if v is not None}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    signed(path)


def same(left: PackedWeight, right: PackedWeight) -> bool:
    """Whether every fact and every bit of two packed weights agree."""
    facts = ("format", "axis", "shape", "dtype")
    parts = ("codes", "scales", "zero_points", "tensor_scales")
    pairs = [(getattr(left.encoded, name), getattr(right.encoded, name)) for name in parts]
    pairs.append((left.order, right.order))
    return all(getattr(left.encoded, n) == getattr(right.encoded, n) for n in facts) and all(
        (a is None and b is None)
        or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in pairs
    )
