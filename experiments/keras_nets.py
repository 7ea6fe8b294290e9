"""The classifiers of keras.applications as pure functions, with variables drawn at random.

No weights are loaded, and none are allocated before `draw`: tracing needs shapes only.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np

SMALLEST = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
"""Side [pixels] below which a net refuses to be built; the others take 32."""


class KerasNet(NamedTuple):
    """A network as jprune takes it."""

    name: str
    fn: Callable[[Any, Any], Any]
    """`fn(variables, x) -> logits` in inference mode."""
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]]
    """Of the variables: `{"params": {path: shape}, "stats": {path: shape}}`."""
    example: jax.ShapeDtypeStruct
    pixels: bool
    """The net begins by rescaling, so it wants inputs from 0 to 255."""


def names() -> list[str]:
    """All classifiers of keras.applications."""
    return sorted(name for name in dir(keras.applications) if name[0].isupper())


def build(name: str, side: int = 96, batch: int = 2, **options: Any) -> KerasNet:
    """A classifier of keras.applications for square images.

    Args:
        name: of the function in `keras.applications`.
        side: height and width of the images; raised to the smallest that the net takes.
        batch: images at a time.
        **options: further arguments of that function.
    """
    side = max(side, SMALLEST.get(name, 32))
    make = getattr(keras.applications, name)
    shape = (side, side, 3)
    return as_function(
        lambda: make(weights=None, classifier_activation=None, input_shape=shape, **options),
        name,
        jax.ShapeDtypeStruct((batch, *shape), np.float32),
    )


def as_function(
    make: Callable[[], keras.Model], name: str, example: jax.ShapeDtypeStruct
) -> KerasNet:
    """A Keras model as a pure function, its variables not allocated."""
    with keras.StatelessScope(initialize_variables=False):
        model = make()
    # Otherwise Keras would initialise the variables in the next scope that closes.
    keras.utils.clear_session(free_memory=False)
    parts = {"params": model.trainable_variables, "stats": model.non_trainable_variables}
    # Counters and random seeds are whole numbers: nothing that shrinks.
    is_counter = lambda variable: "int" in variable.dtype
    shapes = {
        part: {
            variable.path: jax.ShapeDtypeStruct(variable.shape, variable.dtype)
            for variable in variables
            if not is_counter(variable)
        }
        for part, variables in parts.items()
    }

    def fn(variables: Any, x: Any) -> Any:
        value = lambda part, variable: (
            jnp.zeros(variable.shape, variable.dtype)
            if is_counter(variable)
            else variables[part][variable.path]
        )
        values = [[value(part, one) for one in parts[part]] for part in ("params", "stats")]
        return model.stateless_call(*values, x, training=False)[0]

    pixels = any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers)
    return KerasNet(name, fn, shapes, example, pixels)


def draw(net: KerasNet, seed: int = 0) -> tuple[Any, jax.Array]:
    """Random variables, statistics included, and a random input.

    The last layer is scaled so that the largest logit is 1 or so: nothing passes for being small.
    """
    rng = np.random.default_rng(seed)
    variables = {
        part: {path: jnp.asarray(_draw_one(rng, path, leaf.shape)) for path, leaf in leaves.items()}
        for part, leaves in net.shapes.items()
    }
    x = rng.standard_normal(net.example.shape, np.float32)
    x = jnp.asarray(127.5 + 64 * x if net.pixels else x)
    size = float(jnp.abs(jax.jit(net.fn)(variables, x)).max())
    params = variables["params"]
    last = [path for path in params if params[path].shape[-1:] == (1000,)]
    scaled = {path: params[path] / size for path in last}
    return {**variables, "params": {**params, **scaled}}, x


def _draw_one(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels keep the size of their inputs; scales and variances are positive, around one."""
    if len(shape) > 1:
        depthwise = len(shape) == 4 and shape[3] == 1
        fan = np.prod(shape[:2]) if depthwise else np.prod(shape[:-1])
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan))
    if path.endswith(("gamma", "variance")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if "layer_scale" in path:
        return rng.uniform(0.1, 0.5, shape).astype(np.float32)
    return 0.2 * rng.standard_normal(shape, np.float32)
