"""Learning rates over the steps of a training."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from jprune.base import (
    Schedule,
)


def one_cycle(peak: float, steps: int) -> Schedule:
    """Up in a line over the first 30 % of the steps, down in a line to nothing.

    References:
        Smith, Topin, Super-convergence, 2018, arXiv 1708.07120 (without its last phase).

    Example:
        >>> [round(float(one_cycle(1.0, 10)(step)), 2) for step in (0, 2, 9)]
        [0.33, 1.0, 0.12]
    """
    warm = max(1, round(0.3 * steps))
    # peak min((t + 1) / warm, (T - t) / (T - warm + 1)): the two lines meet at the peak
    return lambda step: peak * jnp.minimum((step + 1) / warm, (steps - step) / (steps - warm + 1))


def cosine(peak: float, steps: int) -> Schedule:
    """From the peak down to nothing along half a cosine.

    References:
        Loshchilov, Hutter, SGDR, 2017, arXiv 1608.03983 (without restarts).

    Example:
        >>> [round(float(cosine(1.0, 10)(step)), 2) for step in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """
    # peak (1 + cos(pi t / T)) / 2
    return lambda step: peak * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))


def constant(peak: float, steps: int) -> Schedule:
    """The same all the time.

    Example:
        >>> float(constant(0.5, 10)(3))
        0.5
    """
    del steps
    return lambda step: jnp.full(jnp.shape(step), peak)


def tenths(peak: float, steps: int) -> Schedule:
    """A tenth after a half of the steps, and again after three quarters, each rounded down.

    References:
        He, Zhang, Ren, Sun, Deep residual learning, 2016, arXiv 1512.03385, for CIFAR-10.

    Example:
        >>> [round(float(tenths(1.0, 243)(number)), 2) for number in (120, 121, 181, 182)]
        [1.0, 0.1, 0.1, 0.01]
    """
    # Factors, which multiply: 0.1, then 0.01.
    falls = {steps // 2: 0.1, 3 * steps // 4: 0.1}
    return optax.piecewise_constant_schedule(peak, falls)


LEARNING_RATES: dict[str, Callable[[float, int], Schedule]] = {
    "one_cycle": one_cycle,
    "cosine": cosine,
    "constant": constant,
    "step": tenths,
}
