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
from jprune.learners.sharpening import Sharpening, alpha_at, decided, majority, mean_pull
from jprune.learners.unit_gates import Gating

SMALL = 7
"""Maps of this side or less are not pooled."""


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


@dataclasses.dataclass(frozen=True)
class _Coded:
    """The functions of codes; see `batch_codes`."""

    seen: Mapping[str, tuple[int, ...]]
    ratios: Mapping[str, float]
    steps: int
    sharp: Sharpening

    def init(self, key: jax.Array) -> PyTree:
        def coder(number: int, shape: tuple[int, ...]) -> PyTree:
            inputs = pooled(jnp.zeros(shape)).size
            draw = jax.random.normal(jax.random.fold_in(key, number), (inputs, shape[0]))
            # N(0, 10 sqrt(2 / n))
            kernel = self.sharp.spread * np.sqrt(2 / inputs) * draw
            return {"kernel": kernel, "bias": jnp.zeros(shape[0])}

        return {n: coder(number, shape) for number, (n, shape) in enumerate(self.seen.items())}

    def start(self) -> PyTree:
        each = lambda value: {name: jnp.full((), value) for name in self.seen}
        units = {name: shape[0] for name, shape in self.seen.items()}
        return {
            "step": jnp.zeros((), jnp.int32),
            "raised": each(0.0),
            "strength": each(float(self.sharp.strength)),
            # From 95 %, the guard against codes that are nearly all 0 comes down to what shall be.
            "threshold": each(0.95),
            "votes": {name: jnp.ones((self.sharp.vote, count)) for name, count in units.items()},
            "code": {name: jnp.ones(count) for name, count in units.items()},
            "alpha": each(float(self.sharp.start)),
        }

    def read(self, name: str, trained: PyTree, carried: PyTree, values: jax.Array) -> jax.Array:
        # v = kernel . pooled + bias;  s = sigmoid(alpha v)
        v = pooled(values) @ trained[name]["kernel"] + trained[name]["bias"]
        return jax.nn.sigmoid(carried["alpha"][name] * v)

    def penalty(self, trained: PyTree, carried: PyTree, gates: Gates) -> Any:
        del trained
        strength = carried["strength"]
        pulls = (mean_pull(gates[n], self.ratios[n], strength[n]) for n in self.seen)
        return sum(pulls, jnp.zeros(()))

    def voted(self, carried: PyTree) -> PyTree:
        """What is carried after a vote."""
        new = {key: dict(carried[key]) for key in ("raised", "strength", "threshold", "code")}
        for name in self.seen:
            rest = 1 - self.ratios[name]
            code, gone, strength = majority(carried["votes"][name], self.ratios[name])
            # As good as all codes 0: a sharper sigmoid, and an earlier alarm the next time.
            alarm = (gone >= carried["threshold"][name] - 1e-6) & (gone > rest + 1e-6)
            lower = jnp.maximum(carried["threshold"][name] - 0.05, rest)
            new["raised"][name] = carried["raised"][name] + alarm * self.sharp.step
            new["threshold"][name] = jnp.where(alarm, lower, carried["threshold"][name])
            new["strength"][name], new["code"][name] = strength, code
        return {**carried, **new}

    def after(self, trained: PyTree, carried: PyTree, gates: Gates) -> tuple[PyTree, PyTree]:
        step, sharp = carried["step"], self.sharp
        votes = {
            n: carried["votes"][n].at[step % sharp.vote].set(jax.lax.stop_gradient(gates[n]))
            for n in self.seen
        }
        carried = {**carried, "votes": votes, "step": step + 1}
        due = (step + 1) % sharp.vote == 0
        carried = jax.lax.cond(due, self.voted, lambda carried: carried, carried)
        # Too few codes decided by now: sharper.
        late = {n: (step + 1 == sharp.settle) & (decided(gates[n]) < 0.9) for n in self.seen}
        raised = {n: carried["raised"][n] + late[n] * sharp.step for n in self.seen}
        alpha = alpha_at(sharp, step + 1, self.steps)
        now = {name: alpha + more for name, more in raised.items()}
        return trained, {**carried, "raised": raised, "alpha": now}

    def scores(self, trained: PyTree, carried: PyTree) -> Gates:
        del trained
        # The vote first, then how clear it was.
        return {n: carried["code"][n] + carried["votes"][n].mean(0) for n in self.seen}

    def watched(self, trained: PyTree, carried: PyTree, gates: Gates) -> dict[str, Any]:
        del trained
        codes = jnp.concatenate([*gates.values()])
        agree = [(gates[n] > 0.5) == (carried["code"][n] > 0.5) for n in self.seen]
        return {
            "decided": decided(codes),
            "mean_gate": codes.mean(),
            "agree": jnp.concatenate(agree).mean(),
        }


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

    Example:
        >>> gating = batch_codes({"a": (16, 8, 8)}, {"a": 0.5}, steps=1000)
        >>> coder = gating.init(jax.random.key(0))["a"]
        >>> coder["kernel"].shape, coder["bias"].shape
        ((256, 16), (16,))
    """
    if any(not 0 < ratios[name] <= 1 for name in seen):
        raise errors.ArgumentError(f"ratios={dict(ratios)}; each is the fraction kept, in (0, 1].")
    made = _Coded(seen, ratios, steps, Sharpening() if sharpening is None else sharpening)
    return Gating(
        init=made.init,
        start=made.start(),
        values=None,
        penalty=made.penalty,
        settled=lambda trained, carried: carried["code"],
        scores=made.scores,
        after=made.after,
        watched=made.watched,
        read=made.read,
    )
