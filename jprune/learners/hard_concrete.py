"""Hard-concrete gates, with a penalty behind a barrier that no cost above a budget passes.

    z = clip(s (zeta - gamma) + gamma, 0, 1),   s = sigmoid((log u - log(1 - u) + phi) / beta)

phi is learned, one number a unit. The penalty is the expected cost of the gates, times a barrier
f(V, a, b) that is 0 where the cost V of the net, as it would be cut now, is at most a, and explodes
as V comes near the present budget b, which shrinks from all of the net to what shall be kept.

References:
    Lemaire, Achkar, Jodoin, Structured pruning of neural networks with budget-aware regularization,
    2019, arXiv 1811.09332 [24]. The distribution: Louizos, Welling, Kingma, Learning sparse neural
    networks through L0 regularization, 2018, arXiv 1712.01312.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.learners.barrier import Limits, barrier
from jprune.learners.norm_gates import Gates
from jprune.learners.unit_gates import Gating
from jprune.masks import keep_best

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature, and the ends to which the distribution is stretched before it is clipped."""


def sampled(phi: jax.Array, u: jax.Array) -> jax.Array:
    """Gates for phi and uniform noise u in (0, 1)."""
    # s = sigmoid((ln u - ln(1 - u) + phi) / beta)
    s = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + phi) / BETA)
    # z = clip(s (zeta - gamma) + gamma, 0, 1)
    return jnp.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1)


def settled_gate(phi: jax.Array) -> jax.Array:
    """Gates without noise: exactly 0 where phi <= log(1 / 11).

    Example:
        >>> settled_gate(jnp.array([-2.4, 0.0, 3.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    # z = clip(sigmoid(phi) (zeta - gamma) + gamma, 0, 1)
    return jnp.clip(jax.nn.sigmoid(phi) * (ZETA - GAMMA) + GAMMA, 0, 1)


def chance_open(phi: jax.Array) -> jax.Array:
    """P(z > 0) of a gate that is drawn.

    Example:
        >>> print(chance_open(jnp.array(0.0)).round(4))
        0.8318
    """
    # P(z > 0) = sigmoid(phi - beta ln(-gamma / zeta))
    return jax.nn.sigmoid(phi - BETA * math.log(-GAMMA / ZETA))


@dataclasses.dataclass(frozen=True)
class _Barred:
    """The functions of hard-concrete gates under a barrier; see `hard_concrete`."""

    sizes: Mapping[str, int]
    cost: Callable[[Mapping[str, Any]], Any]
    limits: Limits
    steps: int
    strength: float
    floors: Mapping[str, int]

    def init(self, key: jax.Array) -> Gates:
        # phi ~ U(0, 0.01)
        return {
            name: jax.random.uniform(jax.random.fold_in(key, number), (size,), maxval=0.01)
            for number, (name, size) in enumerate(self.sizes.items())
        }

    def spent(self, trained: Gates) -> Any:
        # V: a count of gates that are open without noise, without a gradient
        open_ = {n: (settled_gate(phi) > 0).astype(jnp.float32) for n, phi in trained.items()}
        return jax.lax.stop_gradient(self.cost(open_))

    def allowed(self, carried: Any) -> Any:
        return self.limits.allowed((carried["step"] + 1) / self.steps)

    def values(self, trained: Gates, carried: Any, key: jax.Array) -> Gates:
        del carried
        ends = np.cumsum([*self.sizes.values()])
        # Neither 0 nor 1: their logarithms are infinite.
        u = jax.random.uniform(key, (int(ends[-1]),), minval=1e-6, maxval=1 - 1e-6)
        noise = jnp.split(u, ends[:-1].tolist())
        return {name: sampled(trained[name], part) for name, part in zip(self.sizes, noise)}

    def penalty(self, trained: Gates, carried: Any, gates: Gates) -> Any:
        del gates
        expected = self.cost({name: chance_open(phi) for name, phi in trained.items()})
        comfortable, cap = self.limits.comfortable(), self.limits.cap
        pressure = barrier(self.spent(trained), comfortable, self.allowed(carried), cap)
        # lambda L_S(Phi) f(V, a, b)
        return self.strength * expected * jax.lax.stop_gradient(pressure)

    def after(self, trained: Gates, carried: Any, gates: Gates) -> tuple[Gates, Any]:
        del gates

        def one(phi: jax.Array, floor: int) -> jax.Array:
            spared = keep_best(phi, min(floor, int(np.size(phi))))
            return jnp.where(spared, jnp.maximum(phi, 0.0), phi)

        phis = {name: one(phi, self.floors[name]) for name, phi in trained.items()}
        return phis, {**carried, "step": carried["step"] + 1}

    def watched(self, trained: Gates, carried: Any, gates: Gates) -> dict[str, Any]:
        del gates
        phis = jnp.concatenate([*trained.values()])
        return {
            "spent": self.spent(trained),
            "allowed": self.allowed(carried),
            "open": (settled_gate(phis) > 0).mean(),
        }


def hard_concrete(
    sizes: Mapping[str, int],
    cost: Callable[[Mapping[str, Any]], Any],
    limits: Limits,
    steps: int,
    strength: float,
    least: Mapping[str, int] | None = None,
) -> Gating:
    """Gates that are drawn in every step, one number for all examples, under the barrier.

    Args:
        sizes: {group: units}; these groups have gates.
        cost: `{group: gates} -> cost` as a fraction of the whole net's; of real gates, and it has
            a gradient, as cost models have. In probabilities it is the expected cost.
        limits: the budget over time.
        steps: of the training.
        strength: of the expected cost times the barrier, in the loss.
        least: {group: how many of its gates never close}; None: one.

    Raises:
        ArgumentError: a goal outside (0, 1], or another number out of range.

    Example:
        >>> mean = lambda gates: gates["a"].mean()
        >>> gating = hard_concrete({"a": 3}, mean, Limits(0.5), steps=100, strength=0.1)
        >>> gates = gating.init(jax.random.key(0))
        >>> float(gating.watched(gates, gating.start, {})["spent"])
        1.0
    """
    floors = {name: 1 if least is None else least.get(name, 1) for name in sizes}
    if not (0 < limits.goal <= 1 and limits.slope > 0 and limits.tolerance > 0):
        raise errors.ArgumentError(
            f"{limits}: the goal is in (0, 1], slope and tolerance are above 0."
        )
    if not (strength >= 0 and limits.margin > 0 and limits.cap > 0):
        raise errors.ArgumentError(
            f"hard_concrete(strength={strength}) with margin={limits.margin}, cap={limits.cap}; "
            "the strength is 0 or more, the others are above 0."
        )
    made = _Barred(sizes, cost, limits, steps, strength, floors)
    return Gating(
        init=made.init,
        start={"step": jnp.zeros((), jnp.int32)},
        values=made.values,
        penalty=made.penalty,
        settled=lambda trained, carried: jax.tree.map(settled_gate, trained),
        scores=lambda trained, carried: trained,
        after=made.after,
        watched=made.watched,
    )
