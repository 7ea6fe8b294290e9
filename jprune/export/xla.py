"""StableHLO: one file with the net and its variables, for any batch size and backend."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import export

from jprune import errors, foreign
from jprune.base import Variables
from jprune.kernels import portable

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(
    fn: Callable[..., Any],
    variables: Variables,
    example: Any,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """A net as serialised StableHLO, with its variables compiled in and a symbolic batch size.

    The bytes depend on the net alone: they hold no source paths or line numbers. A net that asks
    for the batch's size as a number of Python (`len(x)`, `range(x.shape[0])`) is exported for the
    batch of the example alone, with a warning.

    Args:
        fn: `fn(variables, x) -> out`.
        variables: the variables to compile in.
        example: shape and type of the input, the batch axis first; its size does not matter. A
            tuple or dictionary of these for a net of several inputs.
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
    exported = _of_any_batch(lambda x: fn(variables, x), (), example, platforms)
    return bytes(exported.serialize())


def stablehlo_of_net(
    fn: Callable[..., Any], variables: Variables, example: Any, platforms: Sequence[str] = PLATFORMS
) -> bytes:
    """A net as serialised StableHLO that takes its variables, with its gradient.

    Args:
        fn: `fn(variables, x) -> out`.
        variables: of the net, for their shapes and types.
        example: as for `stablehlo`.
        platforms: as for `stablehlo`.

    Returns:
        What `net.stablehlo` holds; `load_net` reads it back.

    Raises:
        ArgumentError: the example has no batch axis.
    """
    leaves, structure = jax.tree.flatten(variables)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]

    # A list: what the variables are held in (leaf types) need not be known to the file.
    def net(leaves, x):
        return fn(structure.unflatten(leaves), x)

    exported = _of_any_batch(net, (shapes,), example, platforms)
    with source_locations_off():  # the gradient is lowered here
        try:
            return bytes(exported.serialize(vjp_order=1))
        except Exception:  # a loop without a gradient, of many types: it is run, not trained
            return bytes(exported.serialize())


def _of_any_batch(
    run: Callable[..., Any], before: tuple[Any, ...], example: Any, platforms: Sequence[str]
) -> export.Exported:
    """Exports `run(*before, x)` for batches of any size, or for that of the example."""
    leaves = jax.tree.leaves(example)
    if not leaves or not all(leaf.shape for leaf in leaves):
        raise errors.ArgumentError(
            "stablehlo got a scalar example; its first axis is the batch. For images write "
            "jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)."
        )

    def exported(batch: Any) -> export.Exported:
        # In a function of its own: `jax.jit` would remember what it has traced before.
        def model(*args):
            return run(*args)

        with_batch = lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)
        arguments = (*before, jax.tree.map(with_batch, example))
        with portable():
            return export.export(jax.jit(model), platforms=tuple(platforms))(*arguments)

    (any_size,) = export.symbolic_shape("batch")
    with source_locations_off():
        try:
            return exported(any_size)
        except Exception as error:  # of the net's own code, which has met a size that is no number
            size = leaves[0].shape[0]
            fixed = exported(size)  # fails again if the size is not what was wrong
            warnings.warn(
                f"the exported net takes batches of {size} only: it asks for the batch's size as a "
                f"number ({_short(error)}). Write x.shape[0] for len(x), or -1 in a reshape.",
                stacklevel=3,
            )
            return fixed


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


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


def load_net(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """Reads a net that takes its variables: `fn(variables, x)`, which has a gradient.

    It can be jitted and differentiated, and runs on batches of any size; `jax.vmap` and
    `jprune.trace` do not look into it.

    Args:
        path: a `net.stablehlo` file.

    Raises:
        CheckpointError: there is no such file, or it is no exported net.
    """
    exported = load_stablehlo(path)
    return lambda variables, x: exported.call(jax.tree.leaves(variables), x)


def _deserialize(model: bytes, source: str) -> export.Exported:
    try:
        return export.deserialize(bytearray(model))
    except Exception as error:  # the reader of flatbuffers fails in many ways on foreign bytes
        raise errors.CheckpointError(
            f"{source} got {len(model)} bytes that are no exported net of this JAX "
            f"{jax.__version__} ({error}). Write them again with `jprune export`."
        ) from error
