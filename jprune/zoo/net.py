"""What a net is, and how a Flax module becomes one.

Everything that jprune does to a net it does to pure functions of a tree of arrays. This file is the
only one that knows how to get such functions out of Flax NNX.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jprune.base import PyTree, Variables


class Net(NamedTuple):
    """A network as pure functions of `variables = {"params": ..., "stats": ...}`.

    `params` are trained; `stats` are batch-norm statistics, `{}` where there are none. Both are
    nested dicts of arrays. Images are [batch, height, width, channels], float32. Nothing is jitted:
    wrap `fn` in `jax.jit` where you use it.

    Attributes:
        init: `init(key) -> variables`, float32.
        fn: `fn(variables, x) -> logits [batch, classes]`, float32, in inference mode.
        train_fn: `train_fn(variables, x, key) -> (logits, stats)`: in training mode, with the
            statistics after this batch in the structure of `variables["stats"]`. `key` is for nets
            that draw (dropout).
        example: shape and type of the input for one image, batch axis 1 included.
    """

    name: str
    init: Callable[[jax.Array], Variables]
    fn: Callable[[Variables, Any], jax.Array]
    train_fn: Callable[[Variables, Any, jax.Array], tuple[jax.Array, PyTree]]
    example: jax.ShapeDtypeStruct


def from_module(
    name: str, make: Callable[[nnx.Rngs], nnx.Module], shape: tuple[int, int, int]
) -> Net:
    """Turns a Flax NNX module into pure functions.

    Args:
        name: of the net.
        make: `make(rngs) -> module`. The module holds nothing but `nnx.Param` and `nnx.BatchStat`.
            It is called with images, and in training also with `key` if it takes one: the source
            of all its random numbers, such as those of dropout.
        shape: (height, width, channels) of one image.

    Returns:
        The net. Neither `make` nor the module is run on real arrays before `init`.

    Example:
        >>> net = from_module("line", lambda rngs: nnx.Linear(3, 2, rngs=rngs), (4, 4, 3))
        >>> jax.tree.map(jnp.shape, net.init(jax.random.key(0)))
        {'params': {'bias': (2,), 'kernel': (3, 2)}, 'stats': {}}
    """
    # Only the structure is wanted here: no array is made, so a large net costs nothing until
    # `init`.
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    draws = "key" in inspect.signature(type(module).__call__).parameters
    # Flax keeps the mode in the module, not in the call. The two structures differ in nothing else,
    # so one tree of variables fits both.
    module.eval()
    inference = nnx.split(module, nnx.Param, nnx.BatchStat)[0]
    module.train()
    training = nnx.split(module, nnx.Param, nnx.BatchStat)[0]

    def init(key: jax.Array) -> Variables:
        # nnx.split returns (structure, params, stats) in the order of the filters.
        _, params, stats = nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return {"params": nnx.to_pure_dict(params), "stats": nnx.to_pure_dict(stats)}

    def fn(variables: Variables, x: Any) -> jax.Array:
        run = nnx.merge(inference, variables["params"], variables["stats"])
        return run(x).astype(jnp.float32)

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> tuple[jax.Array, PyTree]:
        run = nnx.merge(training, variables["params"], variables["stats"])
        # `run` is this call's own: its new statistics are read off, and the function stays pure.
        logits = (run(x, key=key) if draws else run(x)).astype(jnp.float32)
        return logits, nnx.to_pure_dict(nnx.state(run, nnx.BatchStat))

    return Net(name, init, fn, train_fn, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
