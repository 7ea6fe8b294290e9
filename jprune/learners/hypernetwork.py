"""A hypernetwork: the weights of a net of any widths, from its widths.

Every kernel with units on an axis is made by two dense layers, e -> relu -> R^hidden -> kernel,
where e are the widths, as fractions, of the groups on its axes. A narrower net has the leading
units of every group. It is masked instead of cropped, so that one compiled function serves
all widths. Masked units are 0 at all places, so the statistics of the norms are those of the
cropped net.

References:
    Liu, Mu, Zhang, Guo, Yang, Cheng, Sun, MetaPruning: meta learning for automatic neural network
    channel pruning, 2019, arXiv 1903.10258 (PruningNet) [39].
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Groups, Params, PyTree, Task, Variables
from jprune.masks import apply_masks
from jprune.units import expand, leaves_by_path

VECTORS = ("fixed", "shared", "each")


class Menu(NamedTuple):
    """Widths that the groups may have.

    Attributes:
        names: groups whose width is free; all others are whole.
        sizes: int [groups]: units.
        widths: int [groups, options], rising; equal ones where a group has fewer units than
            options.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    widths: np.ndarray


def menu(size: int, options: int = 31, least: float = 0.1) -> list[int]:
    """Widths of a group: int(ratio size) for evenly spaced ratios, at least one.

    Ratios are exact: in floating point 0.1 + 0.03 * 30 is less than 1.

    Args:
        size: units of the group.
        options: how many ratios.
        least: the smallest ratio; the largest is 1.

    Raises:
        ArgumentError: fewer than two options, or a ratio outside (0, 1).

    Example:
        >>> menu(16, options=4), menu(5, options=4)
        ([1, 6, 11, 16], [1, 2, 3, 5])
    """
    if options < 2 or not 0 < least < 1:
        raise errors.ArgumentError(
            f"menu(options={options}, least={least}); write 2 options or more, and a ratio in "
            "(0, 1)."
        )
    first = Fraction(str(least))
    ratios = [first + (1 - first) * Fraction(n, options - 1) for n in range(options)]
    return [max(1, int(ratio * size)) for ratio in ratios]


def width_masks(menu: Menu, widths: Any) -> dict[str, Any]:
    """Unit masks that keep the leading units of every group.

    Args:
        menu: of the groups.
        widths: int [groups], traced or not.

    Example:
        >>> free = Menu(("a",), np.array([4]), np.array([[1, 2, 4]]))
        >>> width_masks(free, np.array([2]))["a"].tolist()
        [True, True, False, False]
    """
    xnp = jnp if isinstance(widths, jax.Array) else np
    return {
        name: xnp.arange(size) < widths[place]
        for place, (name, size) in enumerate(zip(menu.names, menu.sizes.tolist()))
    }


class Hypernetwork(NamedTuple):
    """The functions of a hypernetwork; its parameters are a tree `hyper` beside the net's.

    Attributes:
        menu: the widths that it was made for.
        init: `init(key, variables) -> hyper`; variables are initial values of the net.
        net: `net(hyper, variables, widths) -> variables` of the net, masked; jittable in widths
            [groups]. Statistics, and other leaves that are not trained, are those of the variables
            that come in.
        decayed: `decayed(hyper) -> bools`: True where weights decay: kernels and what they are
            made of.
    """

    menu: Menu
    init: Callable[[jax.Array, Variables], Params]
    net: Callable[[Params, Variables, Any], Variables]
    decayed: Callable[[Params], PyTree]


def hypernetwork(
    task: Task, groups: Groups, menu: Menu, hidden: int = 32, vectors: str = "fixed"
) -> Hypernetwork:
    """A hypernetwork for a net.

    The last dense layer starts with the net's own initial kernel as its bias, which acts as one
    that all widths share, and small weights: generated kernels start near the initial one. (The
    authors' start from the defaults of their library.) Kernels without a unit of a free group, and
    the vectors beside them, are learned as they are.

    Args:
        task: of the net.
        groups: from `trace`.
        menu: widths that are drawn.
        hidden: width of the layer in between.
        vectors: how biases, and scales and shifts of norms, are trained: "fixed" (they keep
            their initial values: the norms of the authors' ResNets have none), "shared" (learned,
            by all widths together), "each" (one vector an option of the group: the authors'
            MobileNets).

    Raises:
        ArgumentError: another `vectors`, no hidden unit, or a net without a free group.

    Example:
        >>> from jprune import data, train, zoo
        >>> task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
        >>> groups = train.Net(task).groups
        >>> free = Menu(groups.names, np.array([300, 100]), np.array([[30, 300], [10, 100]]))
        >>> hyper, net = hypernetwork(task, groups, free, 2), task.init(jax.random.key(0))
        >>> small = hyper.net(hyper.init(jax.random.key(1), net), net, np.array([30, 10]))
        >>> int(small["params"]["fc1"]["kernel"].any(axis=0).sum())
        30
    """
    _check(task, menu, hidden, vectors)
    # Three kinds of leaves: made by the hypernetwork, a
    # table of vectors by width, learned as they are.
    trained = _trained(task, groups)
    on_leaf = {path: _groups_on(groups, menu, path) for path in groups.leaves}
    contracted = _contracted(groups)
    made = [p for p in groups.leaves if p in trained and on_leaf[p] and p in contracted]
    tables = [p for p in trained if on_leaf[p] and p not in contracted]
    direct = [p for p in trained if not on_leaf[p] or (p in tables and vectors == "shared")]
    tables = tables if vectors == "each" else []

    def init(key: jax.Array, variables: Variables) -> Params:
        leaves = leaves_by_path(groups, variables)
        keys = jax.random.split(key, max(1, len(made)))
        options = menu.widths.shape[1]
        return {
            "made": {p: _start(k, leaves[p], len(on_leaf[p]), hidden) for p, k in zip(made, keys)},
            "tables": {p: jnp.tile(leaves[p].ravel(), (options, 1)) for p in tables},
            "direct": {p: leaves[p] for p in direct},
        }

    def net(hyper: Params, variables: Variables, widths: Any) -> Variables:
        leaves = leaves_by_path(groups, variables)
        widths = jnp.asarray(widths)

        encoding = widths / menu.sizes
        for path, layers in hyper["made"].items():
            ratios = encoding[np.asarray(on_leaf[path])]
            # W = W_2 relu(W_1 e + b_1) + b_2, with b_2 = layers["kernel"]
            inner = jax.nn.relu(ratios @ layers["first"] + layers["shift"])
            kernel = jnp.tensordot(inner, layers["second"], 1) + layers["kernel"]
            leaves[path] = kernel.astype(layers["kernel"].dtype)  # encodings are float32
        # Which option of its group every width is: options rise, so count the smaller ones.
        rows = (jnp.asarray(menu.widths) < widths[:, None]).sum(axis=1)
        for path, table in hyper["tables"].items():
            places = _group_at(groups, menu, path)
            row = jnp.where(places < 0, 0, rows[np.maximum(places, 0)])
            vector = table[row, np.arange(table.shape[1])]
            leaves[path] = vector.reshape(groups.leaves[path].shape)
        leaves |= hyper["direct"]
        whole = jax.tree.unflatten(groups.treedef, list(leaves.values()))
        return apply_masks(whole, expand(groups, width_masks(menu, widths)))

    def decayed(hyper: Params) -> PyTree:
        layers = {"first": True, "shift": False, "second": True, "kernel": True}
        return {
            "made": dict.fromkeys(hyper["made"], layers),
            "tables": dict.fromkeys(hyper["tables"], False),
            "direct": {path: path in contracted for path in hyper["direct"]},
        }

    return Hypernetwork(menu, init, net, decayed)


def _check(task: Task, menu: Menu, hidden: int, vectors: str) -> None:
    """Raises what `hypernetwork` does for its arguments."""
    if vectors not in VECTORS or hidden < 1:
        raise errors.ArgumentError(
            f"hypernetwork(hidden={hidden}, vectors={vectors!r}); write 1 or more, and one of "
            f"{', '.join(VECTORS)}."
        )
    if not menu.names:
        raise errors.ArgumentError(
            f"nothing of {task.name} has a width to choose: all of its units are frozen, or their "
            "groups are left whole. See jprune.trace(...).frozen for the reasons."
        )


def _trained(task: Task, groups: Groups) -> set[str]:
    """Paths of the parameters."""
    numbered = jax.tree.unflatten(groups.treedef, list(range(len(groups.leaves))))
    numbers = {*jax.tree.leaves(task.split(numbered)[0])}
    return {path for number, path in enumerate(groups.leaves) if number in numbers}


def _contracted(groups: Groups) -> set[str]:
    """Paths of kernels and of what they are made of; biases, scales and shifts are vectors."""
    return {leaf for layer in groups.layers.values() for leaf in (layer.kernel, *layer.parts)}


def _groups_on(groups: Groups, menu: Menu, path: str) -> list[int]:
    """Numbers of the free groups with units on a leaf."""
    return [
        number
        for number, name in enumerate(menu.names)
        if any(place.leaf == path for place in groups.places[name])
    ]


def _group_at(groups: Groups, menu: Menu, path: str) -> np.ndarray:
    """Int [positions]: the free group at every position of a vector, -1 where there is none."""
    number_at = np.full(groups.leaves[path].shape, -1)
    for number, name in enumerate(menu.names):
        for place in groups.places[name]:
            if place.leaf == path:
                np.moveaxis(number_at, place.axis, 0)[place.units >= 0] = number
    return number_at.ravel()


def _start(key: jax.Array, kernel: jax.Array, inputs: int, hidden: int) -> dict[str, jax.Array]:
    """Initial values of the two layers behind a kernel."""
    one, two, three = jax.random.split(key, 3)
    even = lambda key, shape: jax.random.uniform(key, shape, kernel.dtype, -1, 1) / inputs**0.5
    # The std of W_2 h is std(kernel) |h| / sqrt(hidden): of the kernel's own order, or less.
    small = jnp.std(kernel) / math.sqrt(hidden)
    return {
        "first": even(one, (inputs, hidden)),
        "shift": even(two, (hidden,)),
        "second": small * jax.random.normal(three, (hidden, *kernel.shape), kernel.dtype),
        "kernel": kernel,
    }


def hypernetwork_task(task: Task, hyper: Hypernetwork, smoothing: float = 0.1) -> Task:
    """The task of training a hypernetwork, for variables {"hyper", "net"}.

    Every step draws one width a group, each option alike, and trains the net of these widths;
    gradients reach the hypernetwork alone.

    Args:
        task: of the net.
        hyper: what is trained.
        smoothing: of labels: the part of the loss that all classes share. Labels that are no
            whole numbers are no classes, and stay as they are.

    Raises:
        ArgumentError: a smoothing outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise errors.ArgumentError(
            f"smoothing={smoothing} is outside [0, 1): it is the part of the loss that all classes "
            "share."
        )
    table = jnp.asarray(hyper.menu.widths)

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        # Widths are drawn apart from what the net draws.
        ours, theirs = jax.random.split(key)
        # Uniform over options, for every group on its own
        drawn = jax.random.randint(ours, (len(table),), 0, table.shape[1])
        widths = table[jnp.arange(len(table)), drawn]
        return task.train_fn(hyper.net(variables["hyper"], variables["net"], widths), x, theirs)

    def loss(out: Any, batch: Batch) -> jax.Array:
        own = task.loss(out, batch)
        if not smoothing or not jnp.issubdtype(batch["label"].dtype, jnp.integer):
            return own
        of_class = lambda label: task.loss(
            out, {**batch, "label": jnp.full_like(batch["label"], label)}
        )
        # [classes, batch] -> [batch]
        every = jax.vmap(of_class)(jnp.arange(task.data.classes)).mean(axis=0)
        # (1 - s) loss(label) + s mean over classes c of
        # loss(c): smoothing for any loss with classes
        return (1 - smoothing) * own + smoothing * every

    return task._replace(
        fn=lambda variables, x: task.fn(
            hyper.net(variables["hyper"], variables["net"], hyper.menu.sizes), x
        ),
        train_fn=train_fn,
        loss=loss,
        split=lambda variables: (variables["hyper"], variables["net"]),
        merge=lambda hyper, net: {"hyper": hyper, "net": net},
        update=lambda variables, new: {**variables, "net": task.update(variables["net"], new)},
    )
