"""Many weights are removed at once, and all others adapted to it once.

References:
    Singh, Alistarh, WoodFisher: efficient second-order approximation for neural network
    compression, 2020, arXiv 2004.14340. Frantar, Kurtic, Alistarh, M-FAC: efficient matrix-free
    approximations of second-order information, 2021, arXiv 2107.03356.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Layer, Masks, Scores, Variables
from jprune.curvature import blocks_of, inverse_diagonal, parameters_of, removal


class Surgery(NamedTuple):
    """Weights that compete, and what curvature says of them.

    Attributes:
        variables: of the net.
        alive: a tree like the variables: True where a weight competes (and may move), False where
            it is gone, None for leaves that stay as they are.
        rows: [m, parameters], whose outer products are the curvature: `fisher_rows`.
        damping: added to its diagonal.
        block: largest block of the inverse, within a layer; None: one block of all weights.
        layers: `groups.layers` of the net, for blocks within layers.

    Example:
        >>> import jprune
        >>> from jprune.curvature import fisher_rows
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: out[:, 0]
        >>> batch = {"image": np.array([[1.0, 0.0], [1.0, 1.0]])}
        >>> variables = {"w": np.ones((2, 1), np.float32)}
        >>> rows = fisher_rows(fn, loss, variables, [batch])
        >>> surgery = Surgery(variables, {"w": np.ones((2, 1), bool)}, rows, 1.0)
        >>> scores = surgery.saliencies()
        >>> scores["w"][:, 0].round(6).tolist()
        [0.916667, 0.6875]
        >>> keep = jprune.allocate.global_topk(scores, jprune.Budget(density=0.5))
        >>> pruned, rise = surgery.without(keep)
        >>> pruned["w"][:, 0].tolist(), round(rise, 6)
        ([1.25, 0.0], 0.6875)
    """

    variables: Variables
    alive: Masks
    rows: np.ndarray
    damping: float
    block: int | None = None
    layers: Mapping[str, Layer] = {}

    def saliencies(self) -> Scores:
        """w_q^2 / (2 [F^-1]_qq) of the weights that compete, -inf where they are gone.

        Raises:
            ArgumentError: a damping that is not above 0, or a block below 1.
        """
        values = self._values()
        scores = np.full(len(values), -np.inf)
        for part in self._blocks():
            # rho_q = w_q^2 / (2 [F^-1]_qq)
            diagonal = inverse_diagonal(self.rows[:, part], self.damping)
            scores[part] = values[part] ** 2 / (2 * diagonal)
        return self._tree(scores)

    def without(self, keep: Masks, update: str = "joint") -> tuple[Variables, float]:
        """The net without the other weights, and what that is predicted to cost.

        Args:
            keep: like `alive`, True where a weight stays.
            update: "joint" or "summed": see `jprune.curvature.removal`.

        Returns:
            Variables, and the predicted increase of the loss, 1/2 d^T F d over all blocks.
        """
        values, kept, rise = self._values(), self._flat(keep), 0.0
        for part in self._blocks():
            change, cost = removal(
                values[part], self.rows[:, part], self.damping, ~kept[part], update
            )
            # Exactly 0 where a weight goes, whatever the sum rounds to.
            values[part] = (values[part] + change) * kept[part]
            rise += cost
        parameters = parameters_of(self.variables)
        moved = self._split(values)
        competes = jax.tree.structure(self.variables).flatten_up_to(self.alive)
        new = [
            old if competes[place] is None else jnp.asarray(value, old.dtype)
            for place, value, old in zip(parameters.places, moved, parameters.values)
        ]
        return parameters.into(new), rise

    def _blocks(self) -> list[np.ndarray]:
        """Numbers of the weights that compete, block by block."""
        if self.block is not None and self.block < 1:
            raise errors.ArgumentError(
                f"block={self.block}; it is 1 or more, or None for one block of all weights."
            )
        alive = self._flat(self.alive)
        parts = [part[alive[part]] for part in blocks_of(self.variables, self.block, self.layers)]
        return [part for part in parts if len(part)]

    def _values(self) -> np.ndarray:
        values = parameters_of(self.variables).values
        return np.concatenate([np.ravel(value) for value in values]).astype(np.float64)

    def _flat(self, masks: Masks) -> np.ndarray:
        """Bool [parameters]; False where there is no mask."""
        parameters = parameters_of(self.variables)
        leaves = jax.tree.structure(self.variables).flatten_up_to(masks)
        pairs = zip(parameters.places, parameters.values)
        return np.concatenate(
            [
                np.zeros(value.size, bool) if leaves[n] is None else np.ravel(leaves[n])
                for n, value in pairs
            ]
        )

    def _split(self, flat: np.ndarray) -> list[np.ndarray]:
        values = parameters_of(self.variables).values
        ends = np.cumsum([value.size for value in values])[:-1]
        return [part.reshape(value.shape) for part, value in zip(np.split(flat, ends), values)]

    def _tree(self, flat: np.ndarray) -> Any:
        """A tree like the variables, None where nothing competes."""
        parameters = parameters_of(self.variables)
        competes = jax.tree.structure(self.variables).flatten_up_to(self.alive)
        parts = zip(parameters.places, self._split(flat))
        return parameters.tree([None if competes[n] is None else part for n, part in parts])
