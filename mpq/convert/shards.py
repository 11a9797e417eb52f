"""Tensors as safetensors shards, as transformers finds them; and back, one at a time."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpq.errors import ExportError
from mpq.files import read_json, write_json

MAX_SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], max_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Safetensors files in a new or empty folder, with an index where there are several.

    No more than one shard's tensors are held. A failure on the way, of the disk or of whatever
    makes the tensors, leaves no file behind.

    Raises:
        ExportError: The folder holds files, or a name comes twice.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"an export goes into a new or empty folder, and {folder} holds files")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[tuple[Path, list[str]]] = []
    try:
        for number, shard in enumerate(_in_shards(tensors, max_bytes)):
            place = folder / f".{number}.tmp"
            written.append((place, list(shard)))
            save_file(shard, place, metadata={"format": "pt"})
        _give_names(folder, written)
    except BaseException:
        for place in folder.iterdir():
            place.unlink()
        raise


def write_config(
    folder: Path, config: Mapping[str, Any], quantization: Mapping[str, Any], *, is_untied: bool
) -> None:
    """Writes the model's config with how it is quantised; an export is whole once it is there.

    Args:
        folder: Of the shards.
        config: The model's own config.json.
        quantization: Its `quantization_config`.
        is_untied: Whether a head that was tied to its table has a tensor of its own.
    """
    written = dict(config) | {"quantization_config": dict(quantization)}
    if is_untied:
        written["tie_word_embeddings"] = False
    write_json(folder / "config.json", written)


def _in_shards(
    tensors: Iterable[tuple[str, Tensor]], max_bytes: int
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    seen: set[str] = set()
    size = 0
    for name, tensor in tensors:
        if name in seen:
            raise ExportError(f"a tensor's name stands for one tensor, and {name} comes twice")
        seen.add(name)
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    yield shard


def _give_names(folder: Path, written: list[tuple[Path, list[str]]]) -> None:
    count = len(written)
    weight_map: dict[str, str] = {}
    total = 0
    for number, (place, names) in enumerate(written):
        _flush(place)
        total += place.stat().st_size
        file = SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
        place.replace(folder / file)
        weight_map |= dict.fromkeys(names, file)
    if count > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _flush(place: Path) -> None:
    with suppress(OSError), place.open("rb") as file:
        os.fsync(file.fileno())


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file, of the shards in a folder.

    Raises:
        ExportError: A shard that the index names is missing.
        RunError: The index cannot be read.
    """
    if (folder / INDEX).exists():
        found: dict[str, str] = read_json(folder / INDEX)["weight_map"]
    else:
        with safe_open(_existing(folder / SINGLE), framework="pt") as file:
            found = dict.fromkeys(file.keys(), SINGLE)
    for name in sorted(set(found.values())):
        _existing(folder / name)
    return found


def read_tensor(folder: Path, names: Mapping[str, str], name: str) -> Tensor:
    """One tensor of the shards that `weight_map` found.

    Raises:
        ExportError: No shard holds it.
    """
    if name not in names:
        raise ExportError(f"{folder} holds no tensor {name}: export again")
    with safe_open(folder / names[name], framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def load_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype in which a model's own config says that it is loaded; float32 where it is silent.

    Raises:
        ExportError: The config names none that weights are loaded in.
    """
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = dtypes.get(named.removeprefix("torch."))
    if found is None:
        raise ExportError(
            f"config.json names the dtype {named!r}, and a model is loaded in float32, bfloat16 "
            f"or float16: name one of these"
        )
    return found


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ExportError(f"{path} is missing: export again")
    return path
