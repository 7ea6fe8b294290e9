"""C-OBD, C-OBS, Kron-OBD, Kron-OBS: filters pruned under a Kronecker-factored Fisher.

EigenDamage is compared with these four, which remove whole filters, in the basis of the
weights. The two OBS move the filters that are kept.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Wang, Grosse, Fidler, Zhang, EigenDamage: structured pruning in the Kronecker-factored
    eigenbasis, 2019, arXiv 1905.05934 [28]. A score is the damage of setting a filter's output to
    0 before its norm, and what is removed is more: the filter, its norm and its readers.
"""

import dataclasses
from functools import partial

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed, settled
from jprune.stages.kronecker import PruneFilters
from jprune.stages.rounds import evenly, in_rounds
from jprune.stages.train import Train


def kronecker(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    form: str,
    allocator: str = "global_topk",
    curvature: str = "diagonal",
    rounds: int = 1,
    limit: float | None = None,
    labels: str = "model",
    damping: float = 1e-3,
    repo_variant: bool = False,
    recalibrate: int = 50,
    batches: int | None = None,
    batch_size: int = 64,
) -> Recipe:
    """Score filters, prune those of all layers under one threshold, compensate, fine-tune.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of it lies between them.
        form: "c_obd", "c_obs", "kron_obd" or "kron_obs".
        allocator: "global_topk" (the paper's) or "uniform".
        curvature: of c_obd: "diagonal", the squares of every example's gradient (the authors'
            code), or "kfac", the diagonal of the factors.
        rounds: number of rounds of pruning.
        limit: the largest fraction of a group's units that may go in a round, of those that are
            there; None: 0.95 of a single round, 0.5 of several.
        labels: "model": drawn from the net, the true Fisher information; "data": the empirical one.
        damping: of the factors that the OBS invert, times their mean eigenvalue; the paper gives
            no figure.
        repo_variant: the scores of kron_obd and kron_obs as in the authors' code, with the
            elementwise square of W times A where w A w^T is meant.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.
        batches: calibration batches of the curvature; None: one pass over the training images.
        batch_size: examples in one.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: an unknown name or a number out of range.

    Example:
        >>> recipe = METHODS["kron_obs"](Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune', 'recalibrate']
    """
    limit = (0.95 if rounds == 1 else 0.5) if limit is None else limit
    filters = PruneFilters(
        budget,
        form,
        allocator,
        curvature,
        limit,
        labels,
        damping,
        repo_variant,
        batches,
        batch_size,
    )
    later = iter(range(rounds - 1, -1, -1))
    prune = lambda goal: dataclasses.replace(
        filters, budget=goal, final=budget, rounds=rounds, later=next(later)
    )
    pruning, last = in_rounds(prune, evenly(budget, rounds), finetune)
    after = settled(recalibrate, finetune.batch_size)
    return framed(train, *pruning, finetune=last, after=after)


METHODS = {
    form: partial(kronecker, form=form) for form in ("c_obd", "c_obs", "kron_obd", "kron_obs")
}
