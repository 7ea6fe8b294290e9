"""Winners: a kernel whose output channels are chosen for every example.

    s_c = mean over positions of |x_c|,   g = relu(s predictor + level)
    out_j = g_j (kernel x + offset)_j + 1[g_j > 0] bonus_j   for the k largest g_j, else 0

The paper's phi is `predictor`, its rho `level`, its beta `offset` or, in the form of the authors'
code, `bonus`.

References:
    Gao, Zhao, Dudziak, Mullins, Xu, Dynamic channel pruning: feature boosting and suppression,
    2019, arXiv 1810.05331 [32].
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune.forms.gated import GatedKernel


def saliences(x: jax.Array, predictor: jax.Array, level: jax.Array, axis: int = -1) -> jax.Array:
    """Gates g [batch, outputs] before the choice of winners.

    Args:
        x: input of the layer, the batch first.
        predictor: [inputs, outputs].
        level: [outputs].
        axis: the channels of x.

    Example:
        >>> x = jnp.array([[[1.0, -0.5]], [[1.0, 0.5]]])  # one image, 2 positions
        >>> saliences(x.reshape(1, 2, 2), jnp.eye(2), jnp.zeros(2)).tolist()
        [[1.0, 0.5]]
    """
    # s_c = mean over h, w of |x_hwc|;  g = relu(s phi + rho)
    last = jnp.moveaxis(x, axis, -1)
    sizes = jnp.abs(last).mean(axis=tuple(range(1, last.ndim - 1)))
    return jax.nn.relu(sizes @ predictor + level)


def winners(g: jax.Array, count: Any) -> jax.Array:
    """The `count` largest gates of every example; the others become 0. Ties go by index.

    The gradient passes through the values of the winners, not through the choice. `count` may be
    traced.

    Example:
        >>> winners(jnp.array([[1.3, 0.1, 0.9, 0.0]]), 2).round(2).tolist()
        [[1.2999999523162842, 0.0, 0.8999999761581421, 0.0]]
    """
    # pi_j = g_j if fewer than k gates rank before it. The rank is counted by comparing all pairs,
    # [batch, outputs, outputs]: for a few hundred channels less work than a sort.
    order = jnp.arange(g.shape[-1])
    ahead = g[:, None, :] > g[:, :, None]
    ties = (g[:, None, :] == g[:, :, None]) & (order[None, :] < order[:, None])
    rank = jax.lax.stop_gradient((ahead | ties).sum(axis=-1))
    return jnp.where(rank < count, g, 0)


@jax.tree_util.register_pytree_node_class
class Winners(GatedKernel):
    """A kernel whose outputs are gated by a predictor that reads the layer's input.

    Args:
        kernel: in any layout; the contraction that reads it says which axis is what.
        offset: [outputs], added before the gate.
        bonus: [outputs], added to the winners after the gate.
        predictor: [inputs, outputs].
        level: [outputs].
        count: how many outputs win in an example, int.

    Example:
        >>> leaf = Winners(jnp.ones((3, 2)), *jnp.zeros((2, 2)), jnp.eye(3)[:, :2], jnp.ones(2), 1)
        >>> leaf.gates(jnp.array([[1.0, 0.0, 4.0], [0.0, 2.0, 0.0]])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """

    parts = ("kernel", "offset", "bonus", "predictor", "level", "count")

    def __init__(
        self, kernel: Any, offset: Any, bonus: Any, predictor: Any, level: Any, count: Any
    ):
        self.kernel, self.offset, self.bonus = kernel, offset, bonus
        self.predictor, self.level, self.count = predictor, level, count

    def __repr__(self) -> str:
        return f"Winners({self.count} of {self.level.size} outputs, {self.dtype})"

    def plan(self) -> dict[str, Any]:
        """How many outputs win, as plain data."""
        return {"outputs": int(self.count)}

    def gates(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """[batch, outputs] for an input of the layer."""
        return winners(saliences(x, self.predictor, self.level, axis), self.count)

    @property
    def gate_macs(self) -> int:
        """MACs of the predictor."""
        return self.predictor.size
