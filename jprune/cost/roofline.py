"""Where sparsity pays: how fast a layer can be on a machine, by arithmetic and by bandwidth.

    speedup(x) = t_dense / max(t_compute, t_bandwidth)

References:
    Park, Li, Wen, Tang, Li, Chen, Dubey, Faster CNNs with direct sparse convolutions and guided
    pruning, 2017, arXiv 1608.01409 [11].
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jprune import errors
from jprune.base import Groups
from jprune.cost.contractions import Term, macs
from jprune.cost.model import cost_model
from jprune.graph.layers import examples_in


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine, for the roofline of sparse layers.

    Attributes:
        flops: operations a second in a dense product, a multiply-accumulate being two.
        bandwidth: bytes a second from memory.
        alpha: how many times longer an operation takes in the sparse form.
        beta: how many times more bytes a weight takes there; 2 with an index as long as the value.

    Raises:
        ArgumentError: a number that is not above 0.
    """

    flops: float
    bandwidth: float
    alpha: float
    beta: float = 2.0

    def __post_init__(self):
        if not min(dataclasses.astuple(self)) > 0:
            raise errors.ArgumentError(f"{self}: all four numbers are above 0.")


ATOM = Machine(62e9, 15e9, 1.2)
"""Intel Atom C2750, the paper's numbers."""

XEON = Machine(2150e9, 122e9, 3.0)
"""Intel Xeon E5-2697 v4, the paper's numbers."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a layer does, for the images of one call.

    Attributes:
        macs: multiply-accumulates of the dense layer.
        activations: bytes of what it reads and writes.
        weights: bytes of its weights.
    """

    macs: float
    activations: float
    weights: float

    def speedup(self, machine: Machine, density: float) -> float:
        """How many times faster than the dense layer it can be with so many weights left.

        Args:
            machine: that runs it.
            density: x, the fraction of weights that are not 0.

        Raises:
            ArgumentError: a density outside (0, 1].

        Example:
            >>> conv5 = Work(macs=74_760_192, activations=432_640, weights=1_769_472)
            >>> round(conv5.speedup(XEON, 0.09), 3), round(conv5.speedup(XEON, 0.01), 2)
            (3.704, 18.13)
        """
        if not 0 < density <= 1:
            raise errors.ArgumentError(f"density={density}; it is in (0, 1].")
        # t_dense = C / F, C = 2 MACs
        dense = 2 * self.macs / machine.flops
        # t_compute = alpha x C / F
        compute = machine.alpha * density * dense
        # t_bandwidth = (S_A + beta x S_W) / B
        moved = self.activations + machine.beta * density * self.weights
        return dense / max(compute, moved / machine.bandwidth)

    def useful(self, machine: Machine) -> tuple[float, float]:
        """(x_min, x_max): sparser is bound by bandwidth, denser is slower than dense.

        Where x_min is not below x_max, no density pays as arithmetic: sparse execution gains
        nothing there, and pruning for speed leaves the layer alone.

        Args:
            machine: that runs it.

        Returns:
            Densities. x_min is inf where the layer is bound by bandwidth at every density.

        Example:
            >>> conv5 = Work(macs=74_760_192, activations=432_640, weights=1_769_472)
            >>> print(*(round(x, 5) for x in conv5.useful(XEON)))
            0.01974 0.33333
        """
        # x_min = (S_A / B) / (alpha C / F - beta S_W / B)
        room = machine.alpha * 2 * self.macs / machine.flops
        room -= machine.beta * self.weights / machine.bandwidth
        least = self.activations / machine.bandwidth / room if room > 0 else math.inf
        # x_max = 1 / alpha, and no density is above 1
        return least, min(1 / machine.alpha, 1.0)

    def pays(self, machine: Machine) -> bool:
        """Whether some density makes the layer faster than dense, bound by arithmetic."""
        least, most = self.useful(machine)
        return least < most


def works(
    fn: Callable[..., Any], variables: Any, *args: Any, groups: Groups, itemsize: int = 4
) -> dict[str, Work]:
    """What every layer of a net does in one call, for the roofline.

    Args:
        fn: the network, in inference mode.
        variables: its variables, or their shapes.
        *args: inputs, all images of the call, or their shapes.
        groups: from `trace`.
        itemsize: bytes of a number.

    Returns:
        {path of the kernel: its work}, summed over its uses.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn, variables, x = lambda v, x: x @ v["w"], {"w": jnp.ones((3, 2))}, jnp.ones((5, 3))
        >>> works(fn, variables, x, groups=jprune.trace(fn, variables, x))
        {'w': Work(macs=30.0, activations=100.0, weights=24.0)}
    """
    terms: list[Term] = []

    def noted(term: Term) -> Any:
        terms.append(term)
        return macs(term)

    cost_model(fn, variables, *args, groups=groups, per_equation=noted)({})
    examples, result = examples_in(args), {}
    for term in terms:
        if term.layer:
            one = result.get(term.layer, Work(0.0, 0.0, 0.0))
            # Counts are those of one example, but for the weights, which all of them share.
            moved = float((term.read + term.written) * examples * itemsize)
            result[term.layer] = Work(
                one.macs + float(macs(term)) * examples,
                one.activations + moved,
                one.weights + float(term.weights) * itemsize,
            )
    return result
