"""The English prose that every CPython carries, split by topic; read, never copied.

The text is the language reference (`pydoc_data.topics`) and the docstrings of the standard
library. It differs a little between Python versions, so whoever uses it notes its digest and
the version. Which part a document belongs to hangs on its name alone, so a document stays in
its part from one version to the next.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mpq.errors import DataError

Part = Literal["validation", "calibration", "train"]
PARTS: tuple[Part, ...] = get_args(Part)
"""In order of precedence: a paragraph that two parts share stays in the earlier one only."""

_PERCENT: dict[Part, int] = {"validation": 10, "calibration": 10, "train": 80}
# Chosen once, by size alone, so that both small parts get topics and modules in fair shares.
_SALT = "439:"

# Not in every installation (distributions split them off, later versions dropped them), so they
# are read for training only: calibration and validation then need no more than a plain CPython.
# fmt: off
_OPTIONAL = frozenset({
    "aifc", "asynchat", "asyncore", "cgi", "cgitb", "chunk", "crypt", "curses", "dbm",
    "distutils", "ensurepip", "idlelib", "imghdr", "imp", "lib2to3", "mailcap", "msilib",
    "nntplib", "ossaudiodev", "pipes", "smtpd", "sndhdr", "sqlite3", "sunau", "telnetlib",
    "tkinter", "turtle", "turtledemo", "uu", "venv", "xdrlib",
})
# fmt: on
_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One topic of the language reference, or all docstrings of one top-level module.

    Attributes:
        name: `topic:lambda` or `module:json`.
        text: The paragraphs, with one empty line between two of them.
    """

    name: str
    text: str


def documents(part: Part) -> tuple[Document, ...]:
    """The documents of a part of the running interpreter's prose, in an order without meaning.

    The order is that of a hash of the names, so that neighbours have nothing to do with each
    other. No paragraph occurs twice, neither in a part nor in two of them.

    Raises:
        DataError: This interpreter was installed without the sources or the language reference.
    """
    seen = frozenset[str]().union(
        *(
            paragraph
            for earlier in PARTS[: PARTS.index(part)]
            for paragraph in map(_paragraphs, _read(earlier))
        )
    )
    return tuple(_without_repeats(_read(part), seen))


def digest(texts: Iterable[Document]) -> str:
    """The hex sha256 of documents, names included: provenance of whatever was made from them."""
    state = hashlib.sha256()
    for document in texts:
        state.update(f"{document.name}\0{document.text}\0".encode())
    return state.hexdigest()


def part_of(name: str) -> Part:
    """The part that the document `name` belongs to, whatever the Python version."""
    if name.removeprefix("module:") in _OPTIONAL:
        return "train"
    draw = _hash(name) % 100
    for part in PARTS:
        if draw < _PERCENT[part]:
            return part
        draw -= _PERCENT[part]
    raise AssertionError("the percentages of the parts sum to 100")


def _hash(name: str) -> int:
    # `_pydecimal` and `decimal`, `_pyio` and `io` document the same things: one draw for both.
    plain = re.sub(r"(?<=^module:)_(py)?", "", name)
    return int.from_bytes(hashlib.sha256(f"{_SALT}{plain}".encode()).digest()[:8], "big")


@functools.cache
def _read(part: Part) -> tuple[Document, ...]:
    found = [*_topics(part), *_modules(part)]
    return tuple(sorted(found, key=lambda document: (_hash(document.name), document.name)))


def _topics(part: Part) -> Iterator[Document]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(
            "the builtin text is the language reference in pydoc_data.topics, which this Python "
            "was installed without; use a full CPython, or data.source = 'file'"
        ) from error
    for topic, text in topics.items():
        if part_of(f"topic:{topic}") == part:
            yield Document(name=f"topic:{topic}", text=inspect.cleandoc(text))


def _modules(part: Part) -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "json" / "__init__.py").exists():
        raise DataError(
            f"the builtin text is the standard library's docstrings, and {root} holds no sources "
            "(a zipped or stripped Python); use a full CPython, or data.source = 'file'"
        )
    for entry in sorted(root.iterdir()):
        name = f"module:{entry.stem}"
        if entry.name in _SKIPPED or part_of(name) != part:
            continue
        paths = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]
        sources = [path for path in paths if path.suffix == ".py" and not _is_skipped(path, root)]
        if sources:
            yield Document(name=name, text="\n\n".join(_docstrings(sources)))


def _is_skipped(path: Path, root: Path) -> bool:
    return not _SKIPPED.isdisjoint(path.relative_to(root).parts)


def _docstrings(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                yield ast.get_docstring(node) or ""


def _paragraphs(document: Document) -> list[str]:
    return [text.rstrip() for text in re.split(r"\n\s*?\n", document.text) if text.strip()]


def _without_repeats(texts: Iterable[Document], seen: frozenset[str]) -> Iterator[Document]:
    known = set(seen)
    for document in texts:
        fresh = []
        for paragraph in _paragraphs(document):
            if paragraph not in known:
                known.add(paragraph)
                fresh.append(paragraph)
        if fresh:
            yield Document(name=document.name, text="\n\n".join(fresh))
