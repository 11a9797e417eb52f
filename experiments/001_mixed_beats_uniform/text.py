"""WikiText-2's raw test file, split by article: the first articles are held out."""

import itertools
import re
from pathlib import Path

from mpq.errors import DataError
from mpq.run import write_atomic

TITLE = re.compile(r"(?m)^ = [^=\n](?:[^\n]*[^=\n])? = $")
"""A line ` = Title = `; headings inside of an article have more equals signs."""

HELDOUT_SHARE = 0.4
"""Of the characters, how many are held out at the least."""

HELDOUT, SEARCH = "heldout.txt", "search.txt"


def articles(text: str) -> list[str]:
    """The articles in their order; strung together they are the text.

    What stands before the first title belongs to the first article.

    Raises:
        DataError: The text has no line ` = Title = `.
    """
    starts = [found.start() for found in TITLE.finditer(text)]
    if not starts:
        raise DataError(
            "WikiText-2's raw files have lines ' = Title = ', and this text has none; take "
            "wiki.test.raw, not the tokenised wiki.test.tokens"
        )
    return [text[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)]


def split_articles(text: str, share: float = HELDOUT_SHARE) -> tuple[str, str]:
    """(held out, the rest): whole articles, the first ones until they have `share` of the text.

    Raises:
        DataError: Nothing is left for the rest.
    """
    ends = list(itertools.accumulate(map(len, articles(text))))
    cut = next(end for end in ends if end >= share * len(text))
    if cut == len(text):
        raise DataError(
            f"held-out text is the first {share:.0%}, in whole articles, and leaves some to "
            f"search on; this text has {len(ends)} articles, and all would be held out"
        )
    return text[:cut], text[cut:]


def write_split(raw: Path, folder: Path) -> None:
    """Writes held-out text and the rest of `raw` into `folder`."""
    heldout, rest = split_articles(raw.read_text(encoding="utf-8"))
    write_atomic(folder / HELDOUT, heldout)
    write_atomic(folder / SEARCH, rest)
