"""Which path a tensor takes: eager torch, compiled loops on the CPU, or Triton on CUDA.

Every path gives the same bits, so the choice is one of speed. A path is a module of this room,
imported on first use, with two functions: `covers(format, x, axis)` and
`fake_quantize(x, format, axis)`.
"""

import importlib
import logging
import os
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mpq.errors import FormatError
from mpq.formats.format import Format

VARIABLE = "MPQ_KERNEL"
PATHS = ("eager", "cpu", "triton")
COMPILERS = {"cpu": "numba", "triton": "triton"}
"""The package without which a path cannot run."""

_log = logging.getLogger(__name__)


class Path(Protocol):
    """What a module that fake-quantises has."""

    def covers(self, format: Format, x: Tensor, axis: int) -> bool:
        """Whether it takes the tensor in the format."""

    def fake_quantize(self, x: Tensor, format: Format, axis: int) -> Tensor:
        """The values of the tensor in the format."""


def fake_quantize(x: Tensor, format: Format, axis: int) -> Tensor:
    """The values of `x` in the format by the path chosen for it. `x` is not empty.

    Raises:
        FormatError: MPQ_KERNEL names no path, or one that cannot take this tensor.
    """
    return _module(choose(x, format, axis)).fake_quantize(x, format, axis)


def choose(x: Tensor, format: Format, axis: int) -> str:
    """The name of the path: the one that MPQ_KERNEL asks for, or the fastest that covers `x`.

    Raises:
        FormatError: MPQ_KERNEL names no path, or one that cannot take this tensor.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked:
        _require_possible(asked, x, format, axis)
        return asked
    path = path_of_device(x.device.type)
    if path == "eager" or not is_plain(x) or not _module(path).covers(format, x, axis):
        return "eager"
    return path if has_compiler(path) else "eager"


def is_plain(x: Tensor) -> bool:
    """Whether a compiled path may take the tensor's memory for its values.

    Subclasses of Tensor (fake, distributed) bring their own meaning; what traces or transforms
    (torch.compile, make_fx, vmap) sees through torch alone. Eager respects them all.
    """
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def path_of_device(device: str) -> str:
    """The fast path of a kind of device; eager where there is none."""
    return {"cpu": "cpu", "cuda": "triton"}.get(device, "eager")


@lru_cache(maxsize=len(PATHS))
def compiler_fault(path: str) -> str:
    """What keeps a path's compiler from use; empty where nothing does. Imports it."""
    package = COMPILERS[path]
    try:
        importlib.import_module(package)
    except (ImportError, OSError) as fault:  # OSError: a shared library of it does not load
        is_absent = isinstance(fault, ModuleNotFoundError) and fault.name == package
        return "is not installed" if is_absent else f"does not import ({fault})"
    return ""


@lru_cache(maxsize=len(PATHS))
def has_compiler(path: str) -> bool:
    """Whether a path's compiler is there to use; says so once where it is not."""
    fault = compiler_fault(path)
    if fault:
        _log.warning(
            "fake quantisation runs in eager torch, several times slower: %s %s",
            COMPILERS[path],
            fault,
        )
    return not fault


def _require_possible(asked: str, x: Tensor, format: Format, axis: int) -> None:
    if asked not in PATHS:
        raise FormatError(f"{VARIABLE} must be one of {', '.join(PATHS)}, not {asked!r}")
    if asked == "eager":
        return
    device = x.device.type
    is_interpreted = asked == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if path_of_device(device) != asked and not (is_interpreted and device == "cpu"):
        wanted = "a CUDA device (or TRITON_INTERPRET=1)" if asked == "triton" else "the CPU"
        raise FormatError(
            f"{VARIABLE}={asked} needs a tensor on {wanted}, not on {device}: move it there, or "
            f"unset {VARIABLE}"
        )
    if not is_plain(x):
        raise FormatError(
            f"{VARIABLE}={asked} needs a tensor whose memory holds its values, not a "
            f"{type(x).__name__} or one that is traced or transformed: unset {VARIABLE}, and "
            f"eager takes it"
        )
    if not has_compiler(asked):
        raise FormatError(
            f"{VARIABLE}={asked} needs the package {COMPILERS[asked]}, which "
            f"{compiler_fault(asked)}: install it, or unset {VARIABLE}"
        )
    if not _module(asked).covers(format, x, axis):
        raise FormatError(
            f"{VARIABLE}={asked} does not cover {format} for a {x.dtype} tensor of shape "
            f"{tuple(x.shape)} along axis {axis}: unset {VARIABLE}, and eager takes it"
        )


@lru_cache(maxsize=len(PATHS))
def _module(path: str) -> Path:
    return cast(Path, importlib.import_module(f"mpq.kernels.{path}"))
