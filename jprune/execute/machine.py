"""The machine at hand, for the roofline: four constants, measured once and held in a file.

References:
    Park, Li, Wen, Tang, Li, Chen, Dubey, Faster CNNs with direct sparse convolutions and guided
    pruning, 2017, arXiv 1608.01409 [11].
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import tempfile
import warnings
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np

from jprune import errors, foreign, kernels, measure
from jprune.cost import Machine

LIMIT = 1 << 16
"""Bytes of the file at most."""

BETA = 2.0
"""A weight of 4 bytes with an index of 4."""

SIDE, COPIED = 1024, 1 << 24
"""Side of the matrices whose product is timed, and how many numbers are copied."""

MAP, CHANNELS, DENSITY = 28, 128, 0.1
"""The sparse layer that is timed: 3 x 3, as many outputs as inputs."""


class _Written(TypedDict):
    on: dict[str, Any]
    machine: dict[str, float]


def this_machine(path: str | os.PathLike[str] | None = None) -> Machine:
    """The constants of this machine's CPU, measured at the first call and read from a file later.

    The file names the device, its threads and the versions; where one of them has changed, or the
    file cannot be read, the machine is measured anew (in two seconds or so) and a warning says why.
    On a busy machine the times say little: remove the file when it is idle, to measure again.

    Args:
        path: of the file; None is `$JPRUNE_MACHINE`, else `jprune/machine.json` in the user's cache
            folder (`$XDG_CACHE_HOME`, else `~/.cache`).

    Returns:
        The machine.

    Raises:
        MissingExtraError: numba is not installed.
    """
    kernels.require()
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    chosen = path or os.environ.get("JPRUNE_MACHINE") or default / "jprune" / "machine.json"
    return _at(pathlib.Path(chosen).expanduser())


@functools.cache
def _at(path: pathlib.Path) -> Machine:
    on = _conditions()
    if path.exists():
        try:
            return _read(path, on)
        except errors.JpruneError as error:
            warnings.warn(f"{error} This machine is measured anew.", stacklevel=3)
    machine = measured()
    try:
        _write(path, on, machine)
    except OSError as error:
        warnings.warn(
            f"what was measured of this machine cannot be written to {path} ({error.strerror}), "
            "and is measured again next time. Set JPRUNE_MACHINE to a file that can be written.",
            stacklevel=3,
        )
    return machine


def _conditions() -> dict[str, Any]:
    """What the constants depend on."""
    names = ("jax", "jaxlib", "numpy")
    versions = {name: version for name, version in measure.versions().items() if name in names}
    import numba

    return {**measure.device(), **versions, "numba": numba.__version__}


def _read(path: pathlib.Path, on: dict[str, Any]) -> Machine:
    """The constants in a file.

    Raises:
        CheckpointError: it cannot be read, or is of other conditions.
    """
    try:
        value = foreign.parse(foreign.content(path, LIMIT))
    except ValueError as error:
        raise errors.CheckpointError(f"{path} cannot be read: {error}.") from error
    foreign.check(value, _Written, str(path))
    if value["on"] != on:
        changed = [name for name in on if value["on"].get(name) != on[name]]
        raise errors.CheckpointError(f"{path} was measured under another {', '.join(changed)}.")
    names = [field.name for field in dataclasses.fields(Machine)]
    numbers = [value["machine"].get(name) for name in names]
    if not all(isinstance(n, float) and math.isfinite(n) and n > 0 for n in numbers):
        raise errors.CheckpointError(f"{path} has {numbers} as {names}; numbers above 0 expected.")
    return Machine(*numbers)


def _write(path: pathlib.Path, on: dict[str, Any], machine: Machine) -> None:
    """Writes the file in one step, so that no half of one is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump({"on": on, "machine": dataclasses.asdict(machine)}, file, indent=1)
        pathlib.Path(name).replace(path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def measured(repeats: int = 10) -> Machine:
    """Times a dense product, a copy and a sparse convolution, in turns.

    Args:
        repeats: timed rounds, at least 10.

    Returns:
        flops of the product; bytes a second of the copy; alpha of the convolution at a density of
        `DENSITY`; beta = 2. The lowest tenth of the times counts: what slows a machine down only
        adds.

    Raises:
        MissingExtraError: numba is not installed.
        ArgumentError: too few repeats.
    """
    rng = np.random.default_rng(0)
    mask = rng.random((CHANNELS, CHANNELS, 3, 3)) < DENSITY
    filters, channel, row, column = np.nonzero(mask)
    pointers = np.concatenate([[0], np.cumsum(mask.reshape(CHANNELS, -1).sum(axis=1))])
    shape, edge = (1, CHANNELS, MAP, MAP), (1, 1)
    sparse = kernels.sparse_convolution(
        shape, np.stack([row, column, channel]), pointers, (3, 3), padding=(edge, edge)
    )
    assert sparse is not None  # this shape is small
    square = jnp.ones((SIDE, SIDE))
    calls = {
        "product": (lambda a: a @ a, (square,)),
        "copy": (lambda a: a + 1, (jnp.ones(COPIED),)),
        "sparse": (sparse, (jnp.ones(shape), jnp.ones(len(filters)))),
    }
    times = {name: of["p10"] / 1e3 for name, of in measure.latency(calls, repeats).items()}
    flops = 2 * SIDE**3 / times["product"]
    # Every number is read and written.
    bandwidth = 2 * 4 * COPIED / times["copy"]
    # t_comp = alpha x C / F, with x C = 2 (non-zeros) (positions)
    alpha = times["sparse"] * flops / (2 * len(filters) * MAP * MAP)
    return Machine(flops, bandwidth, alpha, BETA)
