"""Shapes as probabilities: candidate widths and depths are run at once, and mixed.

Every group has logits over candidate widths. A step draws two of them without replacement; what a
layer says is cut to the leading channels of each, both are resized to the wider one by averages of
neighbouring channels, and their sum is weighted by the softmax over the two. The residual blocks of
a stage have logits over depths: a block counts with the probability that the stage is as deep. The
expected cost is that of the softmax of all logits.

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
from jprune.base import Groups, PyTree
from jprune.blocks.depths import Depths
from jprune.graph import Site, intercept

Logits = Mapping[str, jax.Array]
"""{group or stage: [candidates]}."""
Price = Callable[[Mapping[str, Any]], Any]
"""`price({group: width, branch: 0..1})`: the cost as a fraction of the whole net's."""


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


def resizing(before: Any, after: Any, size: int | None = None) -> Any:
    """[after, before]: averages that turn so many channels into so many others.

    Args:
        before: C, the channels that there are.
        after: C'.
        size: rows and columns, filled up with 0, where the numbers may be traced; None: no more
            than it takes.

    Example:
        >>> (resizing(5, 3) @ np.arange(1.0, 6)).tolist()
        [1.5, 3.0, 4.5]
    """
    rows, columns = (after, before) if size is None else (size, size)
    row, column = np.arange(rows)[:, None], np.arange(columns)
    # out[i] = mean(x[floor(i C / C') : ceil((i + 1) C / C')]), i < C'
    first, last = row * before // after, -(-(row + 1) * before // after)
    inside = (row < after) & (column >= first) & (column < last)
    return inside / (last - first)


def temperature(progress: Any, highest: float = 5.0, lowest: float = 0.1) -> Any:
    """Tau after a part of the search, in 0..1: from the highest to the lowest on a cosine.

    Example:
        >>> [round(float(temperature(t)), 4) for t in (0, 0.5, 1)]
        [5.0, 2.55, 0.1]
    """
    # tau(t) = tmin + (tmax - tmin) (1 + cos(pi t)) / 2
    return lowest + (highest - lowest) * (1 + jnp.cos(jnp.pi * progress)) / 2


def noisy(key: jax.Array, logits: jax.Array, tau: Any) -> jax.Array:
    """[candidates]: z, whose softmax is a draw of Gumbel-softmax."""
    # z = (log_softmax(A) + Gumbel(0, 1)) / tau
    return (jax.nn.log_softmax(logits) + jax.random.gumbel(key, logits.shape)) / tau


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
    z = noisy(first, logits, tau)
    # p = softmax(z); the two largest of log p + Gumbel noise: a draw from p without replacement
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(z))
    _, which = jax.lax.top_k(log_p + jax.random.gumbel(second, logits.shape), 2)
    return which, jax.nn.softmax(z[which])


class Mixture:
    """Widths of the groups of a net, and depths of its stages, mixed where it runs.

    A shape is {group: width, branch: 1 or 0}; widths and branches may be real numbers, too.

    Attributes:
        groups: of the net.
        widths: {group: candidate widths, rising}.
        depths: {stage: `Depths`}.
        sizes: {group or stage: number of candidates}.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> v = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> groups = jprune.trace(fn, v, jnp.ones((1, 3)))
        >>> mixture = Mixture(groups, {"a": (2, 4)})
        >>> draw = mixture.draw({"a": jnp.zeros(2)}, jax.random.key(0), tau=1.0)
        >>> mixture.run(fn)(v, {}, draw, jnp.ones((1, 3))).tolist()
        [[12.0, 12.0]]
    """

    def __init__(
        self,
        groups: Groups,
        widths: Mapping[str, Sequence[int]],
        depths: Mapping[str, Depths] | None = None,
    ):
        self.groups, self.depths = groups, dict(depths or {})
        self.widths = {name: tuple(menu) for name, menu in widths.items()}
        for name, menu in self.widths.items():
            size = groups.sizes.get(name, 0)
            if len(menu) < 2 or [*menu] != sorted({*menu}) or not 1 <= menu[0] <= menu[-1] <= size:
                raise errors.ArgumentError(
                    f"widths of {name}: {menu}; write two or more different ones from 1 to {size}, "
                    "rising."
                )
        menus = {**self.widths, **{name: stage.menu for name, stage in self.depths.items()}}
        self.sizes = {name: len(menu) for name, menu in menus.items()}

    def logits(self, key: jax.Array, spread: float = 0.01) -> dict[str, jax.Array]:
        """Initial logits: normal, with this standard deviation."""
        # A, B ~ N(0, 0.01^2)
        each = lambda number, size: (
            spread * jax.random.normal(jax.random.fold_in(key, number), (size,))
        )
        return {name: each(number, size) for number, (name, size) in enumerate(self.sizes.items())}

    def norms(self) -> PyTree:
        """{group: {layer: scale and shift [candidates, units]}}: ones and zeros.

        Every candidate has a norm of its own: behind the layer's norm, whose statistics of a batch
        are the same for all candidates, stand a scale and a shift for each.
        """
        layers = self.groups.layers.items()
        return {
            name: {
                path: {
                    "scale": jnp.ones((len(menu), self.groups.sizes[name])),
                    "shift": jnp.zeros((len(menu), self.groups.sizes[name])),
                }
                for path, layer in layers
                if name in layer.writes and "scale" in layer.affine.values()
            }
            for name, menu in self.widths.items()
        }

    def draw(self, logits: Logits, key: jax.Array, tau: Any) -> dict[str, Any]:
        """{group: (two candidates, their weights), branch: how much it counts}."""
        keys = {name: jax.random.fold_in(key, number) for number, name in enumerate(self.sizes)}
        drawn: dict[str, Any] = {n: two_of(keys[n], logits[n], tau) for n in self.widths}
        for name, stage in self.depths.items():
            # All depths at once: p = softmax(z)
            drawn |= _counting(stage, jax.nn.softmax(noisy(keys[name], logits[name], tau)))
        return drawn

    def run(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn'(variables, norms, draw, *args)`: the net with mixed widths and depths.

        The channels are mixed where a layer's norm ends, before the nonlinearity; on a residual
        stream all that is added is mixed alike, so that their sum is. Norms are those of `norms`,
        or {}.
        """
        run = intercept(fn, self.groups, self._handler, ("norm", "branch"))

        def mixed(variables: Any, norms: Any, draw: Any, *args: Any) -> Any:
            return run(variables, (norms, draw), *args)[0]

        return mixed

    def _handler(self, site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        norms, draw = carry
        if site.kind == "branch":
            return value * jnp.asarray(draw.get(site.layer, 1.0), value.dtype), carry
        for name, units in site.units.items():
            if name not in self.widths or name not in self.groups.layers[site.kernel].writes:
                continue
            own = norms.get(name, {}).get(site.kernel)
            matrix, shift = (part.astype(value.dtype) for part in self._mix(name, draw[name], own))
            inside = np.flatnonzero(units >= 0)
            units = units[inside]
            # A unit that stands at several positions is mixed position by position.
            turn = np.array([(units[:place] == unit).sum() for place, unit in enumerate(units)])
            matrix = matrix[units][:, units] * (turn[:, None] == turn)
            channels = jnp.moveaxis(value, site.axis, -1)
            mixed = channels[..., inside] @ matrix.T + shift[units]
            value = jnp.moveaxis(channels.at[..., inside].set(mixed), -1, site.axis)
        return value, carry

    def _mix(self, name: str, drawn: Any, norm: Any) -> tuple[jax.Array, jax.Array]:
        """[units, units] and [units]: what is made of the channels of a layer, and added."""
        which, weights = drawn
        two, size = jnp.asarray(self.widths[name])[which], self.groups.sizes[name]
        # C' is the wider of both.
        tables = jnp.stack([resizing(width, two.max(), size) for width in two])
        if norm is None:
            return jnp.tensordot(weights, tables, 1), jnp.zeros(size)
        # output = sum_j phat_j CWI(scale_j x + shift_j, C')
        return (
            jnp.einsum("j,jab,jb->ab", weights, tables, norm["scale"][which]),
            jnp.einsum("j,jab,jb->a", weights, tables, norm["shift"][which]),
        )

    def expected(self, logits: Logits) -> dict[str, jax.Array]:
        """The mean shape, without noise."""
        # E[C] = sum_j softmax(A)_j c_j
        shape = {
            n: jax.nn.softmax(logits[n]) @ jnp.asarray(menu, float)
            for n, menu in self.widths.items()
        }
        for name, stage in self.depths.items():
            shape |= _counting(stage, jax.nn.softmax(logits[name]))
        return shape

    def shape(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """The shape of {group or stage: number of its candidate}."""
        shape = {n: jnp.asarray(menu)[choice[n]] for n, menu in self.widths.items()}
        for name, stage in self.depths.items():
            shape |= _counting(stage, jax.nn.one_hot(choice[name], len(stage.menu)))
        return shape

    def likeliest(self, logits: Logits) -> dict[str, Any]:
        """The shape with the largest logits."""
        return self.shape({name: jnp.argmax(logits[name]) for name in self.sizes})


def _counting(stage: Depths, p: jax.Array) -> dict[str, jax.Array]:
    """{branch: P(depth >= its place)}: cumulative sums from the end."""
    menu = np.asarray(stage.menu)
    # P(depth >= a) = sum of p over depths of a and more
    return {branch: (p * (menu > place)).sum() for place, branch in enumerate(stage.branches)}


def cost_loss(
    mixture: Mixture, logits: Logits, price: Price, target: float, tolerance: float = 0.05
) -> jax.Array:
    """What the cost adds to the loss of the logits: nothing while the likeliest shape fits.

    Args:
        mixture: the candidates.
        logits: of every group and stage.
        price: what a shape costs; has a gradient.
        target: R, as a fraction of the dense net.
        tolerance: t: below R - t, cost is raised.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> v, x = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3))
        >>> groups = jprune.trace(fn, v, x)
        >>> mixture = Mixture(groups, {"a": (2, 4)})
        >>> price = lambda shape: shape["a"] / 4
        >>> logits = {"a": jnp.array([0.0, 1.0])}
        >>> [bool(cost_loss(mixture, logits, price, r) != 0) for r in (0.5, 1.0)]
        [True, False]
    """
    now = price(mixture.likeliest(logits))
    # log E[F] of independent candidates, in which the cost of a net is linear one by one where no
    # layer reads and writes one group
    expected = jnp.log(price(mixture.expected(logits)))
    # +log E[F] if F > R; -log E[F] if F < R - t; 0 otherwise
    sign = jnp.where(now > target, 1.0, jnp.where(now < target - tolerance, -1.0, 0.0))
    return sign * expected


def entropy(logits: Logits) -> jax.Array:
    """The mean entropy of the choices over that of even ones: 1 is undecided, 0 decided."""
    each = [
        -(jax.nn.softmax(of) * jax.nn.log_softmax(of)).sum() / math.log(of.size)
        for of in logits.values()
    ]
    return jnp.stack(each).mean()
