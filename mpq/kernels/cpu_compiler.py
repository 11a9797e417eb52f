"""How loops of the CPU path are compiled, and the bits of floats in them.

Importing this module imports numba: only `mpq.kernels.cpu` does, on first use. Nothing is
reassociated or contracted (`fastmath` stays off), so the arithmetic is IEEE 754's, as eager
torch's is.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

Loop = TypeVar("Loop", bound=Callable[..., Any])

OPTIONS = {"nogil": True, "error_model": "numpy"}
"""Without the interpreter's lock; a division by zero is IEEE 754's."""

INNER_OPTIONS = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def compiled(loop: Loop) -> Loop:
    """The function for other compiled ones, compiled with the first of them that calls it."""
    return numba.njit(loop, **INNER_OPTIONS)  # type: ignore[no-any-return]


def entered(loop: Loop) -> Loop:
    """The function for Python to call, compiled on first call for each kind of arguments, on disk.

    numba's cache looks at the file of a loop alone, and a change elsewhere would go unseen: so
    the name, by which the cache finds it, holds a digest of every file that has a part in it.
    """
    loop.__qualname__ = f"{loop.__name__}_{sources_digest()}"
    return numba.njit(loop, cache=True, **OPTIONS)  # type: ignore[no-any-return]


def sources_digest() -> str:
    """A digest of the files of the CPU path."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("cpu_*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def by_kind(stub: Callable[..., Any], at: int, loops: dict[Any, Callable[..., Any]]) -> None:
    """Makes a call of `stub` in compiled code one of the loops, by the type of an argument.

    Args:
        stub: What is called; it does nothing itself.
        at: Which argument decides.
        loops: A loop, not yet compiled, for each kind of tuple or numba's type of number.
    """

    def choose(*arguments: Any) -> Callable[..., Any]:
        kind = arguments[at]
        return loops[getattr(kind, "instance_class", kind)]

    overload(stub, strict=False, jit_options=dict(OPTIONS))(choose)


def _reinterpreted(signature: Any) -> tuple[Any, Callable[..., Any]]:
    def generate(context: Any, builder: Any, called: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(called.return_type))

    return signature, generate


def _bits_of(context: Any, value: Any) -> tuple[Any, Callable[..., Any]]:  # noqa: ARG001
    """The bits of a float32, int32."""
    return _reinterpreted(types.int32(types.float32))


def _float_of(context: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:  # noqa: ARG001
    """The float32 of these bits."""
    return _reinterpreted(types.float32(types.int32))


bits_of: Callable[[Any], np.int32] = intrinsic(_bits_of)
float_of: Callable[[Any], np.float32] = intrinsic(_float_of)
