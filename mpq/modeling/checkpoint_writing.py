"""A packed checkpoint written as a stream: at most one shard lies in memory.

Shards are written to temporary names and renamed when all are there; `config.json` comes last, so
a directory that holds it holds everything else.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mpq import __version__
from mpq.errors import CheckpointError
from mpq.files import write_json
from mpq.modeling.checkpoint_parts import (
    HEADER,
    METHOD,
    VERSION,
    PackedFacts,
    header_of,
    parts_of,
)
from mpq.modeling.packed import PackedWeight
from mpq.plans.plan import Plan
from mpq.plans.site import STORED_ROLES

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
MAX_SHARD_BYTES = 4 * 2**30
_PACKAGES = ("torch", "transformers", "safetensors", "numpy")
_HASHED_AT_ONCE = 2**22


def write_checkpoint(
    path: str | Path,
    *,
    model_config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor | PackedWeight]],
    plan: Plan,
    biases_added: Sequence[str] = (),
    files: Sequence[str] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Nothing comes back; `path` holds a packed checkpoint that `open_checkpoint` takes.

    Whoever is stopped on the way leaves a directory without `config.json`, which nobody loads;
    writing into it again starts anew.

    Args:
        path: The directory; made where missing.
        model_config: The model's configuration (`config_of(model)`): with `architectures` and
            `dtype`.
        tensors: Names and tensors, taken one by one: packed weights under their site's name, all
            others under their name in the state dict (one slice of fused experts under its
            site's name). A tied tensor comes once.
        plan: Formats of the packed weights, and of the activations that the loaded model gives
            theirs. Every stored site but those of identity formats comes as a packed weight.
        biases_added: State-dict names of biases that the model's class has not, and `tensors` has.
        files: Names of files already in `path` that belong to the checkpoint (the tokenizer's).
        max_shard_bytes: A shard ends before it passes this; a larger weight has its own.

    Raises:
        CheckpointError: The directory holds a finished checkpoint, a name comes twice, plan and
            tensors do not fit each other, or the disk takes no more.
    """
    folder = Path(path)
    _require_config(model_config)
    if (folder / CONFIG).exists():
        raise CheckpointError(
            f"{folder} holds a finished checkpoint ({CONFIG} is there), and none is written over: "
            "give another directory, or delete this one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _remove_shards(folder)
    try:
        shards = _write_shards(folder, tensors, plan, max_shard_bytes)
        names = _rename(folder, shards)
        _write_facts(folder, dict(model_config), plan, biases_added, names, shards, files)
    except BaseException:
        (folder / CONFIG).unlink(missing_ok=True)
        _remove_shards(folder)
        raise


def file_digest(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """Hex sha256 of a checkpoint's configuration without the digest that it holds itself."""
    quantization = {k: v for k, v in config["quantization_config"].items() if k != "digest"}
    text = json.dumps({**config, "quantization_config": quantization}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(slots=True)
class _Shard:
    """The tensors of the shard that is being filled; then only what they were."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, PackedFacts] = field(default_factory=dict)
    num_bytes: int = 0
    names: tuple[str, ...] = ()
    temporary: Path = Path()


def _write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor | PackedWeight]],
    plan: Plan,
    max_shard_bytes: int,
) -> list[_Shard]:
    done: list[_Shard] = []
    shard = _Shard()
    for name, parts, facts in _checked(tensors, plan):
        size = sum(part.nbytes for part in parts.values())
        if shard.tensors and shard.num_bytes + size > max_shard_bytes:
            done.append(_written(folder, shard, len(done) + 1))
            shard = _Shard()
        shard.tensors.update(parts)
        shard.num_bytes += size
        if facts is not None:
            shard.facts[name] = facts
    done.append(_written(folder, shard, len(done) + 1))
    return done


def _checked(
    tensors: Iterable[tuple[str, Tensor | PackedWeight]], plan: Plan
) -> Iterator[tuple[str, dict[str, Tensor], PackedFacts | None]]:
    """Each tensor's name, what is stored for it, and its facts where it is packed."""
    waiting = {
        name: fmt
        for name, fmt in plan.formats.items()
        if name.rpartition(".")[2] in STORED_ROLES and not fmt.is_identity
    }
    seen: set[str] = set()
    for name, tensor in tensors:
        if isinstance(tensor, PackedWeight):
            if waiting.pop(name, None) != tensor.encoded.format:
                raise CheckpointError(
                    f"{name} comes packed in {tensor.encoded.format}, and the plan says "
                    f"{plan.formats.get(name, 'nothing')}: pack what the plan names, once"
                )
            parts = {f"{name}.{part}": value for part, value in parts_of(tensor).items()}
            yield name, _stored(parts, seen), PackedFacts.of(tensor)
        else:
            yield name, _stored({name: tensor}, seen), None
    if waiting:
        raise CheckpointError(
            f"the plan gives formats to {', '.join(waiting)}, and no packed weights came for "
            "them: pack them, or take them out of the plan"
        )


def _stored(parts: Mapping[str, Tensor], seen: set[str]) -> dict[str, Tensor]:
    twice = sorted(seen & parts.keys())
    if twice:
        raise CheckpointError(
            f"{', '.join(twice)} came twice: a checkpoint holds every tensor once, a tied one "
            "under one of its names"
        )
    seen.update(parts)
    return {name: _alone(part.detach().cpu().contiguous()) for name, part in parts.items()}


def _alone(x: Tensor) -> Tensor:
    """The tensor without the rest of a larger one that it was cut from."""
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def _written(folder: Path, shard: _Shard, number: int) -> _Shard:
    """The shard on disk under a temporary name, its tensors let go."""
    shard.temporary = folder / f".model-{number:05d}.safetensors.tmp"
    _require_apart(shard.tensors)
    with _room_on_disk(folder, shard.num_bytes):
        save_file(shard.tensors, shard.temporary, metadata={HEADER: header_of(shard.facts)})
        with shard.temporary.open("rb") as file:
            os.fsync(file.fileno())
    shard.names = tuple(shard.tensors)
    shard.tensors = {}
    return shard


def _require_apart(tensors: Mapping[str, Tensor]) -> None:
    holders: dict[int, str] = {}
    for name, tensor in tensors.items():
        other = holders.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if other != name:
            raise CheckpointError(
                f"{other} and {name} are one tensor: give a tied tensor under one of its names"
            )


@contextmanager
def _room_on_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    """A context in which a disk that takes no more is an error of ours.

    Raises:
        CheckpointError: Names the place and the bytes wanted.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        reason = "the disk is full" if is_full else f"it takes no file: {error}"
        raise CheckpointError(
            f"{folder} must take {num_bytes:,} bytes more, and {reason} "
            f"({shutil.disk_usage(folder).free:,} bytes are free). Nothing there can be loaded; "
            "make room, or give another directory, and write again"
        ) from error


def _rename(folder: Path, shards: Sequence[_Shard]) -> list[str]:
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        shard.temporary.replace(folder / name)
    return names


def _write_facts(
    folder: Path,
    config: dict[str, Any],
    plan: Plan,
    biases_added: Sequence[str],
    names: Sequence[str],
    shards: Sequence[_Shard],
    files: Sequence[str],
) -> None:
    place = {tensor: name for name, one in zip(names, shards, strict=True) for tensor in one.names}
    total = sum(shard.num_bytes for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    with _room_on_disk(folder, 2 * len(json.dumps(index))):
        write_json(folder / INDEX, index)
        facts = {
            name: {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size}
            for name in (*names, INDEX, *sorted(files))
        }
        config["quantization_config"] = {
            "quant_method": METHOD,
            "version": VERSION,
            "plan": {name: str(fmt) for name, fmt in plan.formats.items()},
            "model": plan.model,
            "fingerprint": plan.fingerprint,
            "biases_added": sorted(biases_added),
            "packages": {"mpq": __version__} | {name: version(name) for name in _PACKAGES},
            "files": facts,
        }
        # As it reads back: JSON knows no tuples, and only text as keys.
        config = json.loads(json.dumps(config))
        config["quantization_config"]["digest"] = config_digest(config)
        write_json(folder / CONFIG, config)


def _require_config(config: Mapping[str, Any]) -> None:
    missing = [key for key in ("architectures", "dtype") if not config.get(key)]
    if missing:
        raise CheckpointError(
            f"a checkpoint's configuration names the model's class and dtype, and this one lacks "
            f"{' and '.join(missing)}: take mpq.modeling.checkpoint.config_of(model)"
        )


def _remove_shards(folder: Path) -> None:
    for pattern in ("model-*-of-*.safetensors", ".model-*.safetensors.tmp", INDEX):
        for path in folder.glob(pattern):
            path.unlink()
