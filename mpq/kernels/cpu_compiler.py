"""How loops of the CPU path are compiled, and the bits of floats in them.

Importing this module imports numba: `mpq.kernels.cpu` and `mpq.kernels.cpu_encoded` do so, through
their loops, when they are first used and not before. Nothing is
reassociated or contracted (`fastmath` stays off), so the arithmetic is IEEE 754's, as eager
torch's is.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import numba
import numpy as np
from numba import types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, overload

_log = logging.getLogger(__name__)

Loop = TypeVar("Loop", bound=Callable[..., Any])

OPTIONS = {"nogil": True, "error_model": "numpy"}
"""Without the interpreter's lock; a division by zero is IEEE 754's."""

INNER_OPTIONS = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def compiled(loop: Loop) -> Loop:
    """The function for other compiled ones, compiled with the first of them that calls it."""
    return numba.njit(loop, **INNER_OPTIONS)  # type: ignore[no-any-return]


def entered(loop: Loop) -> Loop:
    """The function for Python, compiled for each kind of arguments, once and kept on disk.

    Where numba finds no folder to write to, each process compiles anew, and says so.
    """
    function = numba.njit(loop, **OPTIONS)
    try:
        function._cache = KindsOnDisk(loop)
    except RuntimeError as fault:
        _log.warning(
            "the loops of fake quantisation are compiled anew in every process: %s. Set "
            "NUMBA_CACHE_DIR to a folder that can be written to",
            fault,
        )
    return function  # type: ignore[no-any-return]


class KindsOnDisk:
    """What numba keeps of a loop on disk, each kind of arguments in files of its own.

    numba numbers the kinds of a function in one index, which it reads and writes without a lock:
    of two processes that compile different kinds at once, one would read the other's code. So the
    name, by which numba finds its files, is made of all that tells kinds apart. It also holds a
    digest of every file that has a part in the loop, for numba looks at the loop's own alone.

    Attributes:
        cache_path: The folder.

    Raises:
        RuntimeError: numba finds no folder to write to.
    """

    def __init__(self, loop: Callable[..., Any]) -> None:
        self._loop = loop
        self._sources = sources_digest()
        self.cache_path: str = FunctionCache(loop).cache_path

    def load_overload(self, kind: tuple[Any, ...], context: Any) -> Any:
        """What was compiled for a kind of arguments; None where nothing was."""
        return self._of(kind, context.codegen()).load_overload(kind, context)

    def save_overload(self, kind: tuple[Any, ...], result: Any) -> None:
        """Keeps what was compiled for a kind of arguments."""
        self._of(kind, result.codegen).save_overload(kind, result)

    def _of(self, kind: tuple[Any, ...], codegen: Any) -> Any:
        told = f"{self._sources} {kind} {codegen.magic_tuple()} {numba.__version__}"
        named = FunctionType(self._loop.__code__, self._loop.__globals__)
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        named.__qualname__ = f"{self._loop.__name__}_{digest}"
        return FunctionCache(named)


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


def _word_at(context: Any, packed: Any, at: Any) -> tuple[Any, Callable[..., Any]]:  # noqa: ARG001
    """The 8 bytes from a place of an array of bytes on, little-endian, wherever it begins."""

    def generate(context: Any, builder: Any, called: Any, arguments: Any) -> Any:
        array = context.make_array(called.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        word = builder.load(
            builder.bitcast(place, context.get_value_type(types.uint64).as_pointer())
        )
        word.align = 1
        return word

    return types.uint64(packed, at), generate


bits_of: Callable[[Any], np.int32] = intrinsic(_bits_of)
float_of: Callable[[Any], np.float32] = intrinsic(_float_of)
word_at: Callable[[Any, Any], np.uint64] = intrinsic(_word_at)
