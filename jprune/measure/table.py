"""A latency table: the time of a net as a function of its widths.

Times have steps: 33 channels can take twice as long as 32. So a call site's time is fitted by

    t(i, o) = sum over classes [(i, o) in class] (c_1 + c_i i + c_o o + c_io i o),  all c >= 0

of its widths i (inputs) and o (outputs), the classes being which powers of two do not divide a
width. What stands between the sites (norms, activations) takes a time for every value written.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from jprune.cost import Term

STEPS = (16, 8, 2)
"""Powers of two: a width that one of them does not divide may take longer."""
FEATURES = 4 * (1 + 2 * len(STEPS) + 1)
WEIGHT = 0.05
"""Of samples shorter than this part of the longest one, the error counts less than relatively."""


class SiteTimes(NamedTuple):
    """The fitted time of a call site.

    Attributes:
        positions: of the dense net: the site's time is proportional to them.
        weights: [features] of `features`.
        error: largest relative error over the samples.
    """

    positions: float
    weights: tuple[float, ...]
    error: float

    def time(self, term: Term) -> Any:
        """Time in ms at a term's widths; 0 where nothing is left."""
        value = features(term.inputs, term.outputs) @ np.asarray(self.weights)
        is_there = _np(value).minimum(1, term.inputs) * _np(value).minimum(1, term.outputs)
        return value * is_there * term.positions / self.positions


@dataclasses.dataclass(frozen=True, eq=False)
class LatencyTable:
    """Predicts the time of a net from the widths of its contractions; `cost_model(latency=table)`.

    Attributes:
        target: "xla" or "tflite".
        batch: examples in a call.
        sites: times of the call sites, in execution order.
        scale: of their sum, in the whole net.
        written: ms for every value that a contraction writes, for one example.
        constant: ms of a call.
        multiple_of: widths between its multiples save no time.
        error: largest relative error over the whole nets that were measured.
    """

    target: str
    batch: int
    sites: tuple[SiteTimes, ...]
    scale: float
    written: float
    constant: float
    multiple_of: int
    error: float

    def __call__(self, term: Term) -> Any:
        """The share of a contraction in the time of a call, in ms; jittable, with a gradient.

        Args:
            term: of the net that was measured; other positions (a larger image) scale it.
        """
        own = self.scale * self.sites[term.site].time(term)
        return own + self.written * term.written + self.constant / len(self.sites)


def _np(value: Any) -> Any:
    """NumPy where a number is concrete, so that nothing is compiled for it."""
    return jnp if isinstance(value, jax.Array) else np


def features(inputs: Any, outputs: Any) -> Any:
    """[..., FEATURES]: what the time of a contraction is a sum of.

    Args:
        inputs: [...] widths.
        outputs: [...] widths.
    """
    xnp = _np(inputs if isinstance(inputs, jax.Array) else outputs)
    i, o = xnp.asarray(inputs, float), xnp.asarray(outputs, float)
    plain = xnp.stack([xnp.ones_like(i * o), i + 0 * o, o + 0 * i, i * o], axis=-1)
    # A width is a number of channels; a real one, of soft gates, belongs to the nearest.
    odd = lambda width, step: (xnp.round(width) % step != 0) * 1.0
    classes = [1.0 + 0 * i, *(odd(i, step) for step in STEPS), *(odd(o, step) for step in STEPS)]
    classes.append(odd(i, STEPS[-1]) * odd(o, STEPS[-1]))
    return xnp.concatenate([(c + 0 * i * o)[..., None] * plain for c in classes], axis=-1)


def fitted(widths: Sequence[tuple[float, float]], times: Sequence[float]) -> np.ndarray:
    """[FEATURES]: weights, none below 0, that fit times at widths (inputs, outputs).

    Example:
        >>> widths = [(16.0, o) for o in (16.0, 32.0, 15.0, 31.0)]
        >>> weights = fitted(widths, [1.0, 2.0, 2.0, 4.0])
        >>> [float(round(features(*each) @ weights, 2)) for each in widths]
        [1.0, 2.0, 2.0, 4.0]
    """
    i, o = np.asarray(widths, float).T
    return relative_fit(features(i, o), np.asarray(times, float))[0]


def relative_fit(columns: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights >= 0 that minimise relative errors, and the largest one of these.

    Args:
        columns: [n, features].
        times: [n], above 0.
    """
    rows = 1 / np.maximum(times, WEIGHT * times.max())
    # Columns of like size, for widths times widths are a thousand times larger than ones.
    sizes = np.maximum(np.abs(columns).max(axis=0), 1e-30)
    weights = nnls(columns / sizes * rows[:, None], times * rows)[0] / sizes
    return weights, float(np.abs(columns @ weights / times - 1).max())
