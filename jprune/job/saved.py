"""A pruned net in a folder: written there by a run or from a script, and opened again.

    params/           the small net's variables (Orbax)
    plan.json         which units are kept, and the shapes of the dense net
    net.stablehlo     the small net as a program that takes its variables, with its gradient
    model.stablehlo   the small net with its variables compiled in
    model.tflite      the same for phones, where LiteRT is installed and can express it

No code that these files name is ever imported: a net of one's own comes from the person who opens
the folder, or is `net.stablehlo`.
"""

import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors, export, zoo
from jprune.base import Groups, Masks, Variables
from jprune.blocks import lift
from jprune.forms.opened import dense_of
from jprune.graph import gated, slim, slim_params
from jprune.graph.shrink.plans import plan_of, replay
from jprune.job.nets import DTYPES
from jprune.runs import digests
from jprune.runs.checkpoint import load_tree, save_tree
from jprune.runs.directory import held, require
from jprune.runs.files import PathLike, atomic_write, read_json, write_json
from jprune.runs.inside import guarded
from jprune.runs.plans import read_plan
from jprune.train.task import seen_at
from jprune.units import are_units, ones

Function = Callable[..., Any]
NET = "net.stablehlo"
WRITES = ("params", NET, "model.stablehlo", "model.tflite")
"""What `write_net` leaves in a folder."""


class _Saved(TypedDict, total=False):
    """What is read of the `config.json` of a run or of `save`."""

    model: str | None
    dtype: str


class Loaded(NamedTuple):
    """The small net of a folder.

    Attributes:
        fn: `fn(variables, x) -> out`, in inference mode.
        variables: of the small net, on the first device.
    """

    fn: Function
    variables: Variables


class LoadedMasked(NamedTuple):
    """The net of a folder at its dense size, pruned units being 0.

    Attributes:
        fn: `fn(variables, x) -> out` of the dense net; removed branches are gated.
        variables: arrays of the dense net's shapes.
        groups: from `jprune.trace`.
        masks: {group: bool [units]}, and {branch: bool [1]} of removed branches.
    """

    fn: Function
    variables: Variables
    groups: Groups
    masks: Masks


def load(
    run: PathLike,
    *,
    masked: bool = False,
    fn: Function | None = None,
    net: Any = None,
    groups: Groups | None = None,
) -> Any:
    """Opens a pruned net: the folder of a finished run, or one that `save` has written.

    A net of the zoo is built and cut again. One of your own is read from `net.stablehlo`, which can
    be run, jitted and differentiated; or pass `fn` or `net`, and its own equations are cut. So do
    to trace it again, to look inside (`intercept`, `vmap`) and for `masked=True`.

    Args:
        run: the folder.
        masked: the dense net with zeros instead of the small one.
        fn: the dense net's function, `fn(variables, x) -> out`, that was pruned.
        net: instead of `fn`, a `zoo.Net`, or "module:callable" as after `--model`.
        groups: those of the net, where it was traced with options (`open`, `freeze`, `twin`).

    Returns:
        `fn, variables` (`Loaded`); with `masked` `fn, variables, groups, masks` (`LoadedMasked`).

    Raises:
        DamagedError: a file is missing or damaged.
        CheckpointError: a file is of another version, or a link.
        StructureError: `fn` or `net` is another net than the one that was pruned.
        ArgumentError: `masked=True` for a net of one's own without `fn` or `net`.

    Example:
        >>> import tempfile, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2))}
        >>> x = jnp.ones((1, 3))
        >>> groups = jprune.trace(fn, variables, x)
        >>> masks = {"first": np.array([True, False, False, True])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/net", fn, variables, x, groups=groups, masks=masks)
        ...     small_fn, small = load(f"{folder}/net")
        ...     print(small["first"].shape, small_fn(small, x))
        (3, 2) [[6. 6.]]
    """
    folder = guarded(run)
    plan = read_plan(folder)
    # Before any of it is parsed.
    require(folder, "params")
    variables = load_tree(folder / "params")
    about = plan.get("net")
    if about is not None:
        variables = _in_structure(about["variables"], variables)
    dense, chosen = _dense(folder, about, fn, net), fn is not None or net is not None
    if dense is None and masked:
        raise errors.ArgumentError(
            f"the net in {folder} is one of your own, and its folder holds the small one alone. "
            'Write load(..., masked=True, fn=fn) with the function that was pruned, or net="'
            'module:callable".'
        )
    if dense is None:
        if not (folder / NET).exists():
            raise errors.CheckpointError(
                f"{folder} has no {NET}, which earlier versions did not write. Write load(..., "
                "net=net) with the zoo.Net that was pruned."
            )
        return Loaded(program_of(folder), variables)
    run_dense, shapes, example = dense
    try:
        groups, masks = replay(plan, run_dense, shapes, example, groups=groups)
    except errors.StructureError:
        # Another version of JAX or of the zoo writes other equations.
        if chosen or masked or not (folder / NET).exists():
            raise
        return Loaded(program_of(folder), variables)
    resolution = plan.get("resolution")
    if not masked:
        return Loaded(seen_at(slim(run_dense, groups, masks), resolution), variables)
    whole = _spread(groups, masks, dense_of(variables), shapes)
    return LoadedMasked(seen_at(_gated(run_dense, groups, masks), resolution), whole, groups, masks)


def program_of(folder: pathlib.Path) -> Function:
    """The small net of a folder, from its program.

    Raises:
        DamagedError: the program is missing or damaged.
    """
    require(folder, NET)
    return export.load_net(folder / NET)


def save(
    folder: PathLike,
    fn: Function,
    variables: Variables,
    x: Any,
    *,
    groups: Groups,
    masks: Masks,
    overwrite: bool = False,
) -> None:
    """Writes a net that was pruned in a script, as a run does; `load` opens it.

    Args:
        folder: new or empty; made if it is not there.
        fn: the dense net, `fn(variables, x) -> out`, in inference mode.
        variables: dense, dictionaries and lists of arrays; what masks remove is cut off.
        x: inputs or their shapes, the batch axis first; a tree for several inputs.
        groups: from `jprune.trace(fn, variables, x)`.
        masks: {group: bool [units]}, {branch: bool [1]}; or a tree of bools like the variables,
            whose zeros stay in the variables but for units that nothing reads any more.
        overwrite: replace what `save` has written there before.

    Raises:
        CheckpointError: the folder is in use by something else, or cannot be written to.
        ArgumentError: variables in something else than dictionaries, lists and tuples.
        StructureError: masks of another net.
    """
    shape = lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))
    shapes, example = jax.tree.map(shape, variables), jax.tree.map(shape, x)
    _described(shapes)
    units = masks if are_units(groups, masks) else lift(groups, masks)
    units = {**ones(groups), **units}
    small, small_fn = slim_params(groups, units, variables), slim(fn, groups, units)
    plan = plan_for(fn, shapes, example, groups, units, small)
    with held(folder, {"model": None}, {}, {}, overwrite) as directory:
        write_net(directory.path, small_fn, small_fn, small, example, _warn)
        # A run has these digests in the stage that has written the files.
        plan["files"] = digests.of_files(directory.path, WRITES)
        write_json(directory.path / "plan.json", plan, digest=True)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def write_net(
    folder: pathlib.Path,
    fn: Function,
    exact: Function,
    variables: Variables,
    example: Any,
    note: Callable[[str], None],
) -> None:
    """Writes `params/` and the three programs of a small net.

    Args:
        folder: is there.
        fn: the small net.
        exact: the same in float32, for the .tflite.
        variables: of the small net.
        example: shape and type of its input.
        note: is told what could not be written, and why.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to.
    """
    save_tree(folder / "params", variables)
    for name, write in ((NET, export.stablehlo_of_net), ("model.stablehlo", export.stablehlo)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = write(fn, variables, example)
        for text in dict.fromkeys(str(warning.message) for warning in said):
            if "exported net" in text:
                note(f"{name}: {text}")
        atomic_write(folder / name, model)
    try:
        atomic_write(folder / "model.tflite", export.tflite(exact, variables, example))
    # A net is whole without this file: its extra may be missing, or an operation have no TFLite
    # form.
    except (errors.MissingExtraError, errors.ExportError) as error:
        note(f"model.tflite was not written: {error}")


def plan_for(
    fn: Function, shapes: Any, example: Any, groups: Groups, masks: Masks, small: Variables
) -> dict[str, Any]:
    """A plan (`plan_of`) that also says what the dense net takes and returns, under `net`."""
    plan = plan_of(fn, shapes, example, groups=groups, masks=masks, small=small)
    trees = {
        "variables": shapes,
        "example": example,
        "outputs": jax.eval_shape(fn, shapes, example),
    }
    return {**plan, "net": {name: _described(tree) for name, tree in trees.items()}}


def example_of(plan: Mapping[str, Any]) -> Any:
    """Shape and type of the input of a plan's net."""
    return _shapes_of(plan["net"]["example"])


def _described(tree: Any) -> Any:
    """A tree of shapes as plain data.

    Raises:
        ArgumentError: a node that is no dictionary with names, list or tuple.
    """
    match tree:
        case None:
            return None
        case dict() if all(isinstance(name, str) for name in tree):
            return {"dict": {name: _described(node) for name, node in tree.items()}}
        case list() | tuple() if not hasattr(tree, "_fields"):
            return {type(tree).__name__: [_described(node) for node in tree]}
    if not hasattr(tree, "shape"):
        raise errors.ArgumentError(
            f"a {type(tree).__name__} stands in the variables or inputs; a folder holds "
            "dictionaries with names, lists, tuples and arrays. Write nnx.to_pure_dict(state), or "
            "let zoo.from_equinox(module, shape) make such variables."
        )
    return {"shape": [*tree.shape], "dtype": str(tree.dtype)}


def _shapes_of(described: Any) -> Any:
    """The inverse of `_described`."""
    match described:
        case None:
            return None
        case {"dict": nodes}:
            return {name: _shapes_of(node) for name, node in nodes.items()}
        case {"list": nodes}:
            return [_shapes_of(node) for node in nodes]
        case {"tuple": nodes}:
            return tuple(_shapes_of(node) for node in nodes)
    return jax.ShapeDtypeStruct(tuple(described["shape"]), jnp.dtype(described["dtype"]))


def _in_structure(described: Any, tree: Any) -> Any:
    """A tree with tuples where they were: files know lists alone."""
    match described:
        case {"dict": nodes} if isinstance(tree, dict):
            return {name: _in_structure(nodes.get(name), node) for name, node in tree.items()}
        case {"list": nodes} | {"tuple": nodes} if isinstance(tree, list):
            made = [_in_structure(*pair) for pair in zip(nodes, tree)]
            return tuple(made) if "tuple" in described else made
    return tree


def _dense(
    folder: pathlib.Path, about: Mapping[str, Any] | None, fn: Function | None, net: Any
) -> tuple[Function, Any, Any] | None:
    """Function, shapes of the variables and example of the dense net; None if nobody has it.

    Raises:
        ArgumentError: both `fn` and `net`, or `net` is none.
        CheckpointError: a folder of an earlier version, whose plan does not say enough.
    """
    if fn is not None and net is not None:
        raise errors.ArgumentError("load got fn and net; either of them says what was pruned.")
    if fn is not None:
        if about is None:
            raise errors.CheckpointError(
                f"the plan in {folder} is of an earlier version and does not say what fn takes. "
                "Write load(..., net=...) with a zoo.Net, which does."
            )
        return fn, _shapes_of(about["variables"]), _shapes_of(about["example"])
    if net is None:
        net = read_json(folder / "config.json", _Saved).get("model")
        # What a file names is built only if it is one of ours.
        if net not in zoo.names() or about is None:
            return None
    if isinstance(net, str):
        net = _built(folder, net, about)
    if not isinstance(net, zoo.Net):
        raise errors.ArgumentError(
            f'load got net={net!r}; write a zoo.Net, a name of the zoo or "module:callable".'
        )
    return net.fn, jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0))), net.example


def _built(folder: pathlib.Path, name: str, about: Mapping[str, Any] | None) -> zoo.Net:
    """A net by its name, for the images, classes and type of the folder's."""
    if about is None:
        raise errors.CheckpointError(
            f"the plan in {folder} is of an earlier version and does not say for which images. "
            "Write load(..., net=...) with a zoo.Net."
        )
    example, outputs = _shapes_of(about["example"]), _shapes_of(about["outputs"])
    dtype = DTYPES.get(read_json(folder / "config.json", _Saved).get("dtype", "float32"))
    if dtype is None or not all(getattr(one, "shape", None) for one in (example, outputs)):
        raise errors.CheckpointError(
            f"plan.json and config.json in {folder} do not say for which images and in which type "
            "the net is. Write load(..., net=...) with a zoo.Net."
        )
    # A colon stands in no name of the zoo.
    make = zoo.load if ":" in name else zoo.build
    return make(name, classes=outputs.shape[-1], shape=example.shape[1:], dtype=dtype)


def _spread(groups: Groups, masks: Masks, small: Variables, shapes: Any) -> Variables:
    """Small variables at the places of the dense net's, 0 elsewhere."""
    # Every weight's index in the dense leaf; slimmed along, they say where the small leaf's go.
    numbered = jax.tree.map(lambda leaf: np.arange(np.prod(leaf.shape)).reshape(leaf.shape), shapes)
    places = slim_params(groups, masks, numbered)

    def write(shape: Any, place: Any, leaf: Any) -> jax.Array:
        whole = np.zeros(shape.shape, shape.dtype)
        if place is not None:
            whole.reshape(-1)[np.ravel(place)] = np.ravel(leaf)
        return jnp.asarray(whole)

    return jax.tree.map(write, shapes, places, small, is_leaf=lambda node: node is None)


def _gated(fn: Function, groups: Groups, masks: Masks) -> Function:
    """The dense net, in which removed branches add nothing: f(0) of their end may differ from 0."""
    gates = {name: mask.astype(np.float32) for name, mask in masks.items() if mask.shape == (1,)}
    gates = {name: gate for name, gate in gates.items() if name not in groups.sizes}
    if not gates:
        return fn
    run = gated(fn, groups, at="join")
    return lambda variables, x: run(variables, gates, x)
