"""The few layers that the families share, so that every net pads, starts and normalises alike.

Kernels start from He et al.'s normal distribution (fan in), biases from zero, scales from one.
Parameters and statistics are float32 whatever the compute type is.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jprune import errors

HE = jax.nn.initializers.he_normal()


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation in float32, handed back in the type of its input.

    Flax's own casts the running statistics to the compute type in inference: in bfloat16 that costs
    two to three digits of the mean.
    """

    def __call__(self, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
        """[..., channels] -> the same, normalised over all axes but the last."""
        # y = scale (x - mean) / sqrt(var + epsilon) + bias, all of it in float32; only y is cast
        # back.
        return super().__call__(x.astype(jnp.float32), *args, **options).astype(x.dtype)


def norm(channels: int, rngs: nnx.Rngs, epsilon: float = 1e-5) -> BatchNorm:
    """A batch normalisation; every training step replaces a tenth of its running statistics."""
    # Flax's momentum is what stays: mean <- 0.9 mean + 0.1 (mean of the batch). torch's is what
    # comes, 0.1.
    return BatchNorm(channels, momentum=0.9, epsilon=epsilon, rngs=rngs)


def conv(
    inputs: int,
    outputs: int,
    size: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    *,
    stride: int = 1,
    groups: int = 1,
    padding: str | int | None = None,
    bias: bool = False,
) -> nnx.Conv:
    """A square convolution; unless told otherwise it pads `size // 2` on all sides."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        # An integer pads both ends alike, as torch does. "SAME" would pad one pixel more at the end
        # when the stride is 2, and weights trained elsewhere would see shifted images.
        padding=size // 2 if padding is None else padding,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=HE,
        dtype=dtype,
        rngs=rngs,
    )


class Dense(nnx.Linear):
    """A dense layer whose outputs may have dropout, at a rate that is a scalar of the statistics.

    There (`stats/<layer>/dropout`) functional code can change it, as Han et al. (2015, arXiv
    1506.02626) do after pruning.
    """

    dropout: nnx.BatchStat | None = None

    def dropped(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Applies dropout to the outputs; returns them unchanged without a key or a rate.

        References:
            Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, Dropout, 2014 (scaled in
            training, so that inference needs nothing).
        """
        if self.dropout is None or key is None:
            return x
        # y = x m / (1 - p) with m ~ Bernoulli(1 - p), so that E[y] = x. The rate is an array, not a
        # number of the program: setting it anew does not compile anew.
        keep = 1 - self.dropout[...]
        return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0).astype(x.dtype)


def dense(
    inputs: int, outputs: int, dtype: jnp.dtype, rngs: nnx.Rngs, dropout: float = 0.0
) -> Dense:
    """A dense layer with bias, and with dropout if its rate is above 0.

    Raises:
        ArgumentError: a rate outside [0, 1).
    """
    if not 0 <= dropout < 1:
        raise errors.ArgumentError(
            f"dropout={dropout} is outside [0, 1): it is the fraction dropped in training."
        )
    layer = Dense(inputs, outputs, kernel_init=HE, dtype=dtype, rngs=rngs)
    if dropout:
        # Only where there is a rate: a net without dropout has no such leaf to carry along.
        layer.dropout = nnx.BatchStat(jnp.asarray(dropout, jnp.float32))
    return layer


def max_pool(x: jax.Array, size: int = 2, padding: Any = "VALID") -> jax.Array:
    """[batch, h, w, c] -> [batch, h // 2, w // 2, c], the largest of `size` x `size` pixels."""
    return nnx.max_pool(x, (size, size), strides=(2, 2), padding=padding)


def average_pool(x: jax.Array) -> jax.Array:
    """[batch, h, w, c] -> [batch, h // 2, w // 2, c], the mean of every 2 x 2 pixels."""
    return nnx.avg_pool(x, (2, 2), strides=(2, 2))


def global_average(x: jax.Array) -> jax.Array:
    """[batch, h, w, c] -> [batch, c], the mean over all pixels."""
    return jnp.mean(x, axis=(1, 2))


def number(module: nnx.Module, name: str, children: Iterable[nnx.Module]) -> tuple[str, ...]:
    """Sets the children as attributes `name1`, `name2`, ... of a module; returns these names.

    A list of modules would put a bare number into every parameter's path; this keeps paths such as
    `block1/conv1/kernel`.
    """
    names = []
    for position, child in enumerate(children, start=1):
        # Children are attributes, not a list: the names of attributes are the paths of the leaves.
        names.append(f"{name}{position}")
        setattr(module, names[-1], child)
    return tuple(names)


def chain(module: nnx.Module, names: Sequence[str], x: jax.Array) -> jax.Array:
    """Calls the named children one after another."""
    for name in names:
        x = getattr(module, name)(x)
    return x


def require_side(net: str, shape: tuple[int, int, int], smallest: int, instead: str) -> None:
    """Refuses images that a net would shrink to nothing.

    Raises:
        ArgumentError: height or width is below `smallest`.
    """
    # Without this check JAX would fail later, or give an empty mean: NaN.
    if min(shape[:2]) < smallest:
        raise errors.ArgumentError(
            f"{net} got images of {shape[0]} x {shape[1]}; it needs {smallest} x {smallest} at "
            f"least, or its pooling leaves no pixel. Use {instead}, or larger images."
        )
