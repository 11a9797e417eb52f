"""Words, where they come from: the shipped prose, files, chats, and data sets of the hub.

The only door to `datasets`. Everything here yields text or labelled sentences; tokens are made
in `data`.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.assets import prose
from mpq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = tuple[int, str]
"""A label and its sentence."""

_SETTINGS: dict[str, frozenset[str]] = {
    "builtin": frozenset(),
    "wikitext2": frozenset(),
    "file": frozenset({"path", "heldout_path"}),
    "messages": frozenset({"path"}),
    "dataset": frozenset({"dataset", "subset", "split", "column"}),
}
SOURCES = tuple(_SETTINGS)
"""Where running text comes from."""

PARTED_SOURCES = frozenset({"builtin", "wikitext2"})
"""Sources with a part of their own for held-out text; the others are one stream."""

_NEEDED = {"file": "path", "messages": "path", "dataset": "dataset"}
_UNSET: dict[str, str | None] = {"split": "train", "column": "text"}


def refuse_settings(source: str, settings: Mapping[str, str | Path | None]) -> None:
    """Passes where `source` exists, has all settings that it needs, and no other.

    Raises:
        DataError: Lists what is missing and what has no meaning for the source.
    """
    if source not in SOURCES:
        near = difflib.get_close_matches(source, SOURCES, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise DataError(f"text comes from {', '.join(SOURCES)}, not from {source!r}{hint}")
    needed = _NEEDED.get(source)
    if needed and settings[needed] is None:
        raise DataError(
            f"source {source!r} needs {needed!r}, which is not given; set data.{needed}"
        )
    set_ones = {name for name, value in settings.items() if value not in (None, _UNSET.get(name))}
    unused = sorted(set_ones - _SETTINGS[source])
    if unused:
        takes = ", ".join(sorted(_SETTINGS[source])) or "none of them"
        raise DataError(f"source {source!r} has no use for {', '.join(unused)}; it takes {takes}")


def is_parted(source: str, settings: Mapping[str, Any]) -> bool:
    """True where held-out text has a part of its own."""
    return source in PARTED_SOURCES or settings["heldout_path"] is not None


def parted_texts(source: str, settings: Mapping[str, Any]) -> tuple[Iterator[str], Iterator[str]]:
    """The documents of a source that `is_parted`: those to look at, and those held out.

    Args:
        source: One of `PARTED_SOURCES`, or "file".
        settings: path and heldout_path of "file".

    Raises:
        DataError: The text cannot be had, or both parts are one file.
    """
    if source == "file":
        seen_at, unseen_at = (_existing(settings[key]) for key in ("path", "heldout_path"))
        if seen_at.samefile(unseen_at):
            raise DataError(
                f"held-out text is text that the search never sees, and path and heldout_path are "
                f"both {seen_at}; name another file, or leave heldout_path out"
            )
        return _file(seen_at), _file(unseen_at)
    if source == "builtin":
        seen, unseen = prose.documents("calibration"), prose.documents("validation")
        return (document.text for document in seen), (document.text for document in unseen)
    return _wikitext("validation"), _wikitext("test")


def stream_texts(
    source: str, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """The documents of a source that is one stream, in their order.

    Args:
        source: "file", "messages" or "dataset".
        settings: path; or dataset, subset, split and column.
        tokenizer: Its chat template writes messages as text.

    Raises:
        DataError: The text cannot be had, or is not what the source holds.
    """
    if source == "file":
        return _file(_existing(settings["path"]))
    if source == "messages":
        return _chats(_existing(settings["path"]), tokenizer)
    return _column(settings["dataset"], settings["subset"], settings["split"], settings["column"])


def labelled_rows(path: str | Path | None) -> tuple[list[Row], ...]:
    """Labelled sentences of SST-2: one list, or two where a list of its own is held out.

    Args:
        path: A .tsv with the columns `label` and `sentence`; a directory with `train.tsv` and
            `dev.tsv`; None for the hub's train and validation splits.

    Raises:
        DataError: The sentences cannot be had, or the columns are others.
    """
    if path is None:
        return _hub_rows("train"), _hub_rows("validation")
    place = _existing(path)
    if place.is_dir():
        return tuple(_tsv_rows(_existing(place / name)) for name in ("train.tsv", "dev.tsv"))
    return (_tsv_rows(place),)


def _existing(path: str | Path) -> Path:
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"the data is read from {place}, which does not exist; correct data.path")
    return place


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, parsed value) of every line of a .jsonl that is not empty."""
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}:{number}: every line of a .jsonl is one JSON value: {error}"
                ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the data is a readable file in UTF-8: {error}") from error


def _file(path: Path) -> Iterator[str]:
    if path.suffix == ".txt":
        yield _read(path)
    elif path.suffix == ".jsonl":
        for where, row in _lines(path):
            text = row.get("text") if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise DataError(f'{where}: expected {{"text": "…"}}, given {str(row)[:80]}')
            yield text
    else:
        raise DataError(
            f"{path}: source 'file' reads .txt and .jsonl, not {path.suffix!r}; rename"
        )


def _chats(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    if not tokenizer.chat_template:
        raise DataError(
            f"source 'messages' writes chats through the tokenizer's chat template, and that of "
            f"{tokenizer.name_or_path!r} has none; take an instruction-tuned model, or source "
            "'file'"
        )
    for where, row in _lines(path):
        messages: Any = row.get("messages") if isinstance(row, dict) else row
        if not _is_chat(messages):
            raise DataError(
                f'{where}: expected {{"messages": [{{"role": "…", "content": "…"}}, …]}}, given '
                f"{str(row)[:80]}"
            )
        try:
            yield str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # A template is a program, and raises what it likes.
            raise DataError(f"{where}: the chat template refuses this chat: {error}") from error


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict) and {"role", "content"} <= message.keys()
            for message in messages
        )
    )


def _hub(dataset: str, subset: str | None, split: str) -> Any:
    """A split of a Hugging Face data set."""
    from datasets.load import load_dataset

    try:
        return load_dataset(dataset, subset, split=split)
    except (OSError, ValueError) as error:
        name = " ".join([dataset, *([subset] if subset else [])])
        raise DataError(
            f"the split {split!r} of the data set {name!r} cannot be loaded: {error}\n"
            "correct the name, go online once, or read a local file (source 'file')"
        ) from error


def _wikitext(split: str) -> Iterator[str]:
    # One document: the protocol of GPTQ's tables strings the lines together before tokenising.
    yield "\n\n".join(_hub("Salesforce/wikitext", "wikitext-2-raw-v1", split)["text"])


def _column(dataset: str, subset: str | None, split: str, column: str) -> Iterator[str]:
    rows = _hub(dataset, subset, split)
    if column not in rows.column_names:
        raise DataError(
            f"the data set {dataset!r} has the columns {', '.join(rows.column_names)}, not "
            f"{column!r}; set data.column"
        )
    for number, row in enumerate(rows):
        if not isinstance(row[column], str):
            raise DataError(
                f"{dataset!r}, row {number}: column {column!r} holds text, given "
                f"{str(row[column])[:80]}; set data.column"
            )
        yield row[column]


def _hub_rows(split: str) -> list[Row]:
    return [(row["label"], row["sentence"]) for row in _hub("stanfordnlp/sst2", None, split)]


def _tsv_rows(path: Path) -> list[Row]:
    reader = csv.DictReader(
        _read(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True
    )
    columns = reader.fieldnames or []
    if not {"label", "sentence"} <= set(columns):
        raise DataError(
            f"{path}: expected the columns label and sentence, given {', '.join(columns)}"
        )
    return list(_checked(path, reader))


def _checked(path: Path, rows: Iterable[Mapping[str, str | None]]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=2):
        label, sentence = row["label"] or "", row["sentence"]
        if not label.isdecimal() or sentence is None:
            raise DataError(
                f"{path}:{number}: expected a label 0, 1, … and a sentence, given {label!r} and "
                f"{sentence!r}"
            )
        yield int(label), sentence
