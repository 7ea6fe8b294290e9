"""What a net takes on this machine: time, images a second, memory, and XLA's counts beside ours."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jprune.base import Variables
from jprune.cost import cost
from jprune.graph.layers import examples_in
from jprune.measure.clock import Latency, interleaved
from jprune.measure.nets import tflite_call, xla_call
from jprune.measure.provenance import Device, device


class Profile(NamedTuple):
    """What one call of a net takes; None where the runtime does not say.

    Attributes:
        latency: median, 10th and 90th percentile of its time, in ms.
        images_per_second: examples in the batch over the median.
        device: that ran it; of a .tflite model with the interpreter's threads.
        peak_bytes: of the program's arguments, results and temporaries, by XLA's plan.
        flops: two for every multiply-accumulate that `jprune.cost` counts.
        xla_flops: what XLA counts, elementwise work included.
        bytes: that contractions read and write, as `jprune.cost` counts.
        xla_bytes: that XLA's fused operations read and write.
    """

    latency: Latency
    images_per_second: float
    device: Device
    peak_bytes: int | None = None
    flops: float | None = None
    xla_flops: float | None = None
    bytes: float | None = None
    xla_bytes: float | None = None


def profile(
    fn: Callable[..., Any],
    variables: Variables,
    *args: Any,
    repeats: int = 20,
    warmup: int = 3,
    seconds: float = 0.0,
) -> Profile:
    """Runs and counts a net under XLA; the variables are arguments of the program.

    Args:
        fn: `fn(variables, *args)`, in inference mode; need not be jitted.
        variables: of the net.
        *args: inputs; the first one's leading axis is the batch.
        repeats: timed calls, at least 10.
        warmup: calls before these that are not timed.
        seconds: go on until this much time [s] has been spent on timed calls.

    Raises:
        ArgumentError: too few repeats for percentiles.

    Example:
        >>> import jax.numpy as jnp
        >>> net = lambda v, x: x @ v["kernel"]
        >>> of = profile(net, {"kernel": jnp.ones((3, 2))}, jnp.ones((7, 3)))
        >>> of.flops, of.xla_flops, of.peak_bytes == 4 * (3 * 2 + 7 * 3 + 7 * 2)
        (84.0, 84.0, True)
    """
    call, executable = xla_call(fn, variables, *args)
    latency = interleaved({"net": call}, repeats, warmup, seconds)["net"]
    examples = examples_in(args)
    ours = cost(fn, variables, *args)
    counted = executable.cost_analysis() or {}
    return Profile(
        latency,
        _rate(examples, latency),
        device(),
        peak_bytes(executable),
        2.0 * float(ours.macs) * examples,
        counted.get("flops"),
        float(ours.bytes) * examples,
        counted.get("bytes accessed"),
    )


def tflite_profile(
    model: bytes, threads: int = 1, repeats: int = 50, warmup: int = 5, seconds: float = 0.0
) -> Profile:
    """Runs a .tflite model at batch 1.

    Args:
        model: bytes of a .tflite file.
        threads: threads of the interpreter.
        repeats: timed calls, at least 10.
        warmup: calls before these that are not timed.
        seconds: go on until this much time [s] has been spent on timed calls.

    Raises:
        MissingExtraError: the extra `tflite` is not installed.
        CheckpointError: the bytes are no .tflite model.
        ArgumentError: too few repeats for percentiles.
    """
    call = tflite_call(model, threads)
    latency = interleaved({"net": call}, repeats, warmup, seconds)["net"]
    return Profile(latency, _rate(1, latency), {**device(), "threads": threads})


def peak_bytes(executable: Any) -> int | None:
    """Bytes of the arguments, results and temporaries of JAX's executable; None where unknown."""
    plan = executable.memory_analysis()
    if plan is None:
        return None
    parts = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return int(parts - plan.alias_size_in_bytes)


def _rate(examples: int, latency: Latency) -> float:
    """Images a second."""
    return 1000 * examples / latency["median"]
