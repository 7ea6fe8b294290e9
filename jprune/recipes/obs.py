"""Optimal brain surgeon: delete a weight, move all others, until the budget is met.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Hassibi, Stork, Second order derivatives for network pruning: optimal brain surgeon, 1993,
    Advances in Neural Information Processing Systems 5 [2].
"""

import dataclasses

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.obs import BrainSurgery
from jprune.stages.rounds import evenly, in_rounds
from jprune.stages.train import Train


def obs(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    block: int | None = 128,
    alpha: float = 1e-4,
    curvature: str = "gauss_newton",
    samples: int | None = 1,
    stop: float | None = None,
    rounds: int = 1,
    batches: int = 30,
    batch_size: int = 64,
) -> Recipe:
    """Surgery on single weights of the whole net, in one round or with training in between.

    The paper prunes until a deletion costs too much, and only then trains on: that is `stop` with
    several rounds. The last round goes down to the budget whatever it costs.

    Args:
        budget: what is kept after the last round, of weights (a density is that of all kernels).
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        block: largest block of the inverse Hessian, within a layer; None is the paper's inverse of
            all weights, for nets of up to some 4,000.
        alpha: damping; 1e-8 to 1e-4 in the paper.
        curvature: "gauss_newton", or "fisher" (the empirical one).
        samples: rows of the Gauss-Newton matrix an example, drawn; None: all, one an output. The
            empirical Fisher has one row an example and takes None.
        stop: the paper's rule, for all rounds but the last: go no further once a deletion raises
            the loss by more than this fraction; None: go down to the round's budget.
        rounds: number of rounds of pruning.
        batches: calibration batches of the Hessian.
        batch_size: examples in one.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: less than one round; what cannot be said of blocks and rows is refused when
            it runs.

    Example:
        >>> recipe = obs(Budget(density=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    surgery = BrainSurgery(budget, block, alpha, curvature, samples, stop, batches, batch_size)
    # The stop rule is for all rounds but the last.
    prune = lambda goal: dataclasses.replace(
        surgery, budget=goal, stop=None if goal.value == budget.value else stop
    )
    pruning, last = in_rounds(prune, evenly(budget, rounds), finetune)
    return framed(train, *pruning, finetune=last)


METHODS = {"obs": obs}
