"""FromMenu: a kernel whose outputs are multiplied by one of a few vectors, chosen by the example.

    a = mean over positions of relu(x),   action = argmax(a head),   g = menu[action]

A row of the menu is a set of channels with a number for each, 0 for those that are left out.

References:
    Wang, Zhang, Hu, Zhang, Su, Dynamic network pruning with interpretable layerwise channel
    selection, AAAI 2020 [35].
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune.forms.gated import GatedKernel, pooled


def readings(x: jax.Array, axis: int = -1) -> jax.Array:
    """What a head reads of a layer's input: [batch, inputs].

    Example:
        >>> readings(jnp.array([[[1.0, -3.0], [3.0, 1.0]]])).tolist()  # one example, 2 positions
        [[2.0, 0.5]]
    """
    # a = gap(relu(X))
    return pooled(jax.nn.relu(x), axis)


@jax.tree_util.register_pytree_node_class
class FromMenu(GatedKernel):
    """A kernel whose outputs are gated by a row of a menu.

    Args:
        kernel: in any layout; the contraction that reads it says which axis is what.
        offset: [outputs], added before the gate.
        bonus: [outputs], added to open outputs after the gate.
        head: [inputs, actions].
        menu: [actions, outputs], 0 or more.

    Example:
        >>> menu = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> leaf = FromMenu(jnp.ones((3, 2)), *jnp.zeros((2, 2)), jnp.eye(3)[:, :2], menu)
        >>> leaf.gates(jnp.array([[1.0, 0.0, 4.0], [0.0, 2.0, 0.0]])).tolist()
        [[1.0, 0.0], [0.0, 2.0]]
    """

    parts = ("kernel", "offset", "bonus", "head", "menu")

    def __init__(self, kernel: Any, offset: Any, bonus: Any, head: Any, menu: Any):
        self.kernel, self.offset, self.bonus = kernel, offset, bonus
        self.head, self.menu = head, menu

    def __repr__(self) -> str:
        return f"FromMenu({self.menu.shape[0]} sets of {self.menu.shape[1]}, {self.dtype})"

    def plan(self) -> dict[str, Any]:
        """How many outputs an example can have, as plain data: those of the largest set."""
        return {"outputs": int((self.menu > 0).sum(axis=-1).max())}

    def probabilities(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """[batch, actions] for an input of the layer; the largest one is the action."""
        # p = softmax(Wh a)
        return jax.nn.softmax(readings(x, axis) @ self.head)

    def gates(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """[batch, outputs] for an input of the layer."""
        # c = G[argmax p]
        actions = (readings(x, axis) @ self.head).argmax(axis=-1)
        return jnp.take(self.menu, actions, axis=0)

    @property
    def gate_macs(self) -> int:
        """MACs of the head."""
        return self.head.size
