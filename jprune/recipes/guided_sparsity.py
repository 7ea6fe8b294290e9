"""Guided sparsity learning: only layers that a machine runs faster when sparse are pruned.

A roofline says at which densities a layer gains: below x_max = 1 / alpha the sparse form is faster
than the dense one, and below x_min memory bounds it, so that more zeros gain nothing. Layers whose
range is empty stay dense from the start. While the others are pruned, one that has reached x_min
keeps its zeros, and one that settles at x_max or above gets its dense weights back; what was spent
on them is left to the rest.

This and the paper differ. The L1 penalty is a proximal step, which makes zeros by itself; the
authors' code takes a subgradient, and a threshold that depends on the gradient. The budget is met
at the end by the largest weights within the ranges, and where it needs a layer that became dense
again, that layer is pruned after all; the paper takes what the penalty leaves. Its 600,000 steps
on AlexNet have a strength of 5e-5, which does nothing in short training; so the default follows the
number of steps. Its retraining has a tenth of the learning rate and an L2 penalty: those of
`finetune`. On other CPUs than the paper's, `jprune.execute.compact` runs the layers.

Masks meet gradients in the way *prox* while layers are pruned: weights that the penalty has brought
to 0 may come back until their layer has reached x_min (with surgery all weights take the step). In
the training at the end masks are *frozen*.

References:
    Park, Li, Wen, Tang, Li, Chen, Dubey, Faster CNNs with direct sparse convolutions and guided
    pruning, 2017, arXiv 1608.01409 [11].
"""

import dataclasses
from typing import Literal

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.cost import Machine
from jprune.stages.frame import framed
from jprune.stages.train import Train
from jprune.stages.useful_range import PruneWithinRange
from jprune.train.numbers import Numbers


def guided_sparsity(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    machine: Numbers | Machine | Literal["measured", "atom", "xeon"] = "measured",
    images: int = 1,
    by: str = "l1",
    l1: float | None = None,
    gamma: float = 1e-4,
    looks: int = 10,
    tolerance: float = 0.01,
    share: float = 0.75,
) -> Recipe:
    """Pruning of the layers that pay on a machine, then training under the masks.

    Args:
        budget: of weights (a density is that of all kernels, those that stay dense counted).
        train: training of the dense net; None where it is trained already.
        finetune: pruning and the training after it.
        machine: "measured" (this CPU, once; see `execute.this_machine`), "atom" or "xeon" (the
            paper's), a `cost.Machine`, or its numbers: operations a second, bytes a second, alpha
            and beta (on the command line 62e9:15e9:1.2).
        images: of one call on that machine. Dense layers are bound by memory for one image.
        by: "l1" (the paper's GESL) or "surgery" (GDNS).
        l1: strength of the penalty (the paper's 5e-5); None takes from every weight, over all
            steps, what the smallest weight that the budget leaves measures.
        gamma: of surgery, see `dns`.
        looks: how many times densities are compared with their ranges.
        tolerance: by how much a density that is steady changes from one look to the next.
        share: fraction of the fine-tuning epochs that prune (the paper's 450,000 of 600,000 steps).

    Returns:
        The recipe; it prunes weights.

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = guided_sparsity(
        ...     Budget(density=0.2), None, Train(8, 0.01, name="finetune"), machine="atom")
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('within_range', None), ('before_finetune', None), ('finetune', 2.0)]
    """
    if not 0 < share < 1:
        raise errors.ArgumentError(f"guided_sparsity(share={share}); it is in (0, 1).")
    # Constant: weights come and go as long as they are pruned.
    during = dataclasses.replace(
        finetune, epochs=share * finetune.epochs, schedule="constant", warmup=0.0
    )
    return framed(
        train,
        PruneWithinRange(during, budget, machine, images, by, l1, gamma, looks, tolerance),
        finetune=dataclasses.replace(finetune, epochs=(1 - share) * finetune.epochs),
    )


METHODS = {"guided_sparsity": guided_sparsity}
