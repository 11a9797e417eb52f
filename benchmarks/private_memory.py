"""What a process holds for itself, now and at most. Linux only: it reads /proc/self/status.

Pages of mapped files, which the system takes back when it needs them, are told apart.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def memory() -> dict[str, int]:
    """Private and mapped bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """A context that gives the largest of both, looked at every few milliseconds."""
    peak, is_done = memory(), threading.Event()

    def look() -> None:
        while not is_done.is_set():
            for name, value in memory().items():
                peak[name] = max(peak[name], value)
            time.sleep(0.005)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        is_done.set()
        watcher.join()
