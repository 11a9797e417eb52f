"""What every program shares: exit codes, logging, progress bars and tables.

Exit codes: 0 done, 1 a deliberate error of mpq (message on stderr, no traceback), 2 wrong usage
(argparse), 130 interrupted (Ctrl-C). Results go to stdout, all else to stderr.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from mpq.errors import MpqError

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

INTERRUPTED = "interrupted: what was found is kept; the same command goes on"

LOG_LEVELS = ("debug", "info", "warning", "error")


def run_program(body: Callable[[], None]) -> int:
    """The exit code of `body`: 0, 1 for an MpqError, 130 for Ctrl-C or SIGTERM.

    An interruption may come out of a library as another exception (a half-done import, a
    transaction that cannot be closed); whatever comes out after the signal ends with 130.

    Args:
        body: The program after parsing: no arguments, no result. What it found until an
            interruption must already be on disk or kept by `body` itself.
    """
    with interruptions() as seen:
        try:
            body()
        except BaseException as error:
            if seen or isinstance(error, KeyboardInterrupt):
                print(INTERRUPTED, file=sys.stderr)
                return EXIT_INTERRUPTED
            if not isinstance(error, MpqError):
                raise
            print(f"error: {error}", file=sys.stderr)
            return EXIT_ERROR
    return EXIT_OK


@contextmanager
def interruptions() -> Iterator[Sequence[int]]:
    """A context that raises `KeyboardInterrupt` for SIGTERM too, and the signals seen so far.

    A SIGINT that the caller's shell told this process to ignore stays ignored; outside of the
    main thread nothing can be handled, and nothing is.
    """
    seen: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
