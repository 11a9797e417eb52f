"""Files of artefacts: written whole or not at all, and read with an error that names them.

Content goes into a temporary file beside its place, is flushed to the disk, and moved there in
one step (`os.replace`). Whoever is killed on the way leaves the old file or the new one, never a
part; the temporary file it may leave starts with a dot and ends in `.tmp`.
"""

import csv
import io
import json
import os
import secrets
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import toml

from mpq.errors import RunError


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """The file at `path`, replaced as a whole; missing folders are made.

    A reader, and whoever comes after a kill, sees the old content or the new one.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    # Named after its writer, so that two workers never share a temporary file.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    # The move itself reaches the disk with its folder; not every system lets one open folders.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_toml(path: str | Path, table: Mapping[str, Any]) -> None:
    """A TOML file that reads back as `table`; tuples come back as lists.

    Raises:
        RunError: The table holds None (TOML has no such value), or `toml` writes it as something
            that `tomllib` rejects or reads as another table. Nothing is written then.
    """
    plain = _plain(table)
    empty = list(_keys_of_none(plain))
    if empty:
        raise RunError(
            f"{path}: TOML has no value for None, found at {', '.join(empty)}; leave the key out"
        )
    try:
        text = toml.dumps(plain)
        back = tomllib.loads(text)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise RunError(f"{path}: this table cannot be written as TOML: {error!r}") from error
    if not _same(back, plain):
        raise RunError(
            f"{path}: what is written must read back as it was; these keys do not: "
            f"{', '.join(_differing(back, plain))}"
        )
    write_atomic(path, text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _keys_of_none(value: Any, key: str = "") -> Iterator[str]:
    if value is None:
        yield key or "(top)"
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _keys_of_none(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _keys_of_none(item, f"{key}[{index}]")


def _same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from 1.0 and from True."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    return [
        str(key)
        for key in (right | left)  # type: ignore[operator]
        if key not in left or key not in right or not _same(left[key], right[key])
    ]


def write_json(path: str | Path, value: Any) -> None:
    """A JSON file of `value`, indented, keys in the order given.

    Raises:
        RunError: The value holds something that JSON has no form for (NaN and infinities too).
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunError(f"{path}: this value cannot be written as JSON: {error}") from error
    write_atomic(path, text + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with a column for every key of `rows`, in the order of first appearance.

    Floats keep every digit; None and missing keys are empty cells.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, buffer.getvalue())


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        RunError: The file is missing or is no TOML.
    """
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{path}: not a TOML file: {error}") from error


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        RunError: The file is missing or is no JSON.
    """
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: not a JSON file: {error}") from error


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file, every cell as text.

    Raises:
        RunError: The file is missing.
    """
    return list(csv.DictReader(io.StringIO(_text(path))))


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: this artefact cannot be read: {error}") from error
