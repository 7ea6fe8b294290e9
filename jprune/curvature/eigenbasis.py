"""The Kronecker-factored eigenbasis: there, K-FAC's Fisher block of a layer is diagonal.

With A = Q_A L_A Q_A^T and S = Q_S L_S Q_S^T, the rotated kernel W' = Q_S^T W Q_A has the damage

    Theta_ij = 1/2 W'_ij^2 l_S,i l_A,j

if its entry i, j is removed, and the damage of several is exactly the sum of theirs.

References:
    Wang, Grosse, Fidler, Zhang, EigenDamage: structured pruning in the Kronecker-factored
    eigenbasis, 2019, arXiv 1905.05934 [28]. The basis: George, Laurent, Bouthillier, Ballas,
    Vincent, Fast approximate natural gradient descent in a Kronecker-factored eigenbasis, 2018,
    arXiv 1806.03884.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jprune.curvature.blocks import Factors, checked
from jprune.forms.factored import Factored

TINY = 1e-10
"""Eigenvalues below it are 0, as in the authors' code: entries there cost nothing."""


class Rotated(NamedTuple):
    """A kernel in the eigenbasis; float64, on the host."""

    inputs: np.ndarray
    """Q_A: [inputs, inputs], a column per eigenvector."""
    outputs: np.ndarray
    """Q_S: [outputs, outputs]."""
    core: np.ndarray
    """W': [window..., inputs, outputs]."""
    damage: np.ndarray
    """Theta, summed over the window: [inputs, outputs]."""

    def part(self, columns: np.ndarray, rows: np.ndarray, dtype: Any) -> Factored:
        """The kernel with some columns (inputs) and rows (outputs) of the rotated one.

        Args:
            columns: bool [inputs], True keeps.
            rows: bool [outputs].
            dtype: of the result.
        """
        return Factored(
            jnp.asarray(self.inputs[:, columns], dtype),
            jnp.asarray(self.core[..., columns, :][..., rows], dtype),
            jnp.asarray(self.outputs[:, rows].T, dtype),
        )


def rotated(kernel: Any, factors: Factors, path: str = "the kernel") -> Rotated:
    """A kernel in the eigenbasis of its factors.

    Args:
        kernel: [window..., inputs, outputs].
        factors: A of the channels, [inputs, inputs]: every place of the window is rotated alike, so
            that the rotations are 1 x 1 convolutions.
        path: of the kernel, for messages.

    Raises:
        ArgumentError: curvature that is not finite, or negative.

    Example:
        >>> factors = Factors(np.diag([3.0, 1.0]), np.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> rotated(np.array([[1.0, 1.0], [1.0, -1.0]]), factors).damage.round(6)
        array([[1., 0.],
               [0., 9.]])
    """
    a, s = checked(path, factors)
    kernel = np.asarray(kernel, np.float64)
    (values_a, inputs), (values_s, outputs) = np.linalg.eigh(a), np.linalg.eigh(s)
    values_a, values_s = (np.where(v < TINY, 0.0, v) for v in (values_a, values_s))
    core = inputs.T @ kernel @ outputs
    squares = (core**2).reshape(-1, *core.shape[-2:]).sum(axis=0)
    return Rotated(inputs, outputs, core, squares * np.outer(values_a, values_s) / 2)
