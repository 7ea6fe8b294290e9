"""Many devices: batches are split among them, everything else lies on each of them.

The layout is a property of the arrays, so whoever trains or measures need not know of it: `spread`
gives a task whose batches lie split over all devices, `everywhere` copies a state to each of them,
and JAX does the rest (a mean over the batch, and so a gradient or the statistics of a norm, is that
of the whole batch). With one device all of it is the identity.

Several processes, each with devices of its own, run the same program side by side. Long stages use
the devices of all of them. Whatever touches files, and every short stage, is the first process's
alone, through `from_first`: the others wait for what comes of it. `docs/devices.md` is for users.
"""

import functools
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jprune import errors
from jprune.base import Batch, PyTree, Task

Result = TypeVar("Result")
AXIS = "data"
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def connect() -> bool:
    """Joins the processes of a run, where `JAX_COORDINATOR_ADDRESS` says that there are several.

    To be called before JAX computes anything. `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say how many
    there are and which this is; without them JAX asks the cluster's scheduler (SLURM, Open MPI,
    TPU pods). A program that calls `jax.distributed.initialize` itself needs none of this.

    Returns:
        Whether this process is the first, the one that writes files and has something to say.

    Raises:
        ArgumentError: the variables do not fit, or the processes do not find each other.
    """
    address, *numbers = (os.environ.get(name) for name in VARIABLES)
    if address is not None and not jax.distributed.is_initialized():
        try:
            # None lets JAX ask the scheduler of the cluster.
            count, index = (None if text is None else int(text) for text in numbers)
            jax.distributed.initialize(num_processes=count, process_id=index)
        except (ValueError, RuntimeError, TypeError) as error:
            raise errors.ArgumentError(
                f"JAX_COORDINATOR_ADDRESS is {address!r}, and the processes of the run cannot be "
                f"joined ({error}). Write HOST:PORT of process 0 there, and JAX_NUM_PROCESSES and "
                "JAX_PROCESS_ID beside it; or unset it to run on this host alone."
            ) from error
    return not jax.distributed.is_initialized() or is_first()


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def from_first(call: Callable[[], Result]) -> Result:
    """Calls a function in the first process alone; all processes return (a copy of) its result.

    All processes come here together. An error of the first is raised by all of them, so that none
    waits for ever.

    Args:
        call: gives something that can be pickled.

    Example:
        >>> from_first(lambda: 3)
        3
    """
    if jax.process_count() == 1:
        return call()
    if not is_first():
        result, error = pickle.loads(_from_first_process(b""))
        if error is not None:
            raise error
        return result
    try:
        result = call()
    # The others wait in a broadcast: they must hear of the error before it is raised here.
    except Exception as error:
        _from_first_process(pickle.dumps((None, error)))
        raise
    _from_first_process(pickle.dumps((result, None)))
    return result


def _from_first_process(content: bytes) -> bytes:
    """Sends bytes from the first process to all; returns them in each."""
    # Two broadcasts: arrays need equal shapes in all processes, so the length goes first.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.frombuffer(content.ljust(size, b"\0"), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def spread(task: Task, local: bool = False) -> Task:
    """The task with its batches split over all devices.

    A batch whose size is not a multiple of the number of devices is copied whole to each of them:
    the results are the same, and nothing is gained. (`place` refuses such a training batch.)

    Args:
        task: net, loss and data.
        local: over the devices of this process alone.
    """
    mesh = _mesh(local)
    if mesh is None:
        return task
    return task._replace(
        data=task.data._replace(batches=functools.partial(_batches, task.data.batches, mesh))
    )


def _batches(
    batches: Callable[..., Iterator[Batch]],
    mesh: Mesh,
    split: str,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    start: int = 0,
) -> Iterator[Batch]:
    """As `base.Data.batches`; every process loads only the rows that lie on its own devices."""
    # The rows of a batch are split by the first axis; an image or its label alike.
    layout = _layout(mesh, (batch_size,))
    share = _share(layout, batch_size)
    # A loader of the user's own need not know `rows` as long as there is one process.
    rows = {} if share == slice(0, batch_size) else {"rows": share}
    for batch in batches(split, batch_size, seed=seed, epoch=epoch, start=start, **rows):
        yield {
            name: jax.make_array_from_process_local_data(
                layout, np.asarray(value), (batch_size, *np.shape(value)[1:])
            )
            for name, value in batch.items()
        }


def place(batch: Batch) -> Batch:
    """Splits a training batch over all devices; one that is split already is returned as it is.

    Args:
        batch: arrays whose first axis is that of the examples; in every process the whole batch.

    Raises:
        ArgumentError: the number of devices does not divide that of the examples.
    """
    mesh = _mesh()
    if mesh is None:
        return batch
    for size in {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf)}:
        # A batch that lies whole on each device would give the right gradient at no gain; refused,
        # since the user would pay for devices that do nothing.
        if size % mesh.size:
            fitting = size // mesh.size * mesh.size
            near = [str(n) for n in (fitting, fitting + mesh.size) if n]
            raise errors.ArgumentError(
                f"a training batch of {size} examples cannot be split over {mesh.size} devices. "
                f"Write --batch-size {' or '.join(near)}, or show JAX fewer devices (see "
                "docs/devices.md)."
            )

    def put(leaf: Any) -> jax.Array:
        # From `spread`: it is in place already, and a copy through the host would cost more than
        # the step.
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == {*mesh.devices.flat}:
            return leaf
        host = np.asarray(leaf)
        # The callback cuts each device's rows out of the host's copy; nothing goes through device
        # 0.
        return jax.make_array_from_callback(
            host.shape, _layout(mesh, host.shape), lambda index: host[index]
        )

    return jax.tree.map(put, batch)


def everywhere(tree: PyTree, local: bool = False) -> PyTree:
    """Copies all arrays of a tree to every device.

    Args:
        tree: arrays, the same in every process.
        local: on the devices of this process alone.
    """
    mesh = _mesh(local)
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def gathered(tree: PyTree) -> PyTree:
    """The tree with its JAX arrays on the default device; NumPy arrays stay as they are."""
    if jax.device_count() == 1:
        return tree
    # Through the host, which gives arrays that are bound to no device: JAX refuses to mix arrays
    # that are bound to different ones.
    one = lambda leaf: jnp.asarray(np.asarray(leaf)) if isinstance(leaf, jax.Array) else leaf
    return jax.tree.map(one, tree)


@functools.lru_cache(maxsize=2)
def _mesh(local: bool = False) -> Mesh | None:
    """A mesh of all devices on one axis, those of a process side by side; None for one device."""
    devices = jax.local_devices() if local else jax.devices()
    if len(devices) == 1:
        return None
    # JAX lists devices in the order of the hardware, in which processes may alternate; a process
    # can only make a contiguous run of rows.
    return Mesh(sorted(devices, key=lambda device: (device.process_index, device.id)), (AXIS,))


def _layout(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Split along the first axis if its length is a multiple of the devices, else whole on each."""
    divides = bool(shape) and shape[0] % mesh.size == 0
    return NamedSharding(mesh, PartitionSpec(AXIS) if divides else PartitionSpec())


def _share(layout: NamedSharding, size: int) -> slice:
    """The rows of a batch that lie on this process's devices."""
    parts = layout.addressable_devices_indices_map((size,)).values()
    # The devices of a process stand side by side in the mesh, so its rows are one slice.
    ranges = [index[0].indices(size) for index in parts if index is not None]
    return slice(min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges))
