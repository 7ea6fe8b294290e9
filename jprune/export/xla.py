"""StableHLO: one file with the net and its variables, for any batch size and backend."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import export

from jprune import errors, foreign
from jprune.base import Variables

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(
    fn: Callable[..., Any],
    variables: Variables,
    example: jax.ShapeDtypeStruct,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """A net as serialised StableHLO, with its variables compiled in and a symbolic batch size.

    The bytes depend on the net alone: they hold no source paths or line numbers.

    Args:
        fn: `fn(variables, x) -> out`.
        variables: the variables to compile in.
        example: shape and type of the input, the batch axis first; its size does not matter.
        platforms: what to lower for, of "cpu", "cuda", "rocm", "tpu"; this machine needs none of
            them.

    Returns:
        What `model.stablehlo` holds; `load_stablehlo` reads it back.

    Raises:
        ArgumentError: the example has no batch axis.

    References:
        StableHLO specification, https://openxla.org/stablehlo.

    Example:
        >>> import jax.numpy as jnp
        >>> example = jax.ShapeDtypeStruct((1, 3), jnp.float32)
        >>> model = stablehlo(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((3, 2))}, example)
        >>> "tensor<?x3xf32>, tensor<3x2xf32>" in stablehlo_text(model)
        True
    """
    if not example.shape:
        raise errors.ArgumentError(
            "stablehlo got a scalar example; its first axis is the batch. For images write "
            "jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)."
        )
    (batch,) = export.symbolic_shape("batch")
    any_batch = jax.ShapeDtypeStruct((batch, *example.shape[1:]), example.dtype)

    def model(x):
        return fn(variables, x)

    with source_locations_off():
        exported = export.export(jax.jit(model), platforms=tuple(platforms))(any_batch)
        return bytes(exported.serialize())


@contextlib.contextmanager
def source_locations_off() -> Iterator[None]:
    """Keeps paths of source files out of everything that is lowered inside the block."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def stablehlo_text(model: bytes) -> str:
    """The MLIR text of an exported net: `tensor<3x3x5x7xf32>` is a kernel of 5 to 7 channels.

    Args:
        model: what `stablehlo` returned.

    Raises:
        CheckpointError: the bytes are no exported net.
    """
    return _deserialize(model, "stablehlo_text").mlir_module()


def load_stablehlo(path: str | os.PathLike[str]) -> export.Exported:
    """Reads an exported net; `load_stablehlo(path).call(x)` runs it at any batch size.

    Args:
        path: a `model.stablehlo` file.

    Raises:
        CheckpointError: there is no such file, or it is no exported net.
    """
    try:
        model = foreign.content(path)
    except errors.CheckpointError as error:
        raise errors.CheckpointError(
            f"{error} `jprune export` writes a model.stablehlo into the run directory."
        ) from error
    return _deserialize(model, str(path))


def _deserialize(model: bytes, source: str) -> export.Exported:
    try:
        return export.deserialize(bytearray(model))
    except Exception as error:  # the reader of flatbuffers fails in many ways on foreign bytes
        raise errors.CheckpointError(
            f"{source} got {len(model)} bytes that are no exported net of this JAX "
            f"{jax.__version__} ({error}). Write them again with `jprune export`."
        ) from error
