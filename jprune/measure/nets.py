"""Latency of functions, of a dense net against its slim one, and of .tflite files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Variables
from jprune.export.inputs import sample
from jprune.export.runtime import interpreter, quantized
from jprune.measure.clock import Latency, interleaved
from jprune.measure.provenance import usable_cores

Net = tuple[Callable[..., Any], Variables]
"""`(fn, variables)`."""


def latency(
    calls: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]],
    repeats: int = 20,
    warmup: int = 3,
    seconds: float = 0.0,
) -> dict[str, Latency]:
    """Times functions under XLA in turns, each compiled before and waited for.

    Args:
        calls: {name: (function, its arguments)}. Functions need not be jitted; arguments are moved
            to the device before they are timed.
        repeats: timed rounds, at least 10.
        warmup: rounds before these that are not timed.
        seconds: go on until this much time [s] has been spent on timed rounds.

    Returns:
        {name: {"median", "p10", "p90"}}, in ms.

    Raises:
        ArgumentError: there is nothing to time, or too few repeats for percentiles.

    Example:
        >>> import jax.numpy as jnp
        >>> sorted(latency({"tanh": (jnp.tanh, (jnp.ones(8),))})["tanh"])
        ['median', 'p10', 'p90']
    """
    ready = {name: xla_call(fn, *args)[0] for name, (fn, args) in calls.items()}
    return interleaved(ready, repeats, warmup, seconds)


def xla_call(fn: Callable[..., Any], *args: Any) -> tuple[Callable[[], Any], Any]:
    """A call without arguments that returns when the device is done, and JAX's executable.

    Args:
        fn: need not be jitted; it is compiled here.
        *args: moved to the device here.
    """
    # Compiled ahead of time; block_until_ready, as calls return before the device is done.
    args = jax.device_put(args)
    executable = jax.jit(fn).lower(*args).compile()
    return lambda: jax.block_until_ready(executable(*args)), executable


def xla_latency(
    dense: Net,
    slim: Net,
    example: jax.ShapeDtypeStruct,
    batches: Sequence[int] = (1, 128),
    repeats: int = 20,
    warmup: int = 3,
    seconds: float = 0.0,
) -> dict[str, dict[str, Latency]]:
    """Latency of a dense net and of its slim one under XLA, in turns, per batch size.

    The variables are compiled in as constants, as in an exported model: XLA then computes what
    depends on variables alone (the batch norm's `scale / sqrt(var + eps)`) at compile time, for
    both nets. With variables as arguments a ResNet-20 takes 1.0 to 1.4 times as long.

    Args:
        dense: `(fn, variables)` before.
        slim: `(fn, variables)` after.
        example: shape and type of the input, the batch axis first; its size is replaced.
        batches: batch sizes.
        repeats: timed rounds per batch size, at least 10.
        warmup: rounds before these that are not timed.
        seconds: go on until this much time [s] has been spent, per batch size.

    Returns:
        {"dense": {"xla_b1": latency, "xla_b128": latency}, "slim": the same}: the `latency_ms`
        entries of `result.json`.

    Raises:
        ArgumentError: a batch size below 1, or too few repeats for percentiles.
    """
    if any(batch < 1 for batch in batches):
        raise errors.ArgumentError(
            f"xla_latency got batches={tuple(batches)}; a batch holds at least one example. "
            "Write batches=(1, 128)."
        )
    table: dict[str, dict[str, Latency]] = {"dense": {}, "slim": {}}
    for batch in batches:
        x = sample(example, batch)
        calls = {"dense": (_closed(*dense), (x,)), "slim": (_closed(*slim), (x,))}
        for name, times in latency(calls, repeats, warmup, seconds).items():
            table[name][f"xla_b{batch}"] = times
    return table


def _closed(fn: Callable[..., Any], variables: Variables) -> Callable[[Any], Any]:
    return lambda x: fn(variables, x)


def tflite_latency(
    models: Mapping[str, bytes],
    threads: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
    seconds: float = 0.0,
) -> dict[str, Latency]:
    """Latency of .tflite models at batch 1, in turns.

    Args:
        models: {name: bytes of a .tflite file}.
        threads: threads of the interpreter; None takes all cores that this process may use, as XLA
            does.
        repeats: timed rounds, at least 10.
        warmup: rounds before these that are not timed.
        seconds: go on until this much time [s] has been spent on timed rounds.

    Returns:
        {name: {"median", "p10", "p90"}}, in ms.

    Raises:
        MissingExtraError: the extra `tflite` is not installed.
        ArgumentError: there is nothing to time, or too few repeats for percentiles.
    """
    threads = threads or usable_cores()
    ready = {name: tflite_call(model, threads) for name, model in models.items()}
    return interleaved(ready, repeats, warmup, seconds)


def tflite_call(model: bytes, threads: int = 1) -> Callable[[], None]:
    """A call that runs a .tflite model once, at batch 1.

    Args:
        model: bytes of a .tflite file.
        threads: threads of the interpreter.

    Raises:
        MissingExtraError: the extra `tflite` is not installed.
        CheckpointError: the bytes are no .tflite model.
    """
    try:
        runner = interpreter(model, threads)
    except (ValueError, RuntimeError) as error:  # what LiteRT says of foreign bytes
        raise errors.CheckpointError(
            f"{len(model)} bytes came that are no .tflite model ({error}). Write it again with "
            "`jprune export`."
        ) from error
    for details in runner.get_input_details():
        shape = jax.ShapeDtypeStruct(tuple(details["shape"]), np.float32)
        batch = shape.shape[0] if shape.shape else 1
        runner.set_tensor(details["index"], quantized(sample(shape, batch), details))
    return runner.invoke
