"""Nets of Keras 3 on JAX: functional and subclassed models, with the weights that they have."""

import collections
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jprune import errors
from jprune.base import PyTree, Variables
from jprune.zoo.net import Net, as_float32, example_of

SEEDS = "seed_generator_state"
"""What Keras calls the state of a stream of random numbers."""


def from_keras(model: Any, shape: Any = None, *, name: str | None = None) -> Net:
    """Turns a Keras model into pure functions.

    Trainable variables are trained, all others are `stats`, each under its path; a model that is
    frozen (`trainable = False`) has none of the first. Streams of random numbers (dropout) begin
    from the key of the training step. The compute type is that of the model's dtype policy.

    Args:
        model: functional, sequential or subclassed. Its weights are those of every `init`,
            whatever the key; a subclassed one that has none yet is built here.
        shape: of one example without the batch, for a model that does not know it; for several
            inputs a tuple, list or dictionary of `jax.ShapeDtypeStruct`, the batch axis of 1
            included, as the model takes them. None: what the model was built for.
        name: of the net; None: that of the model.

    Raises:
        ArgumentError: Keras runs on another backend than JAX; the shape is not known, or leaves
            an axis open.

    Example:
        >>> import os
        >>> os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
        >>> import keras
        >>> layers = [keras.Input((3,)), keras.layers.Dense(2, name="out")]
        >>> net = from_keras(keras.Sequential(layers, name="line"))
        >>> jax.tree.map(jnp.shape, net.init(jax.random.key(0)))
        {'params': {'line': {'out': {'bias': (2,), 'kernel': (3, 2)}}}, 'stats': {}}
    """
    import keras

    if keras.backend.backend() != "jax":
        raise errors.ArgumentError(
            f"Keras runs on {keras.backend.backend()}; a net of jprune needs JAX. Write "
            'os.environ["KERAS_BACKEND"] = "jax" before Keras is imported.'
        )
    example = _example(model, shape)
    if not model.built:
        model(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), example))
    trained, others = list(model.trainable_variables), list(model.non_trainable_variables)
    names = _names([*trained, *others])
    of_params, rest = names[: len(trained)], names[len(trained) :]
    of_stats = [name for name, v in zip(rest, others) if v.name != SEEDS]

    def init(key: jax.Array) -> Variables:
        del key
        values = {name: jnp.asarray(v.value) for name, v in zip(names, [*trained, *others])}
        return {"params": _nested(values, of_params), "stats": _nested(values, of_stats)}

    def run(training: bool, variables: Variables, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        values = _flat(variables["params"]) | _flat(variables["stats"])
        for number, (stream, variable) in enumerate(zip(rest, others)):
            if variable.name == SEEDS:
                bits = jax.random.bits(jax.random.fold_in(key, number), variable.shape, jnp.uint32)
                values[stream] = bits.astype(variable.dtype)
        pairs = [(v, values[name]) for name, v in zip(names, [*trained, *others])]
        # As `stateless_call`, which would hand `training` to models that do not take it.
        with keras.StatelessScope(state_mapping=pairs) as scope:
            out = model(list(x) if isinstance(x, tuple) else x, training=training)
        after = {n: scope.get_current_value(v) for n, v in zip(rest, others)}
        after = {name: values[name] if now is None else now for name, now in after.items()}
        return as_float32(out), _nested(after, of_stats)

    def fn(variables: Variables, x: Any) -> Any:
        return run(False, variables, x, jax.random.key(0))[0]

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        return run(True, variables, x, key)

    return Net(name or model.name, init, fn, train_fn, example)


def _example(model: Any, shape: Any) -> Any:
    """Shapes and types of the inputs.

    Raises:
        ArgumentError: neither the model nor the caller knows them.
    """
    if shape is not None:
        return example_of(shape)
    inputs = getattr(model, "inputs", None)
    if not inputs or any(None in leaf.shape[1:] for leaf in inputs):
        shapes = [tuple(leaf.shape[1:]) for leaf in inputs or ()]
        raise errors.ArgumentError(
            f"the model {model.name} takes inputs of shape {shapes or 'unknown'}; a net needs all "
            "axes. Write from_keras(model, shape=(height, width, channels))."
        )
    structs = [jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for leaf in inputs]
    return tuple(structs) if len(structs) > 1 else structs[0]


def _names(variables: list[Any]) -> list[str]:
    """Paths of variables, the same for every model that is built by the same code.

    Keras numbers layers without a name through the whole process: in the second model of a class
    they begin at conv2d_7, say. Here they begin anew. The second variable of a path gets a number.
    """
    paths = [variable.path.split("/") for variable in variables]
    words = _class_words()
    first: dict[str, int] = {}
    for base, number in (_numbered(part) for path in paths for part in path):
        if base in words:
            first[base] = min(first.get(base, number), number)

    def renamed(part: str) -> str:
        base, number = _numbered(part)
        if base not in first:
            return part
        return base if number == first[base] else f"{base}_{number - first[base]}"

    counts = collections.Counter()
    names = []
    for path in paths:
        name = "/".join(map(renamed, path))
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return names


def _numbered(part: str) -> tuple[str, int]:
    """("conv2d", 3) of conv2d_3, and ("conv2d", 0) of conv2d."""
    base, _, number = part.rpartition("_")
    return (base, int(number)) if base and number.isdecimal() else (part, 0)


def _class_words() -> set[str]:
    """The names that Keras gives layers of its own accord: their classes' in small letters."""
    import keras

    classes, waiting = set(), [keras.Layer]
    while waiting:
        kind = waiting.pop()
        if kind not in classes:
            classes.add(kind)
            waiting += kind.__subclasses__()
    # MaxPooling2D -> max_pooling2d
    words = (re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind.__name__) for kind in classes)
    return {re.sub("([a-z])([A-Z])", r"\1_\2", word).lower() for word in words}


def _nested(values: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    return unflatten_dict({tuple(name.split("/")): values[name] for name in names})


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in flatten_dict(tree).items()}
