"""Images that were changed to fool a net, and a classifier that tells them from others.

The features are whatever a net says of an image beside its output, such as the channels that it
chose: `jprune.learners.choices_of`. The classifier is a logistic regression, fitted on one half of
the images and judged on the other; an image and its changed copy are in the same half.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors

Loss = Callable[[jax.Array], jax.Array]
"""`(images) -> [batch]`: losses that a change of the images is meant to raise."""


def sign_attack(loss: Loss, x: jax.Array, size: Any, steps: int = 1) -> jax.Array:
    """Images moved by at most `size` a pixel towards a higher loss: FGSM, or PGD for many steps.

    Args:
        loss: of the images.
        x: the images.
        size: the most that a pixel may move.
        steps: 1: by its whole size at once; more: by 2.5 size / steps, back into the box each time.

    Example:
        >>> x = jnp.array([[1.0, -2.0]])
        >>> sign_attack(lambda x: (x**2).sum(-1), x, 0.5).tolist()
        [[1.5, -2.5]]
    """
    length = size if steps == 1 else 2.5 * size / steps
    slope = jax.grad(lambda moved: loss(moved).sum())

    def step(moved: jax.Array, _: None) -> tuple[jax.Array, None]:
        # x <- clip(x + length sign(dC/dx)) within the box around the image
        return jnp.clip(moved + length * jnp.sign(slope(moved)), x - size, x + size), None

    return jax.lax.scan(step, x, None, length=steps)[0]


def area_under_curve(scores: Any, positive: Any) -> float:
    """The chance that a positive example has a higher score than a negative one; ties are halves.

    Args:
        scores: [examples].
        positive: bool [examples].

    Raises:
        ArgumentError: all examples are of one kind.

    Example:
        >>> area_under_curve([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
        0.875
    """
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    if positive.all() or not positive.any():
        raise errors.ArgumentError(
            f"area_under_curve got {positive.size} examples of one kind; it compares two."
        )
    one, other = scores[positive][:, None], scores[~positive][None]
    return float((one > other).mean() + 0.5 * (one == other).mean())


def logistic(features: np.ndarray, labels: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """Weights of a logistic regression, the last of them a constant, by Newton's method.

    Args:
        features: [examples, features].
        labels: bool [examples].
        ridge: weight of the squared weights beside the sum of losses; the constant has none.

    Returns:
        [features + 1], with which `features @ w[:-1] + w[-1]` is the log of the odds.

    Example:
        >>> w = logistic(np.array([[-1.0], [1.0]]), np.array([False, True]))
        >>> bool(w[0] > 0), round(abs(float(w[1])), 6)
        (True, 0.0)
    """
    x = np.concatenate([np.asarray(features, float), np.ones((len(features), 1))], axis=1)
    decay = ridge * np.append(np.ones(x.shape[1] - 1), 1e-6)
    w = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (p - labels) + decay * w
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(decay)
        move = np.linalg.solve(curvature, slope)
        w = w - move
        if np.abs(move).max() < 1e-8:
            break
    return w


def detector_area(clean: Any, attacked: Any, seed: int = 0, ridge: float = 1.0) -> float:
    """How well features tell attacked images from clean ones: the area under the curve.

    Half of the images, drawn, train a logistic regression on features of mean 0 and deviation 1;
    the others judge it. 0.5 is chance.

    Args:
        clean: [images, features].
        attacked: likewise, of the same images in the same order.
        seed: of the halves.
        ridge: see `logistic`.

    Raises:
        ArgumentError: fewer than two images, or features of other shapes.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clean = rng.normal(size=(100, 3))
        >>> round(detector_area(clean, clean + 3.0), 2)
        1.0
    """
    clean, attacked = np.asarray(clean, float), np.asarray(attacked, float)
    if clean.shape != attacked.shape or clean.ndim != 2 or len(clean) < 2:
        raise errors.ArgumentError(
            f"detector_area got features {clean.shape} and {attacked.shape}; it takes [images, "
            "features] twice, of the same images, two or more."
        )
    order = np.random.default_rng(seed).permutation(len(clean))
    first, second = order[: len(clean) // 2], order[len(clean) // 2 :]
    both = lambda part: np.concatenate([clean[part], attacked[part]])
    labels = lambda part: np.repeat([False, True], len(part))
    mean, size = both(first).mean(axis=0), both(first).std(axis=0)
    scaled = lambda part: (both(part) - mean) / np.where(size > 0, size, 1)
    w = logistic(scaled(first), labels(first), ridge)
    return area_under_curve(scaled(second) @ w[:-1] + w[-1], labels(second))
