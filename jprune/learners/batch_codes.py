"""Codes of units that are read off a batch and sharpened until they are 0 or 1.

    s = sigmoid(alpha v),   v = kernel . pooled(mean over the batch of x) + bias

One code for a whole batch, so that the net that comes out is the same for every example. alpha
rises while kernel, bias and the net are trained; every so many steps the codes vote, and the pull
of their mean to the ratio is as strong as the votes are far from it.

References:
    Luo, Wu, AutoPruner: an end-to-end trainable filter pruning method for efficient deep model
    inference, 2020, arXiv 1805.08941 [44]; details as in the authors' code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import PyTree
from jprune.learners.norm_gates import Gates
from jprune.learners.unit_gates import Gating

BETWEEN = (0.2, 0.8)
"""Codes outside of this are decided."""

SMALL = 7
"""Maps of this side or less are not pooled."""


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


def pooled(seen: jax.Array) -> jax.Array:
    """[n]: the largest values of 2 x 2 windows of [units, height, width]; else all values.

    Example:
        >>> pooled(jnp.arange(64.0).reshape(1, 8, 8))[:4].tolist(), pooled(jnp.ones((3, 7, 7))).size
        ([9.0, 11.0, 13.0, 15.0], 147)
    """
    units, *positions = seen.shape
    if len(positions) == 2 and min(positions) > SMALL:
        height, width = (length // 2 for length in positions)
        cut = seen[:, : 2 * height, : 2 * width]
        seen = cut.reshape(units, height, 2, width, 2).max((2, 4))
    return seen.reshape(-1)


def majority(votes: Any, ratio: float) -> tuple[Any, Any, Any]:
    """What the codes of some steps say together.

    Args:
        votes: [steps, units], codes in [0, 1].
        ratio: the fraction that shall be kept.

    Returns:
        ([units]: 1 where more than half of the codes are above 1/2, else 0; the fraction that is
        0; the strength of the pull that follows).

    Example:
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


def batch_codes(
    seen: Mapping[str, tuple[int, ...]],
    ratios: Mapping[str, float],
    steps: int,
    sharpening: Sharpening | None = None,
) -> Gating:
    """Gates that are codes of the batch; in inference they are the last vote, 0 or 1.

    Args:
        seen: {group: shape of what its first reader sees, [units, *positions]} (`seen_shapes`).
        ratios: {group: the fraction that shall be kept}.
        steps: of the training.
        sharpening: how codes become 0 or 1; None: as for the paper's ResNet-50.

    Raises:
        ArgumentError: a ratio outside (0, 1].
    """
    sharp = Sharpening() if sharpening is None else sharpening
    if any(not 0 < ratios[name] <= 1 for name in seen):
        raise errors.ArgumentError(f"ratios={dict(ratios)}; each is the fraction kept, in (0, 1].")
    units = {name: shape[0] for name, shape in seen.items()}

    def init(key: jax.Array) -> PyTree:
        def coder(number: int, shape: tuple[int, ...]) -> PyTree:
            inputs = pooled(np.zeros(shape, np.float32)).size
            draw = jax.random.normal(jax.random.fold_in(key, number), (inputs, shape[0]))
            # N(0, 10 sqrt(2 / n))
            return {
                "kernel": sharp.spread * np.sqrt(2 / inputs) * draw, "bias": jnp.zeros(shape[0])
            }  # fmt: skip

        return {name: coder(number, shape) for number, (name, shape) in enumerate(seen.items())}

    each = lambda value: {name: jnp.full((), value) for name in seen}
    start = {
        "step": jnp.zeros((), jnp.int32),
        "raised": each(0.0),
        "strength": each(sharp.strength),
        # From 95 %, the guard against codes that are nearly all 0 comes down to what shall be 0.
        "threshold": each(0.95),
        "votes": {name: jnp.ones((sharp.vote, count)) for name, count in units.items()},
        "code": {name: jnp.ones(count) for name, count in units.items()},
        "alpha": each(sharp.start),
    }

    def read(trained: PyTree, alpha: jax.Array, values: jax.Array) -> jax.Array:
        # v = kernel . pooled + bias;  s = sigmoid(alpha v)
        flat = pooled(values)
        return jax.nn.sigmoid(alpha * (flat @ trained["kernel"] + trained["bias"]))

    def penalty(trained: PyTree, carried: PyTree, gates: Gates) -> Any:
        pulls = (mean_pull(gates[n], ratios[n], carried["strength"][n]) for n in seen)
        return sum(pulls, jnp.zeros(()))

    def voted(carried: PyTree) -> PyTree:
        new = {key: dict(carried[key]) for key in ("raised", "strength", "threshold", "code")}
        for name in seen:
            code, gone, strength = majority(carried["votes"][name], ratios[name])
            # As good as all codes 0: a sharper sigmoid, and an earlier alarm the next time.
            alarm = (gone >= carried["threshold"][name] - 1e-6) & (gone > 1 - ratios[name] + 1e-6)
            lower = jnp.maximum(carried["threshold"][name] - 0.05, 1 - ratios[name])
            new["raised"][name] = carried["raised"][name] + alarm * sharp.step
            new["threshold"][name] = jnp.where(alarm, lower, carried["threshold"][name])
            new["strength"][name], new["code"][name] = strength, code
        return {**carried, **new}

    def after(trained: PyTree, carried: PyTree, gates: Gates) -> tuple[PyTree, PyTree]:
        step = carried["step"]
        votes = {
            n: carried["votes"][n].at[step % sharp.vote].set(jax.lax.stop_gradient(gates[n]))
            for n in seen
        }
        carried = {**carried, "votes": votes, "step": step + 1}
        due = (step + 1) % sharp.vote == 0
        carried = jax.lax.cond(due, voted, lambda carried: carried, carried)
        raised = carried["raised"]
        for name in seen:
            # Too few codes decided by now: sharper.
            late = (step + 1 == sharp.settle) & (decided(gates[name]) < 0.9)
            raised = {**raised, name: raised[name] + late * sharp.step}
        alpha = alpha_at(sharp, step + 1, steps)
        return trained, {
            **carried, "raised": raised, "alpha": {n: alpha + raised[n] for n in seen}
        }  # fmt: skip

    def watched(trained: PyTree, carried: PyTree, gates: Gates) -> dict[str, Any]:
        codes = jnp.concatenate([*gates.values()])
        agree = [((gates[n] > 0.5) == (carried["code"][n] > 0.5)) for n in seen]
        return {
            "decided": decided(codes),
            "mean_gate": codes.mean(),
            "agree": jnp.concatenate(agree).mean(),
        }

    return Gating(
        init=init,
        start=start,
        values=None,
        penalty=penalty,
        settled=lambda trained, carried: carried["code"],
        # The vote first, then how clear it was.
        scores=lambda trained, carried: {
            n: carried["code"][n] + carried["votes"][n].mean(0) for n in seen
        },
        after=after,
        watched=watched,
        read=lambda name, trained, carried, values: read(
            trained[name], carried["alpha"][name], values
        ),
    )


def decided(codes: Any) -> Any:
    """The fraction of codes that are nearly 0 or 1."""
    low, high = BETWEEN
    return ((codes < low) | (codes > high)).mean()
