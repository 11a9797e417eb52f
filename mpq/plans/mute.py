"""Silence for solvers that write to the standard output on their own."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDOUT = 1


@contextmanager
def muted_stdout() -> Iterator[None]:
    """A context in which nothing that this process writes to file descriptor 1 comes out.

    HiGHS prints a line for developers now and then, with C's `printf`, whatever its options say;
    in the output of a program it would stand among results. Python's own `sys.stdout` is muted
    too, so nothing but the solver's call belongs inside. Where there is no standard output,
    nothing is changed.
    """
    _flush()
    try:
        kept = os.dup(STDOUT)
    except OSError:
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a device, not a path)
            os.dup2(nowhere.fileno(), STDOUT)
        yield
    finally:
        # C keeps what is printed in a buffer of its own; it must leave before the way back opens.
        _flush()
        os.dup2(kept, STDOUT)
        os.close(kept)


def _flush() -> None:
    with suppress(AttributeError, OSError, ValueError):
        sys.stdout.flush()
    # Elsewhere than on POSIX systems the C library is not found like this, and is not muted.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).fflush(None)
