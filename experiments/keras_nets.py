"""The classifiers of keras.applications as pure functions, with variables drawn at random.

No weights are loaded, and none are allocated before `draw`: tracing needs shapes only.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np

SMALLEST = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
"""Side [pixels] below which a net refuses to be built; the others take 32."""


CALIBRATION = 8
"""Images whose statistics a random net gets."""
QUICK = {"xla_backend_optimization_level": 0}
"""How to compile what runs once: XLA would spend most of the time on optimising it."""


class KerasNet(NamedTuple):
    """A network as jprune takes it."""

    name: str
    fn: Callable[[Any, Any], Any]
    """`fn(variables, x) -> logits` in inference mode."""
    statistics: Callable[[Any, Any], dict[str, Any]]
    """`statistics(variables, x) -> {path: array}`, those of this batch, in training mode."""
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

    def call(variables: Any, x: Any, training: bool) -> Any:
        value = lambda part, variable: (
            jnp.zeros(variable.shape, variable.dtype)
            if is_counter(variable)
            else variables[part][variable.path]
        )
        values = [[value(part, one) for one in parts[part]] for part in ("params", "stats")]
        return model.stateless_call(*values, x, training=training)

    def statistics(variables: Any, x: Any) -> dict[str, Any]:
        new = zip(parts["stats"], call(variables, x, training=True)[1])
        return {variable.path: value for variable, value in new if not is_counter(variable)}

    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # one batch gives its own statistics, not a running average
    fn = lambda variables, x: call(variables, x, training=False)[0]
    pixels = any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers)
    return KerasNet(name, fn, statistics, shapes, example, pixels)


def bottlenecks(name: str, blocks: Sequence[int], side: int = 224) -> KerasNet:
    """A ResNet of any depth: so many bottlenecks in each of its stages."""
    layers = keras.layers

    def conv(x: Any, width: int, window: int, stride: int = 1) -> Any:
        x = layers.Conv2D(width, window, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    def block(x: Any, width: int, stride: int, first: bool) -> Any:
        y = layers.ReLU()(conv(x, width, 1))
        y = layers.ReLU()(conv(y, width, 3, stride))
        y = conv(y, 4 * width, 1)
        shortcut = conv(x, 4 * width, 1, stride) if first else x
        return layers.ReLU()(layers.Add()([y, shortcut]))

    def make() -> keras.Model:
        inputs = layers.Input((side, side, 3))
        x = layers.ReLU()(conv(inputs, 64, 7, 2))
        x = layers.MaxPooling2D(3, 2, "same")(x)
        for stage, repeats in enumerate(blocks):
            for number in range(repeats):
                stride = 2 if stage and not number else 1
                x = block(x, 64 * 2**stage, stride, first=not number)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(1000)(x))

    return as_function(make, name, jax.ShapeDtypeStruct((1, side, side, 3), np.float32))


def draw(
    net: KerasNet, seed: int = 0, masked: Callable[[Any], Any] = lambda variables: variables
) -> tuple[Any, np.ndarray]:
    """Random variables, statistics included, and a random input, as NumPy arrays.

    Statistics are those of a random batch, then disturbed: else signals die out or are drowned by
    constants within some twenty layers, and no test would notice an exchange of early channels. The
    last layer is scaled so that the largest logit is 1 or so.

    Args:
        net: whose variables to draw.
        seed: of all random numbers.
        masked: what will be done to the variables: the statistics are those of the masked net.
    """
    rng = np.random.default_rng(seed)
    variables = {
        part: {path: _draw_one(rng, path, leaf.shape) for path, leaf in leaves.items()}
        for part, leaves in net.shapes.items()
    }
    x = rng.standard_normal((CALIBRATION, *net.example.shape[1:]), np.float32)
    x = 127.5 + 64 * x if net.pixels else x
    if net.shapes["stats"]:
        statistics = lambda variables, x: net.statistics(masked(variables), x)
        observe = jax.jit(statistics, compiler_options=QUICK)
        found = jax.device_get(observe(variables, x))
        variables["stats"] = {path: _disturbed(rng, path, value) for path, value in found.items()}
    x = x[: net.example.shape[0]]
    masked_fn = lambda variables, x: net.fn(masked(variables), x)
    logits = jax.jit(masked_fn, compiler_options=QUICK)(variables, x)
    size = np.float32(jnp.abs(logits).max())
    params = variables["params"]
    last = [path for path in params if params[path].shape[-1:] == (1000,)]
    scaled = {path: params[path] / size for path in last}
    return {**variables, "params": {**params, **scaled}}, x


def _disturbed(rng: np.random.Generator, path: str, value: np.ndarray) -> np.ndarray:
    """A statistic near that of the batch.

    Taking off exactly the mean in every layer would amplify rounding errors a hundredfold in a
    hundred layers, and so would a channel that is dead in this batch.
    """
    if path.endswith("variance"):
        value = np.maximum(value, 0.05 * value.mean())
        return value * rng.uniform(0.7, 1.4, value.shape).astype(np.float32)
    return value * rng.uniform(0.6, 1.0, value.shape).astype(np.float32)


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
