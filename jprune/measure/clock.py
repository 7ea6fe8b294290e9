"""One timing loop for all measurements: calls in turns, with the garbage collector off."""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import numpy as np

from jprune import errors
from jprune.collector import uncollected

MINIMUM_REPEATS = 10
"""Fewer timings than these have no 10th and no 90th percentile."""


class Latency(TypedDict):
    """Percentiles of the time of one call, in milliseconds.

    Attributes:
        median: the 50th percentile.
        p10: the 10th percentile.
        p90: the 90th percentile.
    """

    median: float
    p10: float
    p90: float


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int = 20,
    warmup: int = 3,
    seconds: float = 0.0,
) -> dict[str, Latency]:
    """Times calls in turns, so that whatever slows the machine down slows all of them.

    Every round runs each call once and starts with the next one in turn, so that no call always
    finds the caches as the same other one left them. The garbage collector is off meanwhile.

    Args:
        calls: {name: call without arguments}; a call returns when its work is done.
        repeats: timed rounds, at least 10.
        warmup: rounds before these that are not timed.
        seconds: go on with further rounds until this much time [s] has been spent on timed ones.

    Returns:
        {name: median, 10th and 90th percentile of the times in ms}.

    Raises:
        ArgumentError: there is nothing to time, or too few repeats for percentiles.

    Example:
        >>> times = interleaved({"short": lambda: sum(range(10)), "long": lambda: sum(range(9999))})
        >>> times["short"]["median"] < times["long"]["median"]
        True
    """
    times = timings(calls, repeats, warmup, seconds)
    return {name: percentiles(of) for name, of in times.items()}


def timings(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int = 20,
    warmup: int = 3,
    seconds: float = 0.0,
    clock: Callable[[], int] | None = None,
) -> dict[str, np.ndarray]:
    """{name: [rounds] times in ms}; arguments and errors as of `interleaved`.

    Args:
        calls: {name: call without arguments}.
        repeats: timed rounds, at least 10.
        warmup: rounds before these that are not timed.
        seconds: go on until this much time [s] has been spent on timed rounds.
        clock: time in ns; None is the wall's. `time.process_time_ns` counts the work of this
            process alone, of all its threads, whoever else uses the machine.

    Raises:
        ArgumentError: there is nothing to time, or too few repeats for percentiles.
    """
    now = time.perf_counter_ns if clock is None else clock
    if not calls:
        raise errors.ArgumentError(
            "interleaved got no call to time. Pass {name: call}, for example "
            '{"dense": lambda: fn(x)}.'
        )
    if repeats < MINIMUM_REPEATS or warmup < 0:
        raise errors.ArgumentError(
            f"interleaved got repeats={repeats}, warmup={warmup}; p10 and p90 need at least "
            f"{MINIMUM_REPEATS} repeats, and warmup is at least 0. Write repeats={MINIMUM_REPEATS}."
        )
    names = list(calls)
    times: dict[str, list[int]] = {name: [] for name in names}
    # Collected once before, since no garbage is freed while the clock runs.
    gc.collect()
    with uncollected():
        for _ in range(warmup):
            for call in calls.values():
                call()
        start, rounds = time.perf_counter(), 0
        while rounds < repeats or time.perf_counter() - start < seconds:
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                before = now()
                calls[name]()
                times[name].append(now() - before)
            rounds += 1
    return {name: np.asarray(of) / 1e6 for name, of in times.items()}


def percentiles(numbers: Any) -> Latency:
    """Median, 10th and 90th percentile of numbers, such as the ratios of two calls' `timings`.

    Example:
        >>> percentiles(range(11))
        {'median': 5.0, 'p10': 1.0, 'p90': 9.0}
    """
    p10, median, p90 = np.percentile(numbers, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}
