"""Nets of Equinox: modules for one example, with their state apart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import PyTree, Variables
from jprune.zoo.net import Net, Paths, as_arguments, as_float32, cast, example_of, parameters_of


def from_equinox(
    module: Any,
    shape: Any,
    *,
    name: str | None = None,
    channels_first: bool = True,
    axis_name: str = "batch",
    dtype: Any = jnp.float32,
) -> Net:
    """Turns an Equinox module, which takes one example, into pure functions of batches.

    Floating-point arrays of the module are trained. Its state (`eqx.nn.State`) and its other arrays
    are `stats`. A module whose call takes `state` is given it, and one that takes `key` gets a key
    for every example in training and None in inference, which `eqx.nn.inference_mode` switches.

    Args:
        module: a function `make(key) -> module`, such as its class, called anew for every `init`;
            or a module, or `(module, state)` from `eqx.nn.make_with_state`, whose weights are then
            those of every `init`.
        shape: (height, width, channels) of one image; for several inputs a tuple (positional
            arguments of the module) or dictionary (keyword arguments) of `jax.ShapeDtypeStruct`,
            the batch axis of 1 included.
        name: of the net; None: that of the class, in small letters.
        channels_first: inputs with three axes reach the module as [channels, height, width], as
            Equinox's convolutions want them.
        axis_name: of the batch, for batch norms.
        dtype: compute type: parameters and inputs are cast to it.

    Raises:
        ArgumentError: another compute type than float32 for a net with batch norms, which Equinox
            computes in the type of their statistics.

    Example:
        >>> import equinox as eqx
        >>> net = from_equinox(lambda key: eqx.nn.Linear(3, 2, key=key), (3,))
        >>> net.name, jax.tree.map(jnp.shape, net.init(jax.random.key(0)))
        ('linear', {'params': {'bias': (2,), 'weight': (2, 3)}, 'stats': {}})
    """
    import equinox as eqx

    example = example_of(shape)
    make = _maker(module, eqx)
    abstract, state = eqx.filter_eval_shape(make, jax.random.key(0))
    is_float = lambda x: hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
    params, rest = eqx.partition(abstract, is_float)
    arrays, static = eqx.partition(rest, lambda x: hasattr(x, "dtype"))
    of_params, of_stats = Paths(params), Paths({"arrays": arrays, "state": state})
    if jnp.dtype(dtype) != jnp.float32 and any(map(is_float, jax.tree.leaves(state))):
        raise errors.ArgumentError(
            f"from_equinox got dtype={jnp.dtype(dtype).name} for a {type(abstract).__name__} with "
            "batch norms, which Equinox computes in the type of their statistics, float32. Leave "
            "dtype out, or use norms without state."
        )
    taken = parameters_of(type(abstract).__call__)
    stateful = bool(jax.tree.leaves(state)) and "state" in taken

    def init(key: jax.Array) -> Variables:
        module, state = make(key)
        params, rest = eqx.partition(module, is_float)
        arrays, _ = eqx.partition(rest, eqx.is_array)
        stats = of_stats.to_dicts({"arrays": arrays, "state": state})
        return {"params": of_params.to_dicts(params), "stats": stats}

    def run(variables: Variables, x: Any, keys: Any) -> tuple[Any, Any]:
        params = of_params.from_dicts(cast(variables["params"], dtype))
        stats = of_stats.from_dicts(variables["stats"])
        module = eqx.combine(params, stats["arrays"], static)
        module = eqx.nn.inference_mode(module, keys is None)
        x = cast(jax.tree.map(_channels_first if channels_first else jnp.asarray, x), dtype)

        def one(x: Any, state: Any, key: Any) -> tuple[Any, Any]:
            args, named = as_arguments(x)
            named |= {"state": state} if stateful else {}
            named |= {"key": key} if "key" in taken else {}
            out = module(*args, **named)
            return out if stateful else (out, state)

        axes = (0, None, None if keys is None else 0)
        each = jax.vmap(one, in_axes=axes, out_axes=(0, None), axis_name=axis_name)
        out, state = each(x, stats["state"], keys)
        new = of_stats.to_dicts({"arrays": stats["arrays"], "state": state})
        return as_float32(out), new

    def fn(variables: Variables, x: Any) -> Any:
        return run(variables, x, None)[0]

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        return run(variables, x, jax.random.split(key, len(jax.tree.leaves(x)[0])))

    return Net(name or type(abstract).__name__.lower(), init, fn, train_fn, example)


def _maker(module: Any, eqx: Any) -> Callable[[jax.Array], tuple[Any, Any]]:
    """`make(key) -> (module, state)`."""
    if isinstance(module, tuple):
        return lambda key: module
    if isinstance(module, eqx.Module):
        return eqx.nn.make_with_state(lambda key: module)
    # By keyword where there is one: classes take it last, or by keyword alone.
    by_name = "key" in parameters_of(module)
    return eqx.nn.make_with_state(lambda key: module(key=key) if by_name else module(key))


def _channels_first(x: Any) -> jax.Array:
    """[batch, h, w, c] -> [batch, c, h, w]; inputs of another rank stay as they are."""
    x = jnp.asarray(x)
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
