"""Nets of Flax: modules of NNX and of Linen."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from jprune.base import PyTree, Variables
from jprune.zoo.net import Net, as_arguments, as_float32, example_of, mode_of, parameters_of

PARAMS = "params"


def from_nnx(
    module: nnx.Module | Callable[..., nnx.Module], shape: Any, *, name: str | None = None
) -> Net:
    """Turns a Flax NNX module into pure functions.

    `nnx.Param` and what is derived from it is trained; variables of all other types are `stats`
    and can be pruned with the channels that they belong to. Streams of random numbers are no
    variables: in training they begin anew from the key of every step, in inference from a constant.
    The mode is set by `module.train()` and `module.eval()`, and by an argument of the call such as
    `train` (see `zoo.net.MODES`). The compute type is that of the module's own layers.

    Args:
        module: the class, or a function `make(rngs) -> module`, called anew for every `init`; or a
            module, whose weights are then those of every `init`. A module whose call takes `key`
            is given the key of the training step.
        shape: (height, width, channels) of one image; for several inputs a tuple (positional
            arguments of the module) or dictionary (keyword arguments) of `jax.ShapeDtypeStruct`,
            the batch axis of 1 included.
        name: of the net; None: that of the class, in small letters.

    Returns:
        The net. A function is not run on real arrays before `init`.

    Example:
        >>> net = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs), (4, 4, 3))
        >>> net.name, jax.tree.map(jnp.shape, net.init(jax.random.key(0)))
        ('linear', {'params': {'bias': (2,), 'kernel': (3, 2)}, 'stats': {}})
    """
    example = example_of(shape)
    # Only the structure is wanted here: no array is made, so a large net costs nothing until
    # `init`.
    shell = nnx.eval_shape(lambda: _made(module, nnx.Rngs(0)))
    call = type(shell).__call__
    draws = "key" in parameters_of(call)
    graphs, names, random = {}, {}, {}
    for training in (False, True):
        # Flax keeps the mode in the module, not in the call. The two structures differ in nothing
        # else, so one tree of variables fits both.
        shell.train() if training else shell.eval()
        graphs[training], params, random, rest = _split(shell)
        names = {PARAMS: _names(params), "stats": _names(rest)}

    def run(training: bool, variables: Variables, x: Any, key: jax.Array) -> tuple[Any, Any]:
        states = [_restored(variables[part], names[part]) for part in (PARAMS, "stats")]
        net = nnx.merge(graphs[training], states[0], _streams(random, key), states[1])
        args, named = as_arguments(x)
        drawn = {"key": key} if draws and training else {}
        # `net` is this call's own: its new statistics are read off, and the function stays pure.
        return as_float32(net(*args, **named, **drawn, **mode_of(call, training))), net

    def init(key: jax.Array) -> Variables:
        _, params, _, rest = _split(_made(module, nnx.Rngs(key)))
        return {PARAMS: _as_dicts(params), "stats": _as_dicts(rest)}

    def fn(variables: Variables, x: Any) -> Any:
        return run(False, variables, x, jax.random.key(0))[0]

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        out, net = run(True, variables, x, key)
        after = {_text(path): leaf for path, leaf in flatten_dict(_split(net)[3]).items()}
        # What a call has added (`sow`) is no variable.
        return out, unflatten_dict({path: after[path] for path in names["stats"]})

    return Net(name or type(shell).__name__.lower(), init, fn, train_fn, example)


def _made(module: Any, rngs: nnx.Rngs) -> nnx.Module:
    if isinstance(module, nnx.Module):
        # A copy: the mode of the user's module stays as it is.
        return nnx.clone(module)
    return module(rngs=rngs) if "rngs" in parameters_of(module) else module(rngs)


def _split(module: nnx.Module) -> tuple[Any, dict[Any, Any], dict[Any, Any], dict[Any, Any]]:
    """The structure; parameters, streams of random numbers and the rest as plain dictionaries."""
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params, random, rest = (nnx.to_pure_dict(state) for state in states)
    return graph, params, random, rest


def _text(path: tuple[Any, ...]) -> tuple[str, ...]:
    # Modules in lists have numbers as keys, which files of variables do not hold.
    return tuple(str(part) for part in path)


def _names(tree: Mapping[Any, Any]) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """{path of text: path as Flax has it} of all leaves."""
    return {_text(path): path for path in flatten_dict(tree)}


def _as_dicts(tree: Mapping[Any, Any]) -> dict[str, Any]:
    return unflatten_dict({_text(path): leaf for path, leaf in flatten_dict(tree).items()})


def _restored(tree: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[Any, Any]:
    return unflatten_dict({names[path]: leaf for path, leaf in flatten_dict(tree).items()})


def _streams(random: Mapping[Any, Any], key: jax.Array) -> dict[Any, Any]:
    """The streams as they begin from a key: each with a key of its own, none drawn from yet."""
    begun = {}
    for number, (path, leaf) in enumerate(sorted(flatten_dict(random).items(), key=_order)):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, number)
            begun[path] = jax.random.split(own, leaf.shape) if leaf.shape else own
        else:
            begun[path] = jnp.zeros(leaf.shape, leaf.dtype)
    return unflatten_dict(begun)


def _order(entry: tuple[tuple[Any, ...], Any]) -> tuple[str, ...]:
    return _text(entry[0])


def from_linen(module: nn.Module, shape: Any, *, name: str | None = None) -> Net:
    """Turns a Flax Linen module into pure functions.

    The collection "params" is trained; all other collections are `stats`, under their names. Every
    stream of random numbers (dropout) draws from the key of the training step, in inference from a
    constant. The mode is told by an argument of the call such as `train` (see `zoo.net.MODES`).
    The compute type is that of the module's own layers.

    Args:
        module: a module, which is no more than a description in Linen.
        shape: (height, width, channels) of one image; for several inputs a tuple (positional
            arguments of the module) or dictionary (keyword arguments) of `jax.ShapeDtypeStruct`,
            the batch axis of 1 included.
        name: of the net; None: that of the class, in small letters.

    Example:
        >>> net = from_linen(nn.Dense(2), (3,))
        >>> net.name, jax.tree.map(jnp.shape, net.init(jax.random.key(0)))
        ('dense', {'params': {'bias': (2,), 'kernel': (3, 2)}, 'stats': {}})
    """
    example = example_of(shape)
    call = type(module).__call__
    # Streams without a key of their own draw from that of "params".
    streams = lambda key: {PARAMS: key}

    def init(key: jax.Array) -> Variables:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example)
        args, named = as_arguments(zeros)
        drawn = module.init(streams(key), *args, **named, **mode_of(call, False))
        drawn = dict(nn.meta.unbox(drawn))
        return {PARAMS: drawn.pop(PARAMS, {}), "stats": drawn}

    collections = tuple(jax.eval_shape(init, jax.random.key(0))["stats"])

    def run(training: bool, variables: Variables, x: Any, key: jax.Array) -> Any:
        tree = {PARAMS: variables[PARAMS], **variables["stats"]}
        args, named = as_arguments(x)
        settings = {**named, **mode_of(call, training)}
        mutable = list(collections) if training else False
        return module.apply(tree, *args, rngs=streams(key), mutable=mutable, **settings)

    def fn(variables: Variables, x: Any) -> Any:
        return as_float32(run(False, variables, x, jax.random.key(0)))

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        out, new = run(True, variables, x, key)
        return as_float32(out), {name: new[name] for name in collections}

    return Net(name or type(module).__name__.lower(), init, fn, train_fn, example)
