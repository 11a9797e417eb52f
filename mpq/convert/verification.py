"""An export compared with its source, tensor by tensor, before anyone is told that it is done."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mpq.errors import ExportError
from mpq.modeling.packed import PackedWeight, unpack_weight

Read = Callable[[str], Tensor]
"""The values of a weight by its site, or of another tensor by its name, read from the files."""


def verify(
    folder: Path,
    names: Iterable[str],
    read: Read,
    packed: Iterable[tuple[str, PackedWeight]],
    dense: Iterable[tuple[str, Tensor]],
    tables: Mapping[str, str],
) -> None:
    """Nothing, where everything that is read equals its source as numbers.

    Args:
        folder: Where the export lies, for the message.
        names: Every tensor's name in its files.
        read: Reads one of them.
        packed: The source's packed weights.
        dense: The source's other tensors.
        tables: Site of each lookup table -> that of the head tied to it.

    Raises:
        ExportError: Names every tensor that differs, is missing, or has no source.
    """
    faults: list[str] = []
    known: set[str] = set()
    for name, source in _pairs(packed, dense, tables):
        known.add(_module(name) if isinstance(source, PackedWeight) else name)
        try:
            found = read(name)
        except ExportError as error:
            faults.append(f"{name}: {error}")
            continue
        faults += _difference(name, found, source)
    strangers = sorted(name for name in names if not {name, _module(name)} & known)
    faults += [f"{name}: the source has no such tensor" for name in strangers]
    if faults:
        raise ExportError(
            f"{folder} does not read back as what it was made from; {len(faults)} tensors "
            "differ:\n" + "\n".join(f"  {fault}" for fault in faults) + "\nexport again"
        )


def _pairs(
    packed: Iterable[tuple[str, PackedWeight]],
    dense: Iterable[tuple[str, Tensor]],
    tables: Mapping[str, str],
) -> Iterator[tuple[str, PackedWeight | Tensor]]:
    for site, weight in packed:
        yield tables.get(site) or site, weight
        if site in tables:
            yield site, weight
    yield from dense


def _difference(name: str, found: Tensor, source: PackedWeight | Tensor) -> list[str]:
    if isinstance(source, PackedWeight):
        wanted = unpack_weight(source, found.dtype).cpu()
    else:
        wanted = source.detach().cpu()
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return [
            f"{name}: {found.dtype} of shape {tuple(found.shape)}, not {wanted.dtype} of shape "
            f"{tuple(wanted.shape)}"
        ]
    equal = (found == wanted) | (found.isnan() & wanted.isnan())
    count = int((~equal).sum())
    if not count:
        return []
    worst = float((found.double() - wanted.double()).abs().nan_to_num(torch.inf).max())
    return [f"{name}: {count} of {found.numel()} values differ, by up to {worst:.3g}"]


def _module(name: str) -> str:
    return name.rpartition(".")[0]
