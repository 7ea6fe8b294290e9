"""Maximality: what brute force can remove from small nets is offered, and no more is tied.

Brute force knows nothing of the engine: it deletes positions of the leaves, calls the network's own
function on what is left, and compares with the whole network, those positions cleared. The
functions below therefore read all widths off their arrays.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from tests.law import relative_error
from tests.nets import Net, conv, draw, norm, norm_shapes

Position = tuple[str, int, int]
"""Leaf, axis, index."""


def head(x, v):
    """Pooling and a dense layer."""
    return x.mean((1, 2)) @ v["out"]


def grouped_conv(x, kernel):
    """As many groups as the widths ask for."""
    return conv(x, kernel, groups=x.shape[-1] // kernel.shape[2])


def chain(v, x):
    x = jax.nn.sigmoid(norm(conv(x, v["a"]), v["norm"]))
    x = jax.nn.gelu(conv(x, v["b"])).transpose(0, 3, 1, 2)
    return jnp.tanh(x.reshape(x.shape[0], -1) @ v["c"]) @ v["out"]


def residual(v, x):
    x = jax.nn.sigmoid(conv(x, v["a"]))
    x = x + conv(jax.nn.gelu(conv(x, v["b"]) + v["bias"]), v["c"])
    return head(jnp.tanh(x), v)


def joined(v, x):
    a, b = jax.nn.sigmoid(conv(x, v["a"])), conv(x, v["b"])
    both = jnp.concatenate([a, b, a], -1)
    return head(jnp.tanh(conv(both, v["c"]))[..., ::-1], v)


def halves(v, x):
    x, cut = conv(x, v["a"]), v["b"].shape[2]
    first, second = jax.nn.sigmoid(x[..., :cut]), x[..., cut:]
    return head(conv(first, v["b"]), v) * second.mean((1, 2, 3))[:, None]


def gated(v, x):
    x = jax.nn.sigmoid(conv(x, v["a"]))
    gate = jax.nn.gelu(x.mean((1, 2)) @ v["squeeze"]) @ v["excite"]
    x = x * jax.nn.sigmoid(gate)[:, None, None] * jnp.tanh(conv(x, v["pixels"]))
    return head(x, v)


def depthwise(v, x):
    x = jax.nn.sigmoid(conv(x, v["a"]))
    return head(conv(x, v["deep"], groups=x.shape[-1]) + v["bias"], v)


def groups_of_two(v, x):
    return head(jax.nn.sigmoid(grouped_conv(jnp.tanh(conv(x, v["a"])), v["b"])), v)


def shuffled(v, x):
    x, shape = conv(x, v["a"]), x.shape[:3]
    x = x.reshape(*shape, len(v["rows"]), -1) + v["rows"][:, None]
    x = x.swapaxes(3, 4).reshape(*shape, -1)
    return head(jax.nn.sigmoid(grouped_conv(x, v["b"])), v)


def attending(v, x):
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    q, k, w = (jnp.einsum("bnc,chd->bnhd", x, v[name]) for name in ("q", "k", "v"))
    scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q + v["bias"], k))
    y = jnp.einsum("bhqk,bkhd->bqhd", scores, w)
    return jnp.einsum("bqhd,hdo->bo", jax.nn.sigmoid(y), v["out"])


def feature_maps(v, x):
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    q, k = jax.nn.softplus(x @ v["q"]), jax.nn.softplus(x @ v["k"])
    return jnp.einsum("bqd,bkd,bkc->bqc", q, k, x @ v["v"]).mean(1) @ v["out"]


def layer_norm(v, x):
    x = conv(x, v["a"]) + v["bias"]
    centred = x - x.mean(-1, keepdims=True)
    x = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 0.1) * v["scale"]
    return head(jax.nn.sigmoid(conv(x, v["b"])), v)


def softmax(v, x):
    return head(jax.nn.softmax(conv(x, v["a"])) * v["scale"], v)


def tied(v, x):
    return jax.nn.sigmoid(x @ v["w"] + v["bias"]) @ v["w"].T


def input_and_output(v, x):
    y = jax.nn.sigmoid(x + conv(x, v["a"]))
    return conv(jnp.tanh(conv(y, v["b"])), v["c"]) * v["gain"]


IMAGE = (2, 5, 4, 1)

NETS = [
    Net(
        "chain",
        chain,
        {"a": (3, 3, 1, 3), "norm": norm_shapes(3), "b": (1, 1, 3, 2), "c": (8, 3), "out": (3, 1)},
        ((3, 2, 2, 1),),
        {},
    ),
    Net(
        "residual",
        residual,
        {"a": (3, 3, 1, 3), "b": (1, 1, 3, 4), "bias": (4,), "c": (3, 3, 4, 3), "out": (3, 2)},
        (IMAGE,),
        {},
    ),
    Net(
        "joined",
        joined,
        {"a": (3, 3, 1, 3), "b": (1, 1, 1, 2), "c": (1, 1, 8, 4), "out": (4, 2)},
        (IMAGE,),
        {},
    ),
    Net("halves", halves, {"a": (3, 3, 1, 6), "b": (1, 1, 3, 4), "out": (4, 2)}, (IMAGE,), {}),
    Net(
        "gated",
        gated,
        {
            "a": (3, 3, 1, 3),
            "squeeze": (3, 2),
            "excite": (2, 3),
            "pixels": (1, 1, 3, 1),
            "out": (3, 1),
        },
        (IMAGE,),
        {},
    ),
    Net(
        "depthwise",
        depthwise,
        {"a": (3, 3, 1, 3), "deep": (3, 3, 1, 6), "bias": (6,), "out": (6, 1)},
        (IMAGE,),
        {},
    ),
    Net(
        "groups_of_two",
        groups_of_two,
        {"a": (3, 3, 1, 4), "b": (1, 1, 2, 6), "out": (6, 1)},
        (IMAGE,),
        {},
    ),
    Net(
        "shuffled",
        shuffled,
        {"a": (3, 3, 1, 6), "rows": (2,), "b": (1, 1, 2, 6), "out": (6, 1)},
        (IMAGE,),
        {},
    ),
    Net(
        "attending",
        attending,
        {"q": (1, 2, 3), "k": (1, 2, 3), "bias": (2, 3), "v": (1, 2, 4), "out": (2, 4, 1)},
        (IMAGE,),
        {},
    ),
    Net(
        "feature_maps",
        feature_maps,
        {"q": (1, 3), "k": (1, 3), "v": (1, 4), "out": (4, 1)},
        (IMAGE,),
        {},
    ),
    Net(
        "layer_norm",
        layer_norm,
        {"a": (3, 3, 1, 4), "bias": (4,), "scale": (4,), "b": (1, 1, 4, 3), "out": (3, 1)},
        (IMAGE,),
        {},
    ),
    Net("softmax", softmax, {"a": (3, 3, 1, 4), "scale": (4,), "out": (4, 1)}, (IMAGE,), {}),
    Net("tied", tied, {"w": (4, 3), "bias": (3,)}, ((5, 4),), {}),
    Net(
        "input_and_output",
        input_and_output,
        {"a": (3, 3, 2, 2), "b": (1, 1, 2, 4), "c": (1, 1, 4, 3), "gain": (3,)},
        ((2, 5, 6, 2),),
        {},
    ),
]


def leaves_of(variables) -> dict[str, np.ndarray]:
    """{path: array}."""
    found = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(a) for p, a in found}


class Trial:
    """A net that positions are deleted from."""

    def __init__(self, net: Net):
        self.net = net
        self.variables, self.inputs = draw(net, dtype=jnp.float64)
        self.output = jax.eval_shape(net.fn, self.variables, *self.inputs).shape

    def changed(self, positions, change) -> Any:
        """The variables after `change(array, indices, axis)` at some positions."""
        leaves = leaves_of(self.variables)
        for leaf, axis in {position[:2] for position in positions}:
            indices = [index for *where, index in positions if where == [leaf, axis]]
            leaves[leaf] = change(leaves[leaf], indices, axis)
        return jax.tree.unflatten(jax.tree.structure(self.variables), list(leaves.values()))

    def deleted(self, positions) -> Any:
        return self.changed(positions, lambda a, i, axis: np.delete(a, i, axis))

    def cleared(self, positions) -> Any:
        def clear(array, indices, axis):
            array = np.moveaxis(array.copy(), axis, 0)
            array[indices] = 0
            return np.moveaxis(array, 0, axis)

        return self.changed(positions, clear)

    def runs(self, positions) -> bool:
        """Whether the function takes what is left."""
        small = self.deleted(positions)
        if any(array.size == 0 for array in leaves_of(small).values()):
            return False
        try:
            return jax.eval_shape(self.net.fn, small, *self.inputs).shape == self.output
        except (TypeError, ValueError, ZeroDivisionError):
            return False

    def exact(self, positions) -> bool:
        """Whether these positions can be removed without a difference."""
        if not self.runs(positions):
            return False
        whole = self.net.fn(self.cleared(positions), *self.inputs)
        small = self.net.fn(self.deleted(positions), *self.inputs)
        return relative_error(whole, small) < 1e-9


def positions_of(groups, name: str, unit: int) -> frozenset[Position]:
    """Where a unit stands."""
    return frozenset(
        (place.leaf, place.axis, int(index))
        for place in groups.places[name]
        for index in np.flatnonzero(place.units == unit)
    )


@pytest.fixture(params=NETS, ids=lambda net: net.name)
def trial(request, float64):
    return Trial(request.param)


def parts_of(positions):
    """All proper parts of a small set; of a larger one those of at most two, or all but two."""
    count = len(positions)
    sizes = range(1, count) if count < 7 else (1, 2, count - 2, count - 1)
    return itertools.chain(*(itertools.combinations(sorted(positions), size) for size in sizes))


def test_every_unit_can_be_removed_and_no_part_of_it_alone(trial: Trial):
    groups = jprune.trace(trial.net.fn, trial.variables, *trial.inputs)
    for name, size in groups.sizes.items():
        for unit in range(size if size > 1 else 0):
            positions = positions_of(groups, name, unit)
            assert trial.exact(positions), (name, unit)
            assert not [part for part in parts_of(positions) if trial.exact(part)]


def test_no_channel_that_can_be_removed_is_frozen(trial: Trial):
    """All ways to delete one position each from some axes, whatever they are."""
    groups = jprune.trace(trial.net.fn, trial.variables, *trial.inputs)
    offered = {
        position
        for name, size in groups.sizes.items()
        for unit in range(size)
        for position in positions_of(groups, name, unit)
    }
    axes = {
        (leaf, axis): length
        for leaf, array in leaves_of(trial.variables).items()
        for axis, length in enumerate(array.shape)
        if length > 1 and not (array.ndim == 4 and axis < 2)
    }
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            if not trial.runs([(*where, 0) for where in chosen]):
                continue
            for indices in itertools.product(*(range(axes[where]) for where in chosen)):
                positions = [(*where, index) for where, index in zip(chosen, indices)]
                if not offered.issuperset(positions):
                    assert not trial.exact(positions), positions
