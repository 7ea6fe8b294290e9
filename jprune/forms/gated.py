"""Kernels whose output channels are chosen for every example: what their forms share.

    out_j = g_j (kernel x + offset)_j + 1[g_j > 0] bonus_j,   g = gates(x) [batch, outputs]

A form says what g is: `winners.py` (the largest of every example), `thresholded.py` (those above a
threshold). All channels are computed here and those not chosen are multiplied by 0, since XLA has
no convolution that skips different channels for every example: savings are counted, not timed.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.forms.slide import channel_axes
from jprune.jaxprs import Equation, bind


class GatedKernel(abc.ABC):
    """A kernel whose outputs are multiplied by gates that are read off the layer's input.

    A form of it names its arrays in `parts`, in the order of its constructor, and has `gates`,
    `gate_macs` and `plan`.
    """

    parts: ClassVar[tuple[str, ...]]
    # Which outputs exist depends on the example, so that no array is equal to this kernel.
    dynamic = True
    kernel: Any
    offset: Any
    bonus: Any

    @abc.abstractmethod
    def plan(self) -> dict[str, Any]:
        """How many outputs an example can have, as plain data."""

    @abc.abstractmethod
    def gates(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """[batch, outputs] for an input of the layer; `axis` has its channels."""

    @property
    @abc.abstractmethod
    def gate_macs(self) -> int:
        """MACs of an example's gates, without what multiplies the outputs."""

    @classmethod
    def planned(cls, kernel: Any, plan: Any) -> "GatedKernel":
        """Refuses: a plan does not hold what makes the gates.

        Raises:
            StructureError: always.
        """
        raise errors.StructureError(
            f"a plan cannot make gates ({plan['outputs']} outputs win) of a dense kernel of shape "
            f"{kernel.shape}: the predictor is trained. Read it with the net, from params/ of its "
            "run."
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return self.kernel.shape

    @property
    def dtype(self) -> Any:
        """Type of the kernel."""
        return self.kernel.dtype

    def dense(self) -> jax.Array:
        """The kernel without its gates."""
        return self.kernel

    def boosted(self, result: jax.Array, gates: jax.Array, axis: int = -1) -> jax.Array:
        """The contraction's result multiplied by the gates; exactly 0 where a gate is 0."""
        # Y_j = g_j (conv(x) + offset)_j, the offset gated too: else a suppressed channel would give
        # relu(offset). `bonus` is what only open channels get, 1[g_j > 0] bonus_j.
        others = [place for place in range(result.ndim) if place not in (0, axis % result.ndim)]
        along = lambda values: jnp.expand_dims(values, others).astype(result.dtype)
        gate, offset, bonus = along(gates), along(self.offset[None]), along(self.bonus[None])
        return gate * (result + offset) + (gate > 0) * bonus

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """The contraction, then the gates."""
        in_axis, out_axis = channel_axes(equation)
        result = bind(equation, (x, self.kernel))[0]
        return self.boosted(result, self.gates(x, in_axis), out_axis)

    def cast(self, cast: Callable[[Any], Any]) -> Any:
        """The kernel through a function, its gates as they are."""
        parts = {name: getattr(self, name) for name in self.parts}
        return type(self)(**{**parts, "kernel": cast(self.kernel)})

    def tree_flatten(self) -> tuple[Any, Any]:
        """All parts are data."""
        return tuple(getattr(self, name) for name in self.parts), None

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> Any:
        """Inverse of `tree_flatten`."""
        del static
        return cls(*children)


def pooled(x: jax.Array, axis: int = -1) -> jax.Array:
    """[batch, channels]: means over the positions of an input; the batch is its first axis.

    Example:
        >>> pooled(jnp.array([[[1.0, -0.5], [3.0, 0.5]]])).tolist()  # one example, 2 positions
        [[2.0, 0.0]]
    """
    last = jnp.moveaxis(x, axis, -1)
    return last.mean(axis=tuple(range(1, last.ndim - 1)))
