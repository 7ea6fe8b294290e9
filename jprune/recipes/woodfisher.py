"""WoodFisher and M-FAC: the weights of least cost by an empirical Fisher go, and the others adapt.

The Fisher information of some hundred gradients has an inverse that is known exactly. A weight
costs w^2 / (2 [F^-1]_qq); the cheapest of all layers go together, the weights that stay adapt to
it, in as many steps as the loss allows, and training goes on.

WoodFisher inverts in blocks within a layer. M-FAC takes all kernels as one block, so that layers
make up for each other; of its inverse no entry is stored, products with it and its diagonal take m
d operations for m gradients of d weights. It goes down in 16 steps with gradients of their own.

Papers and codes add up the changes that single removals ask for (`update="summed"`), which holds
for small steps; here the weights that stay go to their common minimum, which is as cheap. The codes
find their inverses by one gradient after the other; here an m x m matrix says the same. Biases and
norms neither go nor move. M-FAC's optimizer, which preconditions training, is no part of it.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Singh, Alistarh, WoodFisher: efficient second-order approximation for neural network
    compression, 2020, arXiv 2004.14340. Frantar, Kurtic, Alistarh, M-FAC: efficient matrix-free
    approximations of second-order information, 2021, arXiv 2107.03356.
"""

from functools import partial

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.jointly import PruneJointly
from jprune.stages.rounds import in_rounds, scheduled
from jprune.stages.train import Train


def woodfisher(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    block: int | None = 128,
    damping: float = 1e-5,
    gradients: int = 256,
    average: int = 1,
    recomputations: int = 1,
    update: str = "joint",
    allocator: str = "global_topk",
    schedule: str = "one_shot",
    rounds: int | None = None,
    batch_size: int = 64,
) -> Recipe:
    """Prunes single weights by the empirical Fisher information in blocks, with compensation.

    Args:
        budget: what is kept; a density is that of all kernels.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        block: largest block of the inverse, within a layer; 100 to some 10,000 in WoodFisher. None
            (M-FAC): all kernels are one.
        damping: of the Fisher information; 1e-5 in the papers.
        gradients: that it is made of; 64 to 1,024 in the papers, fewer where the training split has
            fewer examples. They take 4 bytes a parameter each.
        average: examples whose mean gradient is one of them; 1, or hundreds for large data sets.
        recomputations: steps in which a round goes down, each with gradients of its own and keeping
            the same fraction; 16 in M-FAC's code.
        update: "joint" or "summed".
        allocator: "global_topk" (all layers compete), or "uniform" (each keeps the same fraction).
        schedule: "one_shot", "iterative", or "cubic", which is WoodFisher's gradual pruning.
        rounds: with training in between; None is 1 for "one_shot" and 5 for the others.
        batch_size: examples whose gradients are taken in one call.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = woodfisher(Budget(density=0.1), None, Train(8, 0.01), schedule="cubic")
        >>> [round(stage.budget.density, 3) for stage in recipe if isinstance(stage, PruneJointly)]
        [0.561, 0.294, 0.158, 0.107, 0.1]
    """
    prune = lambda goal: PruneJointly(
        goal, block, damping, gradients, average, recomputations, update, allocator, batch_size
    )
    pruning, last = in_rounds(prune, scheduled(budget, schedule, rounds), finetune)
    return framed(train, *pruning, finetune=last)


METHODS = {
    "woodfisher": woodfisher,
    "m_fac": partial(woodfisher, block=None, gradients=512, recomputations=16),
}
