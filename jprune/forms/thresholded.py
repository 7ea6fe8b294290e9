"""Thresholded: a kernel whose output channels are open where a saliency reaches a threshold.

    a = mean over positions of x,   pi = clip(relu(a squeeze) excite + level, 0, 1000)
    g_j = pi_j 1[pi_j >= threshold]

How many channels are open differs from example to example.

References:
    Tang, Wang, Xu, Deng, Xu, Tao, Xu, Manifold regularized dynamic network pruning, 2021,
    arXiv 2103.05861 [38].
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune.forms.gated import GatedKernel, pooled

MOST = 1000.0
"""The largest saliency."""


def squeezed(
    x: jax.Array, squeeze: jax.Array, excite: jax.Array, level: jax.Array, axis: int = -1
) -> jax.Array:
    """Saliences [batch, outputs] of a layer's channels, from what the layer reads.

    Args:
        x: input of the layer, the batch first.
        squeeze: [inputs, hidden].
        excite: [hidden, outputs].
        level: [outputs].
        axis: the channels of x.

    Example:
        >>> x = jnp.array([[[1.0, -3.0], [3.0, 1.0]]])  # one example, 2 positions
        >>> squeezed(x, jnp.eye(2), jnp.eye(2), jnp.array([0.5, 1.0])).tolist()
        [[2.5, 1.0]]
    """
    # pi = relu(W2 relu(W1 gap(x)) + b2), at most 1000
    hidden = jax.nn.relu(pooled(x, axis) @ squeeze)
    return jnp.clip(hidden @ excite + level, 0.0, MOST)


def passing(pi: jax.Array, threshold: Any) -> jax.Array:
    """Saliences that reach the threshold; the others become 0.

    The gradient passes through what is open, not through the choice.

    Example:
        >>> passing(jnp.array([[1.5, 0.25, 0.5]]), 0.5).tolist()
        [[1.5, 0.0, 0.5]]
    """
    # m_j = pi_j 1[pi_j >= xi]
    return jnp.where(jax.lax.stop_gradient(pi) >= threshold, pi, 0)


@jax.tree_util.register_pytree_node_class
class Thresholded(GatedKernel):
    """A kernel whose outputs are gated by saliences above a threshold.

    Args:
        kernel: in any layout; the contraction that reads it says which axis is what.
        offset: [outputs], added before the gate.
        bonus: [outputs], added to open outputs after the gate.
        squeeze: [inputs, hidden].
        excite: [hidden, outputs].
        level: [outputs].
        threshold: a number, the same for all examples.

    Example:
        >>> branch = (jnp.eye(3), jnp.eye(3)[:, :2], jnp.ones(2))
        >>> leaf = Thresholded(jnp.ones((3, 2)), *jnp.zeros((2, 2)), *branch, 1.5)
        >>> leaf.gates(jnp.array([[1.0, 0.0, 4.0], [0.0, 2.0, 0.0]])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """

    parts = ("kernel", "offset", "bonus", "squeeze", "excite", "level", "threshold")

    def __init__(
        self,
        kernel: Any,
        offset: Any,
        bonus: Any,
        squeeze: Any,
        excite: Any,
        level: Any,
        threshold: Any,
    ):
        self.kernel, self.offset, self.bonus = kernel, offset, bonus
        self.squeeze, self.excite = squeeze, excite
        self.level, self.threshold = level, threshold

    def __repr__(self) -> str:
        return f"Thresholded({self.level.size} outputs at {self.threshold}, {self.dtype})"

    def plan(self) -> dict[str, Any]:
        """How many outputs an example can have, as plain data: all of them."""
        return {"outputs": int(self.level.size)}

    def gates(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """[batch, outputs] for an input of the layer."""
        pi = squeezed(x, self.squeeze, self.excite, self.level, axis)
        return passing(pi, self.threshold)

    @property
    def gate_macs(self) -> int:
        """MACs of the two layers that say the saliences."""
        return self.squeeze.size + self.excite.size
