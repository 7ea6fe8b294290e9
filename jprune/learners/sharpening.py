"""How soft codes become 0 or 1: a sigmoid that sharpens, votes, and a pull to a ratio.

References:
    Luo, Wu, AutoPruner: an end-to-end trainable filter pruning method for efficient deep model
    inference, 2020, arXiv 1805.08941 [44]; details as in the authors' code.
"""

import dataclasses
from typing import Any

from jprune import errors

BETWEEN = (0.2, 0.8)
"""Codes outside of this are decided."""


@dataclasses.dataclass(frozen=True)
class Sharpening:
    """How codes become 0 or 1.

    Attributes:
        start: alpha in the beginning.
        stop: alpha in the end.
        every: steps in which alpha stays as it is.
        vote: steps between two votes, and how many codes take part in one.
        step: what a guard adds to the whole schedule of alpha.
        settle: the step at which most codes have to be decided; else alpha is raised.
        spread: factor of He's deviation of the initial kernels, so that the first codes differ.
        strength: of the pull before the first vote.
    """

    start: float = 1.0
    stop: float = 100.0
    every: int = 100
    vote: int = 20
    step: float = 1.0
    settle: int = 400
    spread: float = 10.0
    strength: float = 10.0

    def __post_init__(self):
        if not 0 < self.start <= self.stop or min(self.every, self.vote, self.settle) < 1:
            raise errors.ArgumentError(
                f"codes with start={self.start}, stop={self.stop}, every={self.every}, "
                f"vote={self.vote}, settle={self.settle}; 0 < start <= stop, the others 1 or more."
            )
        if min(self.step, self.spread, self.strength) < 0:
            raise errors.ArgumentError(
                f"codes with step={self.step}, spread={self.spread}, strength={self.strength}; "
                "all of them are 0 or more."
            )


def majority(votes: Any, ratio: float) -> tuple[Any, Any, Any]:
    """What the codes of some steps say together.

    Args:
        votes: [steps, units], codes in [0, 1].
        ratio: the fraction that shall be kept.

    Returns:
        ([units]: 1 where more than half of the codes are above 1/2, else 0; the fraction that is
        0; the strength of the pull that follows).

    Example:
        >>> import numpy as np
        >>> votes = np.array([[0.9, 0.2, 0.1, 0.3], [0.7, 0.6, 0.2, 0.4], [0.8, 0.1, 0.6, 0.2]])
        >>> code, gone, strength = majority(votes, 0.5)
        >>> code.tolist(), float(gone), float(strength)
        ([1.0, 0.0, 0.0, 0.0], 0.75, 25.0)
    """
    code = ((votes > 0.5).mean(0) > 0.5) * 1.0
    # q = the fraction of zeros;  lambda = 100 |q - (1 - r)|
    gone = (code == 0).mean()
    return code, gone, 100 * abs(gone - (1 - ratio))


def mean_pull(codes: Any, ratio: float, strength: Any) -> Any:
    """Strength * (mean of the codes - ratio)^2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> round(float(mean_pull(jax.nn.sigmoid(jnp.array([0.5, -0.2, 0.1, -1])), 0.5, 10)), 6)
        0.011131
    """
    # lambda (|s|_1 / C - r)^2
    return strength * (codes.mean() - ratio) ** 2


def alpha_at(sharpening: Sharpening, step: Any, steps: int) -> Any:
    """Alpha of a step, without what guards have added: in a line, constant for `every` steps.

    Example:
        >>> sharp = Sharpening(1.0, 101.0, every=10)
        >>> [float(alpha_at(sharp, step, 100)) for step in (0, 9, 10, 99)]
        [1.0, 1.0, 11.0, 91.0]
    """
    done = step // sharpening.every * sharpening.every / steps
    return sharpening.start + (sharpening.stop - sharpening.start) * done


def decided(codes: Any) -> Any:
    """The fraction of codes that are nearly 0 or 1."""
    low, high = BETWEEN
    return ((codes < low) | (codes > high)).mean()
