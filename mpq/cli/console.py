"""What every program shares: exit codes, logging, progress bars and tables.

Exit codes: 0 done, 1 a deliberate error of mpq (message on stderr, no traceback), 2 wrong usage
(argparse), 130 interrupted (Ctrl-C). Results go to stdout, all else to stderr.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mpq.errors import MpqError

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

LOG_LEVELS = ("debug", "info", "warning", "error")


def run_program(body: Callable[[], None]) -> int:
    """The exit code of `body`: 0, 1 for an MpqError, 130 for Ctrl-C.

    Args:
        body: The program after parsing: no arguments, no result. What it found until an
            interruption must already be on disk or kept by `body` itself.
    """
    try:
        body()
    except MpqError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted: what was found is kept; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--log-level` and its short form `-v` (info) to `parser`."""
    flags = parser.add_mutually_exclusive_group()
    flags.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="warning",
        help="how much is told on stderr (default: warning)",
    )
    flags.add_argument(
        "-v",
        "--verbose",
        dest="log_level",
        action="store_const",
        const="info",
        help="the same as --log-level info",
    )


def set_up_logging(level: str) -> None:
    """Sends mpq's log records of `level` (a name of `LOG_LEVELS`) and above to stderr.

    Other libraries are heard from `warning` on, whatever the level, except at `debug`.
    """
    logging.basicConfig(
        level=logging.DEBUG if level == "debug" else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("mpq").setLevel(level.upper())


def progress_bar() -> Progress:
    """A progress bar on stderr with a count, the time spent and the time left.

    Use it as a context: `with progress_bar() as bar: task = bar.add_task("…", total=n)`.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int = 1
) -> None:
    """Prints `rows` under `columns` on stdout.

    Args:
        title: Stands above the table.
        columns: Headings.
        rows: Cells as text, one sequence a row.
        num_text_columns: So many first columns are set flush left, the others flush right.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        is_text = index < num_text_columns
        table.add_column(
            column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for row in rows:
        table.add_row(*row)
    print(title)
    # A pipe has no width: long names would be cut at 80 columns there.
    width = None if sys.stdout.isatty() else 160
    Console(width=width, markup=False, highlight=False).print(table)
