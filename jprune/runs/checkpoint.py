"""Checkpoints: a tree of arrays and a few plain facts, through Orbax.

A folder holds the two newest checkpoints. Orbax writes one beside the old ones and renames it when
it is whole, so a kill in the middle of a save leaves those; what the kill left behind goes when the
folder is opened the next time. The digests of its files are written last: a checkpoint that has
none, or others, is not read, and the one before is.

Of several processes the first alone calls this, with a state that all of them have: arrays that are
spread over many devices are written as whole arrays, and read onto one device, so a run can go on
with other devices.
"""

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jprune import errors, foreign
from jprune.base import PyTree
from jprune.forms.opened import read_back, written_out
from jprune.runs import digests, inside, trees
from jprune.runs.files import AGAIN, PathLike, make_folder
from jprune.runs.schemas import Facts

SCHEMA = 1


class Checkpoint(NamedTuple):
    """What `load` returns.

    Attributes:
        step: number of the steps done.
        state: the tree of arrays.
        meta: the plain facts that `save` got: data position, key, seconds so far.
        damaged: names of files for which newer checkpoints were passed over.
    """

    step: int
    state: PyTree
    meta: dict[str, Any]
    damaged: tuple[str, ...] = ()


def save(folder: PathLike, step: int, state: PyTree, meta: dict[str, Any]) -> None:
    """Saves a checkpoint, and deletes all but the one before.

    Args:
        folder: of this stage; made if it is not there.
        step: number of the steps done.
        state: dictionaries, lists, tuples, named tuples and None, with arrays, random keys and
            numbers in them.
        meta: plain facts, as for JSON.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to, or a leaf is none of
            these; the checkpoint before is untouched.
    """
    path = make_folder(folder)
    # Leaf types (factored, CSR) become plain dictionaries: Orbax knows no others.
    state = _of_one_process(_encoded(path, written_out(state)))
    try:
        # Of a run that was killed after its last save, or damaged, and so to be made again.
        inside.remove_checkpoints(path, [old for old in inside.steps_of(path) if old >= step])
        with _manager(path) as manager:
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    meta=ocp.args.JsonSave({"schema": SCHEMA, **meta}),
                ),
            )
            manager.wait_until_finished()
        digests.write(path / str(step))
    except errors.CheckpointError:
        raise
    except Exception as error:  # Orbax passes on what its storage raises, of many types
        raise errors.CheckpointError(
            f"the checkpoint of step {step} cannot be written to {path} ({_short(error)}). Free "
            "some space or choose another --out; the same command then goes on."
        ) from error


def load(
    folder: PathLike, template: PyTree = None, digests_needed: bool = True
) -> Checkpoint | None:
    """Reads the newest checkpoint of a folder that is whole.

    Args:
        folder: that `save` wrote to.
        template: tree with shapes and types of the state; needed where it has tuples, named or not.
            Without one, the tree is as it was saved, tuples as lists.
        digests_needed: False also reads one without digests, as older versions wrote them.

    Returns:
        The checkpoint, its arrays on the first device, or of NumPy where JAX has no such type; None
        if there is none.

    Raises:
        DamagedError: none of them is whole.
        CheckpointError: it is of another version or of another net, or holds values that the
            template's types cannot hold.
    """
    path = pathlib.Path(folder)
    step, damage = newest(path, digests_needed)
    if step is None and damage:
        raise errors.DamagedError(f"{path} has no checkpoint that is whole: {_listed(damage)}.")
    if step is None:
        return None
    try:
        with _manager(path) as manager:
            # As it was saved: with other shapes or types Orbax would cut or round without a word.
            # And by its own devices, which need not be there any more.
            saved = _abstract(manager.item_metadata(step)["state"].tree)
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(saved), meta=ocp.args.JsonRestore()
                ),
            )
            state = trees.decoded(restored["state"])
    except Exception as error:  # Orbax has no error of its own for damaged or foreign files
        raise _unreadable(path, _short(error)) from error
    # Behind the `try`: this is our own complaint, which must not be wrapped as one of Orbax.
    meta = dict(restored["meta"])
    if meta.pop("schema", None) != SCHEMA:
        raise _unreadable(path, f"it is of another version; this one reads schema {SCHEMA}")
    if template is not None:
        try:
            state = trees.fitted(state, written_out(template))
        except errors.CheckpointError as error:
            raise errors.CheckpointError(
                f"the checkpoint in {path} does not fit: {error}."
            ) from error
    return Checkpoint(step, read_back(state), meta, damage)


def newest(folder: pathlib.Path, digests_needed: bool = True) -> tuple[int | None, tuple[str, ...]]:
    """The newest checkpoint that is whole, and names of damaged files of newer ones.

    Args:
        folder: of the checkpoints.
        digests_needed: as in `load`.

    Returns:
        Its step, or None; and paths below the folder.
    """
    damage: list[str] = []
    for step in reversed(inside.steps_of(folder)):
        names = digests.damage_of(folder / str(step))
        if not names or (names == [digests.FILE] and not digests_needed):
            return step, tuple(damage)
        damage += [f"{step}/{name}" for name in names]
    return None, tuple(damage)


def facts_of(folder: pathlib.Path) -> dict[str, Any]:
    """What `loop.fit` keeps in the newest whole checkpoint of a folder; nothing if there is none.

    Read without Orbax, and without the arrays.
    """
    step, _ = newest(folder)
    if step is None:
        return {}
    # Orbax writes what `JsonSave` gets into this file.
    meta = foreign.parse(inside.read(folder / str(step) / "meta" / "metadata", foreign.BYTES))
    foreign.check(meta, dict[str, Any], str(folder))
    facts = meta.get("facts", {})
    foreign.check(facts, Facts, str(folder))
    return facts


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} missing or not as written"


def save_tree(path: PathLike, tree: PyTree) -> None:
    """Writes a tree of arrays as an Orbax checkpoint that other programs can read.

    Args:
        path: a folder; replaced if it is there.
        tree: dictionaries and arrays; leaf types are written as `{form: {part: array}}`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to.
    """
    plain = _encoded(pathlib.Path(path), written_out(tree))
    # A run that was killed while it exported has left a folder of this name.
    inside.remove_checkpoint(pathlib.Path(path))
    try:
        with _quiet(), ocp.StandardCheckpointer(multiprocessing_options=_alone()) as writer:
            writer.save(os.path.abspath(path), _of_one_process(plain))
    except Exception as error:  # Orbax passes on what its storage raises, of many types
        raise errors.CheckpointError(
            f"{path} cannot be written ({_short(error)}). Free some space or choose another --out; "
            "the same command then goes on."
        ) from error


def load_tree(path: PathLike) -> PyTree:
    """Reads what `save_tree` wrote, onto the first device.

    Raises:
        CheckpointError: there is no such folder, or it is damaged.
    """
    try:
        with _quiet(), ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
            metadata = reader.metadata(os.path.abspath(path)).item_metadata
            tree = reader.restore(os.path.abspath(path), _abstract(metadata.tree))
            return read_back(trees.decoded(tree))
    except Exception as error:  # Orbax has no error of its own for damaged or foreign files
        raise errors.CheckpointError(
            f"{path} cannot be read ({_short(error)}). It is written at the end of a run. {AGAIN}"
        ) from error


def _unreadable(path: pathlib.Path, why: str) -> errors.CheckpointError:
    return errors.CheckpointError(
        f"the checkpoint in {path} cannot be restored: it is of another net or version ({why})."
    )


def _encoded(path: pathlib.Path, tree: PyTree) -> PyTree:
    try:
        return trees.encoded(tree)
    except errors.CheckpointError as error:
        raise errors.CheckpointError(f"{path} cannot be written: {error}.") from error


def _short(error: Exception) -> str:
    text = foreign.line(error, foreign.SHOWN)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _abstract(tree: PyTree) -> PyTree:
    """Shapes and types, placed on the first device: checkpoints move between machines."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def one(leaf: Any) -> Any:
        dtype = np.dtype(leaf.dtype)
        # What JAX would cut to 32 bits is read as an array of NumPy.
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            return np.empty(leaf.shape, dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Keeps Orbax from waiting for other processes."""
    # Orbax puts barriers around a save that all processes must reach; here only the first comes by.
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def _of_one_process(tree: PyTree) -> PyTree:
    """The tree; with several processes as NumPy arrays, since Orbax would wait for the others."""
    return tree if jax.process_count() == 1 else jax.tree.map(np.asarray, tree)


@contextlib.contextmanager
def _manager(path: pathlib.Path) -> Iterator[ocp.CheckpointManager]:
    options = ocp.CheckpointManagerOptions(
        # The one before is read where the newest is damaged.
        max_to_keep=2,
        create=False,
        multiprocessing_options=_alone(),
        cleanup_tmp_directories=True,
        # Training donates its state to the next step: a save has to be done before that.
        enable_async_checkpointing=False,
    )
    # Named here, or a manager cannot say what a checkpoint holds before it has saved one.
    handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    with (
        _quiet(),
        ocp.CheckpointManager(
            os.path.abspath(path), options=options, item_handlers=handlers
        ) as manager,
    ):
        yield manager


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's own reports out of the progress display; its errors are ours to tell."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
