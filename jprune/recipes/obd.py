"""Optimal brain damage: delete the weights of least saliency, train on, and again.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    LeCun, Denker, Solla, Optimal brain damage, 1990, Advances in Neural Information Processing
    Systems 2 [1].
"""

from collections.abc import Callable
from functools import partial

from jprune import errors
from jprune.allocate.global_topk import global_topk
from jprune.base import Budget, Recipe
from jprune.curvature import Estimator, exact, fisher, gauss_newton, hutchinson, recursion
from jprune.stages.frame import framed
from jprune.stages.prune import Prune, obd_of
from jprune.stages.rounds import evenly, in_rounds, rounds_for
from jprune.stages.train import Train

CURVATURES: dict[str, Callable[[int], Estimator]] = {
    "gauss_newton": gauss_newton,
    "fisher": fisher,
    "true_fisher": partial(fisher, labels="model"),
    "hutchinson": hutchinson,
    "recursion": lambda probes: recursion(),
    "levenberg_marquardt": lambda probes: recursion(levenberg_marquardt=True),
    "exact": lambda probes: exact(),
}
"""`probes -> estimator`; those of the last three lines draw nothing."""
UNSAMPLED = ("recursion", "levenberg_marquardt", "exact")
PROBES = 16
"""Of a sampled estimate, a batch; the error of the mean over batches matters, and it is less."""
REMAINING = 0.7
"""Of the weights, after a round; the paper gives no figure."""


def obd(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    curvature: str = "gauss_newton",
    probes: int | None = None,
    negative: str = "clip",
    weight_decay: float = 0.0,
    rounds: int | None = None,
    per: str = "weight",
    batches: int = 30,
) -> Recipe:
    """Rounds of deletion and training, by h_kk w_k^2 / 2 over the whole net.

    Args:
        budget: what is kept after the last round; of weights, a density is that of all kernels.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        curvature: "gauss_newton", "fisher", "true_fisher" (labels drawn from the net) or
            "hutchinson", all sampled; "recursion" (the paper's), "levenberg_marquardt" (the
            paper's without f''), for chains alone; "exact", for tiny nets.
        probes: random backward passes a batch of a sampled estimate; None: 16.
        negative: what to do with negative curvature: "clip" at 0, "keep" or "refuse".
        weight_decay: added to the curvature, for a penalty that the loss does not have.
        rounds: number of rounds of pruning; None takes as many as keep 0.7 of the weights each
            time.
        per: "weight", as in the paper, or "unit": saliencies are summed over a filter.
        batches: calibration batches.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: an unknown name, probes of an estimate that draws none, or less than one
            round.

    Example:
        >>> recipe = obd(Budget(density=0.5), None, Train(8, 0.05, name="finetune"), rounds=2)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
        >>> [round(stage.budget.density, 4) for stage in recipe if isinstance(stage, Prune)]
        [0.7071, 0.5]
    """
    if curvature not in CURVATURES:
        raise errors.ArgumentError(
            f"obd(curvature={curvature!r}); {errors.nearest(curvature, CURVATURES)}write one of "
            f"{', '.join(CURVATURES)}."
        )
    if probes is not None and curvature in UNSAMPLED:
        raise errors.ArgumentError(
            f"obd(curvature={curvature!r}, probes={probes}): {curvature} draws nothing. Leave out "
            "probes."
        )
    rounds = rounds_for(budget, REMAINING) if rounds is None else rounds
    estimator = CURVATURES[curvature](PROBES if probes is None else probes)
    criterion = obd_of(estimator, negative, weight_decay)
    prune = lambda goal: Prune(criterion, global_topk, goal, batches=batches, per=per, final=budget)
    pruning, last = in_rounds(prune, evenly(budget, rounds), finetune)
    return framed(train, *pruning, finetune=last)


METHODS = {"obd": obd}
