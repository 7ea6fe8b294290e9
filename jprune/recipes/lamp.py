"""LAMP: magnitude pruning in which every layer finds its own density.

A weight is scored by its square over the sum of the squares of its layer that are no smaller, and
one threshold on these scores cuts all layers. No layer is emptied, and none has to be told its
density. It goes in rounds, each of which takes a fifth of the weights that are left.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Lee, Park, Mo, Ahn, Shin, Layer-adaptive sparsity for the magnitude-based pruning, 2021, arXiv
    2010.07611. Its nets train as long again after every one of 20 rounds; here half of the
    fine-tuning lies between them. Scores of later rounds are of the weights that are left.
"""

from jprune.allocate.global_topk import global_topk
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.prune import Prune, layer_adaptive_of
from jprune.stages.rounds import evenly, in_rounds, rounds_for
from jprune.stages.train import Train

PER_ROUND = 0.8
"""Of the weights, after a round."""


def lamp(
    budget: Budget, train: Train | None, finetune: Train, *, rounds: int | None = None
) -> Recipe:
    """Rounds of pruning by the layer-adaptive score, with training in between.

    Args:
        budget: what is kept after the last round; of weights (a density is that of all kernels).
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        rounds: number of rounds of pruning; None takes as many as keep 0.8 of the weights each
            time, the paper's.

    Returns:
        The recipe; it prunes weights, not units. Its evaluations are named `dense` (test) and
        `before_finetune` (validation).

    Raises:
        ArgumentError: less than one round.

    Example:
        >>> recipe = lamp(Budget(density=0.64), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
        >>> [round(stage.budget.density, 4) for stage in recipe if isinstance(stage, Prune)]
        [0.8, 0.64]
    """
    budgets = evenly(budget, rounds_for(budget, PER_ROUND) if rounds is None else rounds)
    prune = lambda goal: Prune(layer_adaptive_of, global_topk, goal, per="weight")
    pruning, last = in_rounds(prune, budgets, finetune)
    return framed(train, *pruning, finetune=last)


METHODS = {"lamp": lamp}
