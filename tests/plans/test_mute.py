"""Silence for solvers: what C and Python print inside does not come out, what is outside does."""

import subprocess
import sys

PROGRAM = """
import ctypes, os, sys
from mpq.plans.mute import muted_stdout
say = ctypes.CDLL(None).puts
print("python before")
say(b"C before")
with muted_stdout():
    say(b"C inside")
    os.write(1, b"bare inside\\n")
try:
    with muted_stdout():
        raise ValueError
except ValueError:
    say(b"C after")
print("python after", flush=True)
"""


def test_only_what_is_printed_outside_comes_out():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.splitlines()) == [
        "C after",
        "C before",
        "python after",
        "python before",
    ]


def test_a_closed_standard_output_stays_closed():
    program = "import os; os.close(1)\nfrom mpq.plans.mute import muted_stdout\n"
    program += "with muted_stdout():\n    pass\n"
    program += "try:\n    os.dup(1)\nexcept OSError:\n    os.write(2, b'closed')\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.stderr == b"closed"
