"""Nets of Haiku: functions that make their parameters while they run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import PyTree, Variables
from jprune.zoo.net import Net, as_arguments, as_float32, cast, example_of, mode_of


def from_haiku(
    forward: Callable[..., Any], shape: Any, *, name: str | None = None, dtype: Any = jnp.float32
) -> Net:
    """Turns a Haiku function into pure functions.

    The mode is told by an argument such as `is_training` (see `zoo.net.MODES`). `hk.next_rng_key`
    draws from the key of the training step, in inference from a constant.

    Args:
        forward: `forward(x)` or `forward(x, is_training)`, which makes modules and calls them; not
            transformed.
        shape: (height, width, channels) of one image; for several inputs a tuple (positional
            arguments of the function) or dictionary (keyword arguments) of `jax.ShapeDtypeStruct`,
            the batch axis of 1 included.
        name: of the net; None: that of the function.
        dtype: compute type: parameters and inputs are cast to it, and what each module returns.
            Batch norms compute in the type of their statistics, float32, before that.

    Example:
        >>> import haiku as hk
        >>> net = from_haiku(lambda x: hk.Linear(2)(x), (3,), name="line")
        >>> jax.tree.map(jnp.shape, net.init(jax.random.key(0)))
        {'params': {'linear': {'b': (2,), 'w': (3, 2)}}, 'stats': {}}
    """
    import haiku as hk

    example = example_of(shape)
    plain = hk.data_structures.to_mutable_dict

    def in_type(call: Any, args: Any, named: Any, context: Any) -> Any:
        # Behind a batch norm the statistics would make everything float32.
        del context
        return cast(call(*args, **named), dtype)

    def narrow(*args: Any, **named: Any) -> Any:
        with hk.intercept_methods(in_type):
            return forward(*args, **named)

    exact = jnp.dtype(dtype) == jnp.float32
    net = hk.transform_with_state(forward if exact else narrow)

    def init(key: jax.Array) -> Variables:
        # In training mode: some make their statistics there alone.
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example)
        args, named = as_arguments(zeros)
        made = hk.transform_with_state(forward).init(key, *args, **named, **mode_of(forward, True))
        return dict(zip(("params", "stats"), map(plain, made)))

    def run(training: bool, variables: Variables, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        args, named = as_arguments(cast(jax.tree.map(jnp.asarray, x), dtype))
        params, stats = cast(variables["params"], dtype), variables["stats"]
        out, new = net.apply(params, stats, key, *args, **named, **mode_of(forward, training))
        return as_float32(out), jax.tree.map(lambda a, b: a.astype(b.dtype), plain(new), stats)

    def fn(variables: Variables, x: Any) -> Any:
        return run(False, variables, x, jax.random.key(0))[0]

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        return run(True, variables, x, key)

    return Net(name or forward.__name__.strip("<>"), init, fn, train_fn, example)
