"""Regularity: the same pruning, in groups of any size, from single weights to whole filters.

Groups of the least sum of absolute values go, layer by layer, in rounds with training in between.
Coarser groups cost accuracy at equal density, and store fewer indices. One option says what a group
is, so that all of them are compared under one budget; every layer keeps the same density whatever
the size. Weights alone are masked: the paper couples nothing, so a filter of a residual net is
zeroed in its own kernel. Units whose filters went are removed after the last round, where that
changes no output.

The paper gives the order (a sensitivity analysis, then rounds) and no settings, and there is no
code of the authors: the scan, and the number of rounds, are ours. Beside the paper's four groups
there are columns, blocks, and n of m.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Mao, Han, Pool, Li, Liu, Wang, Dally, Exploring the regularity of sparse structure in
    convolutional neural networks, 2017, arXiv 1705.08922 [3].
"""

from collections.abc import Sequence
from typing import Literal

from jprune.base import Budget, Recipe
from jprune.stages.dead_units import RemoveDead
from jprune.stages.frame import framed
from jprune.stages.grains import PruneGrains
from jprune.stages.rounds import evenly, in_rounds
from jprune.stages.sensitivity import Sensitivity
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def granularity(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    grain: str = "kernel",
    axis: str = "w",
    lengths: Sequence[float] = (1, 1, 4, 4),
    m: int = 4,
    ratios: Numbers | Literal["scan"] = "scan",
    tolerance: float = 0.01,
    examples: int = 1024,
    rounds: int = 3,
    value_bits: int = 8,
    index_bits: int = 4,
) -> Recipe:
    """Magnitude pruning of groups of one size, in rounds with training in between.

    Args:
        budget: what is kept after the last round; of weights (a density is that of the kernels that
            take part).
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        grain: "fine" (single weights), "vector" (a row of a window), "kernel" (a window), "filter"
            or "row" (all weights of an output; layers that make the net's outputs stay), "column"
            (a tap of an input over all outputs), "block", "n_of_m" (n of every m inputs, n being
            the largest that the density of a layer allows). In dense layers and 1 x 1 kernels the
            first three are the same.
        axis: that a vector lies along: "w" (the paper's), "h", "d", "in" or "out".
        lengths: of a block along h, w, inputs and outputs (1:1:4:4 on the command line).
        m: of "n_of_m"; kernels whose inputs are no multiple of it stay dense.
        ratios: densities of layers relative to each other: "scan" (of the dense net, by pruning
            one layer at a time, single weights whatever the grain), 1 for the same density
            everywhere, one for each kernel that takes part in execution order, or {kernel: ratio}.
        tolerance: validation accuracy that pruning one layer may cost in the scan.
        examples: of the validation split that the scan looks at.
        rounds: number of rounds of pruning; each keeps the same fraction of what is left.
        value_bits: of a stored weight, for the record `storage`.
        index_bits: of a gap between stored groups; longer gaps take fillers.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = granularity(Budget(density=0.25), None, Train(8, 0.05, name="finetune"),
        ...                      grain="vector", ratios=1, rounds=2)
        >>> [stage.name for stage in recipe][2:]
        ['prune', 'between', 'prune', 'before_finetune', 'finetune']
    """
    prune = lambda goal: PruneGrains(
        goal, grain, axis, tuple(lengths), m, ratios, value_bits, index_bits
    )
    pruning, last = in_rounds(prune, evenly(budget, rounds), finetune)
    scan = (Sensitivity(budget, "scan", tolerance, examples),) if ratios == "scan" else ()
    # Filters of zeros still say f(bias): folded into their readers, they can be cut off.
    removal = (RemoveDead(),) if grain in ("filter", "row") else ()
    return framed(train, *scan, *pruning, *removal, finetune=last)


METHODS = {"granularity": granularity}
