"""The Kronecker-factored eigenbasis: there, K-FAC's Fisher block of a layer is diagonal.

With A = Q_A L_A Q_A^T and S = Q_S L_S Q_S^T, removing entry i, j of the rotated kernel
W' = Q_S^T W Q_A costs

    Theta_ij = 1/2 W'_ij^2 l_S,i l_A,j

and removing several entries costs exactly the sum of theirs.

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
from jprune.forms.layout import Axes

TINY = 1e-10
"""Eigenvalues below it are set to 0, as in the authors' code: entries there cost nothing."""


class Rotated(NamedTuple):
    """A kernel in the eigenbasis; float64, on the host.

    Attributes:
        inputs: Q_A: [inputs, inputs], a column per eigenvector.
        outputs: Q_S: [outputs, outputs].
        core: W': [window..., inputs, outputs].
        damage: Theta, summed over the window: [inputs, outputs].
    """

    inputs: np.ndarray
    outputs: np.ndarray
    core: np.ndarray
    damage: np.ndarray

    def part(
        self, columns: np.ndarray, rows: np.ndarray, dtype: Any, axes: Axes = None
    ) -> Factored:
        """The kernel made of some columns (inputs) and rows (outputs) of the rotated one.

        Args:
            columns: bool [inputs], True keeps.
            rows: bool [outputs].
            dtype: of the result.
            axes: of the kernel that it stands for, as (window..., inputs, outputs).
        """
        # W ~ Q_S[:, R] W'[R, C] Q_A[:, C]^T, in JAX's layout with inputs to the left.
        return Factored(
            jnp.asarray(self.inputs[:, columns], dtype),
            jnp.asarray(self.core[..., columns, :][..., rows], dtype),
            jnp.asarray(self.outputs[:, rows].T, dtype),
            axes,
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
    # W' = Q_S^T W Q_A of every place of the window; transposed, as a kernel is [inputs, outputs].
    core = inputs.T @ kernel @ outputs
    # Theta_ij = 1/2 l_S,i l_A,j sum over the window of W'_ij^2
    squares = (core**2).reshape(-1, *core.shape[-2:]).sum(axis=0)
    return Rotated(inputs, outputs, core, squares * np.outer(values_a, values_s) / 2)
