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

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
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


def barrier(cost: Any, comfortable: Any, budget: Any, cap: float = 1e10) -> Any:
    """f(V, a, b): 0 up to a cost that is comfortable, exploding towards the budget.

    Args:
        cost: V.
        comfortable: a, up to which there is no pressure.
        budget: b, which is not to be reached.
        cap: from b on, and the most before it.

    Example:
        >>> [float(barrier(cost, 20.0, 100.0)) for cost in (20.0, 60.0, 100.0)]
        [0.0, 0.5, 10000000000.0]
    """
    a, b = comfortable, budget
    inside = (cost > a) & (cost < b)
    # Where it is not inside, numbers that divide by nothing close to 0.
    v = jnp.where(inside, cost, 0.5 * (a + b))
    # f = (V - a)^2 / ((b - V) (b - a))
    value = jnp.minimum((v - a) ** 2 / ((b - v) * (b - a)), cap)
    return jnp.where(cost <= a, 0.0, jnp.where(inside, value, cap))


def transition(progress: Any, slope: float = 10.0) -> Any:
    """How far the budget has come from all to its goal: a sigmoid from 0 to 1.

    Example:
        >>> [round(float(transition(p)), 6) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.070104, 0.5, 1.0]
    """
    # sigma(p) = (S(p) - S(0)) / (S(1) - S(0)), S(p) = 1 / (1 + exp(slope (1/2 - p)))
    first, last = (1 / (1 + math.exp(slope * (0.5 - p))) for p in (0, 1))
    return (jax.nn.sigmoid(slope * (progress - 0.5)) - first) / (last - first)


class Limits(NamedTuple):
    """The budget over time; costs are fractions of the whole net's.

    Attributes:
        goal: what shall be kept in the end.
        slope: of the sigmoid along which the budget shrinks.
        tolerance: how far above the whole net's cost the budget begins.
        margin: how far below the goal there is no pressure any more, over 1 + tolerance.
        cap: the largest value of the barrier.
    """

    goal: float
    slope: float = 10.0
    tolerance: float = 0.01
    margin: float = 1e-4
    cap: float = 1e10

    def allowed(self, progress: Any) -> Any:
        """The budget b, progress being the fraction of the training that is done."""
        done = transition(progress, self.slope)
        # b = (1 - sigma) (1 + tol) V_0 + sigma B V_0
        return (1 - done) * (1 + self.tolerance) + done * self.goal

    def comfortable(self) -> float:
        """The cost a, up to which there is no pressure."""
        # a = B V_0 - margin
        return self.goal - self.margin * (1 + self.tolerance)


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
        ArgumentError: a goal outside (0, 1), or another number out of range.
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

    def spent(trained: Gates) -> Any:
        # V: a count of gates that are open without noise, without a gradient
        open_ = {n: (settled_gate(phi) > 0).astype(jnp.float32) for n, phi in trained.items()}
        return jax.lax.stop_gradient(cost(open_))

    def progress(carried: Any) -> Any:
        return (carried["step"] + 1) / steps

    def values(trained: Gates, carried: Any, key: jax.Array) -> Gates:
        names = list(sizes)
        ends = np.cumsum([sizes[name] for name in names])
        # Neither 0 nor 1: their logarithms are infinite.
        u = jax.random.uniform(key, (int(ends[-1]),), minval=1e-6, maxval=1 - 1e-6)
        noise = jnp.split(u, ends[:-1].tolist())
        return {name: sampled(trained[name], part) for name, part in zip(names, noise)}

    def penalty(trained: Gates, carried: Any, gates: Gates) -> Any:
        expected = cost({name: chance_open(phi) for name, phi in trained.items()})
        pressure = barrier(
            spent(trained), limits.comfortable(), limits.allowed(progress(carried)), limits.cap
        )
        # lambda L_S(Phi) f(V, a, b)
        return strength * expected * jax.lax.stop_gradient(pressure)

    def after(trained: Gates, carried: Any, gates: Gates) -> tuple[Gates, Any]:
        def one(phi: jax.Array, floor: int) -> jax.Array:
            spared = keep_best(phi, min(floor, int(np.size(phi))))
            return jnp.where(spared, jnp.maximum(phi, 0.0), phi)

        phis = {name: one(phi, floors[name]) for name, phi in trained.items()}
        return phis, {**carried, "step": carried["step"] + 1}

    def watched(trained: Gates, carried: Any, gates: Gates) -> dict[str, Any]:
        phis = jnp.concatenate([*trained.values()])
        return {
            "spent": spent(trained),
            "allowed": limits.allowed(progress(carried)),
            "open": (settled_gate(phis) > 0).mean(),
        }

    def init(key: jax.Array) -> Gates:
        # phi ~ U(0, 0.01)
        return {
            name: jax.random.uniform(jax.random.fold_in(key, number), (size,), maxval=0.01)
            for number, (name, size) in enumerate(sizes.items())
        }

    return Gating(
        init=init,
        start={"step": jnp.zeros((), jnp.int32)},
        values=values,
        penalty=penalty,
        settled=lambda trained, carried: jax.tree.map(settled_gate, trained),
        scores=lambda trained, carried: trained,
        after=after,
        watched=watched,
    )
