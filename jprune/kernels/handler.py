"""What XLA calls: compiled code that reads XLA's call frame and runs the kernel on its buffers.

The frame is described by `xla/ffi/api/c_api.h`, which jaxlib brings. Its head has not changed since
the interface was published (major version 0), and the handler answers with the version of the XLA
that asks. No copy is made, and neither Python nor its lock has a part in a call. Needs numba.
"""

import functools
import importlib
import threading
from typing import Any

import jax
import llvmlite.ir as ir
import numba
from numba import types
from numba.extending import intrinsic

from jprune.kernels import micro

TARGETS = {"float32": "jprune_sparse_lines_4", "float64": "jprune_sparse_lines_8"}
"""Names of the custom call by the type of its numbers."""

# Bytes at which the frame has: its extension, the interface, the stage, arguments and results.
EXTENSION, INTERFACE, STAGE, ARGUMENTS, RESULTS = 8, 16, 32, 72, 112
# In an extension its type, and what it points to; 1 is a question for the version.
TYPE, INNER, METADATA = 8, 24, 1
# Of the version in the interface, and where the answer goes.
MAJOR_ASKED, MAJOR_TOLD, TRAITS = 32, 24, 32
# The stage in which a call is run, and the address within a buffer.
EXECUTE, DATA = 3, 24


def _memory(bits: int) -> tuple[Any, Any]:
    """(read(address), write(address, value)) of integers, for compiled code."""
    pointer = ir.IntType(bits).as_pointer()

    def load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(builder.inttoptr(arguments[0], pointer))
        return value if bits == 64 else builder.sext(value, micro.WORD)

    def save(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[1] if bits == 64 else builder.trunc(arguments[1], ir.IntType(bits))
        builder.store(value, builder.inttoptr(arguments[0], pointer))
        return context.get_dummy_value()

    one, two = types.int64(types.int64), types.void(types.int64, types.int64)
    read = intrinsic(lambda typing, address: (one, load))
    return read, intrinsic(lambda typing, address, value: (two, save))


def several_threads() -> bool:
    """Whether several calls at once may each use several threads.

    numba's own layer (`workqueue`) aborts the process there, OpenMP and TBB do not. Chooses one of
    them if numba has not started its threads yet and the user has not chosen.
    """
    try:
        return numba.threading_layer() != "workqueue"
    except ValueError:  # no threads have been started
        pass
    if numba.config.THREADING_LAYER != "default":  # pyright: ignore[reportAttributeAccessIssue]
        return numba.config.THREADING_LAYER in ("omp", "tbb", "threadsafe", "safe")  # pyright: ignore[reportAttributeAccessIssue]
    for layer in ("omp", "tbb"):
        try:
            importlib.import_module(f"numba.np.ufunc.{layer}pool")
        except ImportError:
            continue
        numba.config.THREADING_LAYER = layer  # pyright: ignore[reportAttributeAccessIssue]
        return True
    return False


def register() -> None:
    """Compiles the kernels and tells XLA their names, once in a process."""
    with _LOCK:
        _register()


_LOCK = threading.Lock()


@functools.cache
def _register() -> tuple[Any, ...]:
    """The handlers, which live as long as the process."""
    micro.symbols()
    # It asks the linker for these symbols.
    from jprune.kernels.sparse_lines import convolution

    word, _ = _memory(64)
    half, put = _memory(32)
    parallel = several_threads()

    def handler_of(size: int) -> Any:
        def handler(frame: int) -> int:
            extension = word(frame + EXTENSION)
            if extension != 0 and half(extension + TYPE) == METADATA:
                interface, told = word(frame + INTERFACE), word(extension + INNER)
                put(told + MAJOR_TOLD, half(interface + MAJOR_ASKED))
                put(told + MAJOR_TOLD + 4, half(interface + MAJOR_ASKED + 4))
                put(told + TRAITS, 0)
                return 0
            if half(frame + STAGE) != EXECUTE:
                return 0
            args, results = word(frame + ARGUMENTS), word(frame + RESULTS)
            threads = numba.get_num_threads() if parallel else 1
            convolution(
                size, threads, word(word(args) + DATA), word(word(args + 8) + DATA),
                word(word(args + 16) + DATA), word(word(args + 24) + DATA),
                word(word(args + 32) + DATA), word(word(args + 40) + DATA),
                word(word(results) + DATA), word(word(results + 8) + DATA),
            )  # fmt: skip
            return 0

        return numba.cfunc(types.int64(types.int64), nogil=True)(handler)

    handlers = tuple(handler_of(size) for size in (4, 8))
    for name, handler in zip(TARGETS.values(), handlers):
        capsule = jax.ffi.pycapsule(handler.ctypes)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return handlers
