"""Three dimensions: depth, width and resolution pruned together, where a fitted polynomial says.

From the dense net one dimension at a time is made smaller, more from net to net, and each net is
trained for a short time, as is the dense one. Validation accuracies of these nets fit a polynomial
of low rank, which is largest, under the budget, at some depth, width and resolution: the dense net
is pruned to these and fine-tuned.

Depth is the fraction of residual blocks that are there; blocks go whose removal costs least
training loss. Width is the fraction of units in every group, by the L1 norm. Resolution is the side
of the images over the full one; the net that comes out takes full images and resizes them itself.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Wang, Chen, Dong, Wang, Zhang, Accelerate CNNs from three dimensions: a comprehensive pruning
    framework, 2021, arXiv 2010.04879 [52]. No code of theirs is public: which blocks and filters
    go, and how numbers are rounded, are choices of ours. The paper goes on from one net of a
    dimension to the next, so that the smallest has trained longest; here every net begins with the
    dense weights and trains as long as the others.
"""

import dataclasses
import itertools

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.dimensions import DIMENSIONS, Narrow, Observe, Optimum
from jprune.stages.frame import framed
from jprune.stages.probe import Probe
from jprune.stages.train import Train


def three_dimensions(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    dimensions: str = "depth:width:resolution",
    points: int = 4,
    lowest: float = 0.5,
    multiple: int = 4,
    probe_epochs: float | None = None,
    degree: int = 3,
    rank: int = 1,
) -> Recipe:
    """Probes along every dimension, a fitted polynomial, and the net at its optimum.

    Args:
        budget: in MACs.
        train: training of the dense net; None where it is trained already.
        finetune: training of the pruned net. (The paper's CIFAR nets are fine-tuned for 100 epochs
            and more.)
        dimensions: which may shrink, with ":" between; the others stay whole.
        points: nets that are trained along each, beside the dense one; those that are rounded to
            the same dimensions are trained once. (The paper has some five.)
        lowest: of every dimension; the polynomial says nothing of what lies below, so a budget
            that needs less is refused.
        multiple: sides of images are multiples of this: of the net's total stride.
        probe_epochs: training of each such net; None is a quarter of `finetune`.
        degree: of the polynomial, in every dimension.
        rank: products of univariate polynomials in it.

    Returns:
        The recipe. `before_finetune` is the net at the optimum with the dense net's weights.

    Raises:
        ArgumentError: a budget in anything but MACs, an unknown dimension, or a number out of
            range.

    Example:
        >>> recipe = three_dimensions(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"),
        ...                           dimensions="width", points=1)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'probe', 'observe', 'narrow', 'probe', 'observe', 'optimum',
         'before_finetune', 'finetune']
    """
    if budget.kind != "macs":
        raise errors.ArgumentError(
            f"three_d with Budget({budget.kind}={budget.value}): resolution changes MACs and "
            "nothing else that a budget counts. Write Budget(macs=0.5)."
        )
    asked = dimensions.split(":")
    if not {*asked} <= {*DIMENSIONS} or len({*asked}) < len(asked):
        raise errors.ArgumentError(
            f"three_d(dimensions={dimensions!r}); write some of {':'.join(DIMENSIONS)}."
        )
    if points < 1 or not 0 < lowest < 1 or multiple < 1 or degree < 1 or rank < 1:
        raise errors.ArgumentError(
            f"three_d(points={points}, lowest={lowest}, multiple={multiple}, degree={degree}, "
            f"rank={rank}); lowest is in (0, 1), the others are at least 1."
        )
    epochs = finetune.epochs / 4 if probe_epochs is None else probe_epochs
    probe = Probe(dataclasses.replace(finetune, epochs=epochs))
    levels = [1 - (1 - lowest) * (number + 1) / points for number in range(points)]
    depth, width, resolution = (lowest if name in asked else 1.0 for name in DIMENSIONS)
    steps = [
        (Narrow(axis, level, budget, multiple, anew=True), probe, Observe())
        for axis in asked
        for level in levels
    ]
    return framed(
        train,
        probe,
        Observe(),
        *itertools.chain(*steps),
        Optimum(budget, multiple, degree, rank, (depth, width, resolution)),
        finetune=finetune,
    )


METHODS = {"three_d": three_dimensions}
