"""Which path a tensor takes: eager torch, compiled loops on the CPU, or Triton on CUDA.

Every path gives the same bits, so the choice is one of speed. A path is a module of this room,
imported on first use, for each of three tasks. Each has `covers(format, x, axis)`, and what does
the task: `fake_quantize(x, format, axis)`, `encode_blocks(x, format, axis)` or
`decode_blocks(encoded, dtype)`.
"""

import importlib
import logging
import os
from functools import lru_cache
from typing import Literal, Protocol, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mpq.errors import FormatError
from mpq.formats.format import Format
from mpq.kernels.encoded import Encoded

Task = Literal["quantize", "encode", "decode"]

VARIABLE = "MPQ_KERNEL"
PATHS = ("eager", "cpu", "triton")
COMPILERS = {"cpu": "numba", "triton": "triton"}
"""The package without which a path cannot run."""

MODULES: dict[Task, dict[str, str]] = {
    "quantize": {"eager": "eager", "cpu": "cpu", "triton": "triton"},
    "encode": {"eager": "encoded", "triton": "triton_encoded"},
    "decode": {"eager": "encoded", "cpu": "cpu_encoded", "triton": "triton_encoded"},
}
"""The module of each path. Codes are written once, and so on a CPU by eager; a model whose weights
stay packed reads them again and again."""

_log = logging.getLogger(__name__)


class Path(Protocol):
    """What the module of a path has."""

    def covers(self, format: Format, x: Tensor, axis: int) -> bool:
        """Whether it takes the tensor in the format. Eager takes all, and is not asked."""


class Quantizer(Path, Protocol):
    """What a module that fake-quantises has."""

    def fake_quantize(self, x: Tensor, format: Format, axis: int) -> Tensor:
        """The values of the tensor in the format."""


class Encoder(Path, Protocol):
    """What a module that encodes has."""

    def encode_blocks(self, x: Tensor, format: Format, axis: int) -> Encoded:
        """The packed codes and scales of the tensor."""


class Decoder(Path, Protocol):
    """What a module that decodes has."""

    def decode_blocks(
        self, encoded: Encoded, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """The values that were encoded, in the dtype; in `out`, where it is given."""


def fake_quantize(x: Tensor, format: Format, axis: int) -> Tensor:
    """The values of `x` in the format by the path chosen for it. `x` is not empty.

    Raises:
        FormatError: MPQ_KERNEL names no path, or one that cannot take this tensor.
    """
    path = cast(Quantizer, _module(choose(x, format, axis), "quantize"))
    return path.fake_quantize(x, format, axis)


def encode_blocks(x: Tensor, format: Format, axis: int) -> Encoded:
    """The packed codes and scales of `x`, finite and not empty, by the path chosen for it.

    Raises:
        FormatError: MPQ_KERNEL names no path, or one that cannot take this tensor.
    """
    path = cast(Encoder, _module(choose(x, format, axis, "encode"), "encode"))
    return path.encode_blocks(x, format, axis)


def decode_blocks(encoded: Encoded, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The values of a tensor that is not empty, in the dtype, by the path chosen for it.

    They go to `out`, where it is given, a contiguous tensor of the shape and the dtype.

    Raises:
        FormatError: MPQ_KERNEL names no path, or one that cannot take this tensor.
    """
    # What stands in for the values takes no memory, and is float64 where either dtype is.
    wider = torch.promote_types(encoded.dtype, dtype)
    values = encoded.codes.new_empty((), dtype=wider).expand(encoded.shape)
    chosen = choose(values, encoded.format, encoded.axis, "decode")
    path = cast(Decoder, _module(chosen, "decode"))
    return path.decode_blocks(encoded, dtype, out)


def choose(x: Tensor, format: Format, axis: int, task: Task = "quantize") -> str:
    """The name of the path: the one that MPQ_KERNEL asks for, or the fastest that covers `x`.

    Raises:
        FormatError: MPQ_KERNEL names no path, or one that cannot take this tensor.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked:
        _require_possible(asked, x, format, axis, task)
        return asked
    path = path_of_device(x.device.type)
    if path == "eager" or path not in MODULES[task] or not is_plain(x):
        return "eager"
    is_covered = _module(path, task).covers(format, x, axis)
    return path if is_covered and has_compiler(path) else "eager"


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
            "fake quantisation and decoding run in eager torch, many times slower: %s %s",
            COMPILERS[path],
            fault,
        )
    return not fault


def _require_possible(asked: str, x: Tensor, format: Format, axis: int, task: Task) -> None:
    if asked not in PATHS:
        raise FormatError(f"{VARIABLE} must be one of {', '.join(PATHS)}, not {asked!r}")
    if asked == "eager":
        return
    if asked not in MODULES[task]:
        raise FormatError(f"{VARIABLE}={asked} does not {task}: unset {VARIABLE}, and eager does")
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
    if not _module(asked, task).covers(format, x, axis):
        raise FormatError(
            f"{VARIABLE}={asked} does not cover {format} for a {x.dtype} tensor of shape "
            f"{tuple(x.shape)} along axis {axis}: unset {VARIABLE}, and eager takes it"
        )


@lru_cache(maxsize=3 * len(PATHS))
def _module(path: str, task: Task) -> Path:
    return cast(Path, importlib.import_module(f"mpq.kernels.{MODULES[task][path]}"))
