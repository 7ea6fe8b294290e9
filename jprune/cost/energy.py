"""Energy of a layer on an accelerator: multiply-accumulates, and accesses to each level of memory.

    E = E_comp + E_data,   E_data = sum over data and levels of (accesses * cost of the level)

Everything is in the energy of one multiply-accumulate. The constants are those of Eyeriss, a chip
of 65 nm, and can be replaced. How often a value is read is a model: the mapping of a chip is not
searched for. Zeros are skipped: a multiplication has two operands that are not 0, and what is
mostly zeros is stored compressed.

References:
    Yang, Chen, Sze, Designing energy-efficient convolutional neural networks using energy-aware
    pruning, 2017, arXiv 1611.05128 [22]. Costs and reuse: Chen, Emer, Sze, Eyeriss: a spatial
    architecture for energy-efficient dataflow, 2016.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups


@dataclasses.dataclass(frozen=True)
class EnergyCosts:
    """What an access costs, relative to one multiply-accumulate, and how values are stored.

    Attributes:
        dram: of the memory outside.
        buffer: of the global buffer on the chip.
        array: of the neighbour in the array of processing elements.
        register: of the file beside the multiplier.
        mac: of a multiply-accumulate.
        bits: of a value; data costs grow with it, from 16 on, for which the costs are.
        index_bits: stored beside a value that is not 0, where this is less than storing all.
        registers: accesses to registers for one multiply-accumulate: two operands and the sum.

    Raises:
        ArgumentError: a negative cost, or values of no bits.
    """

    dram: float = 200.0
    buffer: float = 6.0
    array: float = 2.0
    register: float = 1.0
    mac: float = 1.0
    bits: int = 16
    index_bits: int = 5
    registers: float = 3.0

    def __post_init__(self):
        numbers = dataclasses.astuple(self)
        if not (min(numbers) >= 0 and self.bits >= 1):
            raise errors.ArgumentError(f"{self}: costs are 0 or more, and values have bits.")


EYERISS = EnergyCosts()
"""The costs of the chip with that name."""


class Energy(NamedTuple):
    """Energy of a layer for one example, in multiply-accumulates.

    Attributes:
        compute: multiplications, and what registers they read.
        weights: reading the weights.
        inputs: reading the activations.
        outputs: writing the results.
    """

    compute: Any
    weights: Any
    inputs: Any
    outputs: Any

    @property
    def total(self) -> Any:
        """The sum of the four."""
        return self.compute + self.weights + self.inputs + self.outputs


def reads(reuse: tuple[float, float, float, float], costs: EnergyCosts = EYERISS) -> float:
    """Energy of an input or a weight that is read a, b, c and d times, level by level.

    Args:
        reuse: a (reads of DRAM), b (of the buffer for each of these), c (of the array), d (of
            registers).
        costs: of the levels.

    Example:
        >>> reads((1, 2, 3, 4))
        248.0
    """
    a, b, c, d = reuse
    # a E_D + a b E_B + a b c E_A + a b c d E_R
    outer = a * costs.dram + a * b * costs.buffer
    return outer + a * b * c * costs.array + a * b * c * d * costs.register


def sums(reuse: tuple[float, float, float, float], costs: EnergyCosts = EYERISS) -> float:
    """Energy of a partial sum, which is read back and written at every level but the first time.

    Args:
        reuse: a, b, c and d, as of `reads`.
        costs: of the levels.

    Example:
        >>> sums((2, 3, 2, 4))
        732.0
    """
    a, b, c, d = reuse
    # (2a - 1) E_D + 2 a (b - 1) E_B + a b (c - 1) E_A + 2 a b c (d - 1) E_R
    outer = (2 * a - 1) * costs.dram + 2 * a * (b - 1) * costs.buffer
    return outer + a * b * (c - 1) * costs.array + 2 * a * b * c * (d - 1) * costs.register


def layer_energy(
    macs: Any,
    weights: Any,
    inputs: Any,
    outputs: Any,
    density: Any = 1.0,
    activity: Any = 1.0,
    costs: EnergyCosts = EYERISS,
) -> Energy:
    """Energy of a layer for one example; jittable, differentiable, and never rising with a zero.

    Every value that is stored comes from outside once and goes through the buffer once.

    Args:
        macs: multiply-accumulates of the dense layer.
        weights: how many it has.
        inputs: activations that it reads.
        outputs: results that it writes.
        density: fraction of its weights that are not 0.
        activity: fraction of the activations that are not 0.
        costs: of the levels of memory.

    Example:
        >>> float(layer_energy(macs=100, weights=10, inputs=5, outputs=2, density=0.0).total)
        1442.0
    """
    moved = (costs.dram + costs.buffer) * costs.bits / 16
    share = 1 + costs.index_bits / costs.bits
    # Compressed where this is less: d (bits + index) against bits for every value.
    xnp = jnp if isinstance(density, jax.Array) or isinstance(activity, jax.Array) else np
    stored = lambda part: xnp.minimum(part * share, 1.0)
    # e_MAC and the registers, of multiplications whose operands are both not 0
    active = macs * density * activity
    compute = active * (costs.mac + costs.registers * costs.register)
    return Energy(
        compute, moved * weights * stored(density), moved * inputs * stored(activity),
        moved * outputs,
    )  # fmt: skip


class Traffic(NamedTuple):
    """What a layer reads and writes for one example.

    Attributes:
        inputs: activations that it reads, over all of its uses.
        outputs: results that it writes.
        activity: fraction of the inputs that are not 0.
    """

    inputs: float
    outputs: float
    activity: float


def energies(
    groups: Groups,
    traffic: Mapping[str, Traffic],
    densities: Mapping[str, Any] | None = None,
    costs: EnergyCosts = EYERISS,
) -> dict[str, Energy]:
    """{kernel: its energy}.

    Args:
        groups: from `trace`.
        traffic: {kernel: what it reads and writes}; kernels that are not named are left out.
        densities: {kernel: fraction of its weights that are not 0}; 1 where none is named.
        costs: of the levels of memory.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((30, 5)), "second": jnp.ones((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 30)))
        >>> traffic = {"first": Traffic(30, 5, 1.0), "second": Traffic(5, 2, 0.5)}
        >>> {name: float(energy.total) for name, energy in energies(groups, traffic).items()}
        {'first': 38710.0, 'second': 3167.9375}
    """
    densities = densities or {}
    result = {}
    for path in [path for path in groups.layers if path in traffic]:
        layer, own = groups.layers[path], traffic[path]
        weights = float(math.prod(layer.shape))
        result[path] = layer_energy(
            layer.macs, weights, own.inputs, own.outputs, densities.get(path, 1.0), own.activity,
            costs,
        )  # fmt: skip
    return result
