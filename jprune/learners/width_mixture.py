"""Widths as probabilities: two candidate widths are run at once, and mixed along the channels.

Every group has logits over candidate widths. A step draws two of them without replacement; what a
layer says is cut to the leading channels of each, both are resized to the wider one by averages of
neighbouring channels, and their sum is weighted by the softmax over the two. The expected cost is
that of the softmax of all logits.

References:
    Dong, Yang, Network pruning via transformable architecture search, 2019, arXiv 1905.09717 [42];
    details as in the authors' code.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import CostModel, Groups
from jprune.graph import Site, intercept


def candidate_widths(size: int, least: float = 0.3, options: int = 8) -> tuple[int, ...]:
    """Different widths int(size f) for evenly spaced f from `least` to 1, at least 1 unit.

    Raises:
        ArgumentError: a fraction outside (0, 1), or fewer than two options.

    Example:
        >>> candidate_widths(16), candidate_widths(2)
        ((4, 6, 8, 9, 11, 12, 14, 16), (1, 2))
    """
    errors.check_numbers(
        "candidate_widths",
        ("least", least, 0 < least < 1, "in (0, 1)"),
        ("options", options, options >= 2, "2 or more"),
    )
    # Exact: in floating point 0.3 + 0.1 * 7 is a hair below 1.
    first = Fraction(str(least))
    ratios = [first + (1 - first) * Fraction(n, options - 1) for n in range(options)]
    return tuple(sorted({max(1, int(ratio * size)) for ratio in ratios}))


def candidate_depths(blocks: int) -> tuple[int, ...]:
    """Depths of a stage of so many blocks: the odd ones, and all.

    Example:
        >>> candidate_depths(9), candidate_depths(4)
        ((1, 3, 5, 7, 9), (1, 3, 4))
    """
    return tuple(sorted({*range(1, blocks + 1, 2), blocks}))


def resizing(before: int, after: int, size: int | None = None) -> np.ndarray:
    """[after, before]: averages that turn so many channels into so many others.

    Args:
        before: C, the channels that there are.
        after: C'.
        size: rows and columns, filled up with 0; None: no more than it takes.

    Example:
        >>> (resizing(5, 3) @ np.arange(1.0, 6)).tolist()
        [1.5, 3.0, 4.5]
    """
    rows, columns = (after, before) if size is None else (size, size)
    table = np.zeros((rows, columns))
    for row in range(after):
        # out[i] = mean(x[floor(i C / C') : ceil((i + 1) C / C')])
        first, last = row * before // after, -(-(row + 1) * before // after)
        table[row, first:last] = 1 / (last - first)
    return table


def temperature(progress: Any, highest: float = 5.0, lowest: float = 0.1) -> Any:
    """Tau after a part of the search, in 0..1: from the highest to the lowest on a cosine.

    Example:
        >>> [round(float(temperature(t)), 4) for t in (0, 0.5, 1)]
        [5.0, 2.55, 0.1]
    """
    # tau(t) = tmin + (tmax - tmin) (1 + cos(pi t)) / 2
    return lowest + (highest - lowest) * (1 + jnp.cos(jnp.pi * progress)) / 2


def two_of(key: jax.Array, logits: jax.Array, tau: Any) -> tuple[jax.Array, jax.Array]:
    """(two different candidates, the weights of both), drawn by Gumbel-softmax.

    The draw has no gradient, the weights do.

    Args:
        key: for the noise.
        logits: [candidates], two or more; -inf for padding.
        tau: temperature, above 0.

    Example:
        >>> which, weights = two_of(jax.random.key(0), jnp.array([0.0, 9.0, -jnp.inf]), 1.0)
        >>> sorted(which.tolist()), round(float(weights.sum()), 4)
        ([0, 1], 1.0)
    """
    first, second = jax.random.split(key)
    # z = (log_softmax(A) + Gumbel(0, 1)) / tau; p = softmax(z)
    z = (jax.nn.log_softmax(logits) + jax.random.gumbel(first, logits.shape)) / tau
    noisy = jax.nn.log_softmax(jax.lax.stop_gradient(z))
    # The two largest of log p + Gumbel noise: a draw from p without replacement
    _, which = jax.lax.top_k(noisy + jax.random.gumbel(second, logits.shape), 2)
    return which, jax.nn.softmax(z[which])


class Mixture:
    """Widths of the groups of a net, mixed where it runs.

    Attributes:
        names: groups whose width is free.
        widths: {group: candidate widths}.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> v = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> groups = jprune.trace(fn, v, jnp.ones((1, 3)))
        >>> mixture = Mixture(groups, {"a": (2, 4)})
        >>> logits = {"a": jnp.array([0.0, 0.0])}
        >>> mixture.run(fn)(v, logits, jax.random.key(0), 1.0, jnp.ones((1, 3))).tolist()
        [[12.0, 12.0]]
    """

    def __init__(self, groups: Groups, widths: Mapping[str, Sequence[int]]):
        self.groups, self.names = groups, tuple(widths)
        self.widths = {name: tuple(menu) for name, menu in widths.items()}
        for name, menu in self.widths.items():
            size = groups.sizes.get(name, 0)
            if len(menu) < 2 or not all(1 <= w <= size for w in menu):
                raise errors.ArgumentError(
                    f"widths of {name}: {menu}; write two or more different ones from 1 to {size}."
                )

    def tables(self, name: str) -> np.ndarray:
        """[candidates, candidates, units, units]: from the j-th width to the k-th."""
        menu, size = self.widths[name], self.groups.sizes[name]
        return np.array([[resizing(c, wide, size) for wide in menu] for c in menu], np.float32)

    def matrices(
        self, logits: Mapping[str, jax.Array], key: jax.Array, tau: Any
    ) -> dict[str, jax.Array]:
        """{group: [units, units]}: what a draw makes of the channels of every group."""
        made = {}
        for number, name in enumerate(self.names):
            which, weights = two_of(jax.random.fold_in(key, number), logits[name], tau)
            # C' is the wider of both; menus rise, so it is the later one.
            table = jnp.asarray(self.tables(name))[which, which.max()]
            # output = sum_j phat_j CWI(x_j, C')
            made[name] = jnp.tensordot(weights, table, 1)
        return made

    def run(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn'(variables, logits, key, tau, *args)`: the net with mixed widths.

        The channels are mixed where a layer's norm ends, before the nonlinearity; on a residual
        stream all that is added is mixed alike, so that their sum is.
        """
        # Where a layer's result has units of a group, on the way to a nonlinearity or a sum.
        run = intercept(fn, self.groups, self._handler, ("norm",))

        def mixed(variables: Any, logits: Any, key: Any, tau: Any, *args: Any) -> Any:
            return run(variables, self.matrices(logits, key, tau), *args)[0]

        return mixed

    def _handler(self, site: Site, value: Any, matrices: Any) -> tuple[Any, Any]:
        layer = self.groups.layers[site.kernel]
        for name, units in site.units.items():
            if name not in matrices or name not in layer.writes:
                continue
            inside = np.flatnonzero(units >= 0)
            matrix = matrices[name].astype(value.dtype)[units[inside]][:, units[inside]]
            channels = jnp.moveaxis(value, site.axis, -1)
            mixed = channels[..., inside] @ matrix.T
            value = jnp.moveaxis(channels.at[..., inside].set(mixed), -1, site.axis)
        return value, matrices

    def expected(self, logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{group: E[C] = sum_j softmax(A)_j c_j}, without noise."""
        return {n: jax.nn.softmax(logits[n]) @ jnp.asarray(self.widths[n], float) for n in logits}

    def likeliest(self, logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{group: the width with the largest logit}."""
        return {n: jnp.asarray(self.widths[n])[jnp.argmax(logits[n])] for n in logits}


def cost_loss(
    mixture: Mixture,
    logits: Mapping[str, jax.Array],
    model: CostModel,
    target: float,
    tolerance: float = 0.05,
) -> jax.Array:
    """What the cost adds to the loss of the logits: nothing while the likeliest widths fit.

    Args:
        mixture: the candidates.
        logits: of every group.
        model: `jprune.cost_model(...)`; its MACs are what is counted.
        target: R, as a fraction of the dense net.
        tolerance: t: below R - t, cost is raised.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> v, x = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3))
        >>> groups = jprune.trace(fn, v, x)
        >>> mixture = Mixture(groups, {"a": (2, 4)})
        >>> model = jprune.cost_model(fn, v, x, groups=groups)
        >>> logits = {"a": jnp.array([0.0, 1.0])}
        >>> [float(cost_loss(mixture, logits, model, r)) > 0 for r in (0.5, 1.0)]
        [True, False]
    """
    whole = float(model({}).macs)
    now = model(mixture.likeliest(logits)).macs / whole
    # log E[F] of independent widths, which the cost model is multilinear in where no layer reads
    # and writes one group
    expected = jnp.log(model(mixture.expected(logits)).macs)
    # +log E[F] if F > R; -log E[F] if F < R - t; 0 otherwise
    sign = jnp.where(now > target, 1.0, jnp.where(now < target - tolerance, -1.0, 0.0))
    return sign * expected


def entropies(logits: Mapping[str, jax.Array]) -> jax.Array:
    """The mean entropy of the widths over that of even ones: 1 is undecided, 0 decided."""
    each = [
        -(jax.nn.softmax(of) * jax.nn.log_softmax(of)).sum() / math.log(of.size)
        for of in logits.values()
    ]
    return jnp.stack(each).mean()
