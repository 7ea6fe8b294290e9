"""Network trimming: units whose activation is mostly 0 go, in rounds.

A unit's APoZ is the average percentage of zeros among its activations, behind its ReLU and before
any pooling. Rounds prune what lies more than a standard deviation above the mean of its layer, and
train the net from the weights that are left.

There is no code of the authors. Ports count zeros behind pooling, over the features of a dense
layer, or prune a layer of equal scores whole (`>=`); this one does as the paper says. The paper
knows no residual nets: the layer before a sum has no ReLU, and the units of a stream are judged by
the zeros behind all their sums (`stream`).

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Hu, Peng, Tai, Tang, Network trimming: a data-driven neuron pruning approach towards efficient
    deep architectures, 2016, arXiv 1607.03250 [6].
"""

from jprune import errors
from jprune.allocate.global_topk import global_topk
from jprune.allocate.outliers import Outliers
from jprune.allocate.uniform import uniform
from jprune.base import Budget, Recipe
from jprune.criteria.zeros import zeros
from jprune.stages.activations import ByActivations
from jprune.stages.frame import framed, settled
from jprune.stages.prune import Prune
from jprune.stages.rounds import evenly, in_rounds
from jprune.stages.train import Train


def apoz(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    rule: str = "std",
    q: float = 1.0,
    at_once: int | None = None,
    rounds: int = 5,
    below: float = 0.0,
    stream: str = "joint",
    batches: int = 80,
    batch_size: int = 125,
    recalibrate: int = 0,
) -> Recipe:
    """Counts zeros, prunes the units that have most of them, trains, and does so again.

    Args:
        budget: what is kept after the last round.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        rule: "std": a round prunes the units whose APoZ is more than `q` standard deviations above
            their layer's mean, and never more than the budget asks for; the last one lowers `q`
            for all layers until the budget is met. "budget": every round keeps the same fraction
            of what is left, the same in each layer.
        q: of the rule "std"; the paper's is 1.
        at_once: layers that a round prunes by the rule "std", those of the highest mean APoZ; the
            last round prunes in all, if the budget is not met by then. The paper trims two layers
            of LeNet and of VGG-16; None: all, as a budget for the whole net asks.
        rounds: number of rounds of pruning; the paper's are 4 to 5.
        below: how far from 0 a zero may be; the paper's are exact.
        stream: residual streams are pruned by their zeros behind all sums ("joint"), or stay
            "whole".
        batches: of training images that are looked at; by default 10,000 images, as in the paper,
            or what there is.
        batch_size: images in one.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another rule, or a number out of range.

    Example:
        >>> recipe = apoz(Budget(macs=0.5), None, Train(8, 0.01, name="finetune"), rounds=2)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
    """
    if rule not in ("std", "budget"):
        raise errors.ArgumentError(f"apoz(rule={rule!r}); write 'std' or 'budget'.")
    goals = evenly(budget, rounds)
    outliers = lambda n: Outliers(global_topk, q, at_once, last=n == rounds - 1)
    by_rule = [(budget, outliers(n)) for n in range(rounds)]
    evened = [(goal, uniform) for goal in goals]
    prune = lambda way: Prune(
        ByActivations(zeros, (below,), stream=stream),
        way[1],
        way[0],
        batches,
        batch_size,
        final=budget,
        once=True,
    )
    pruning, last = in_rounds(prune, by_rule if rule == "std" else evened, finetune)
    return framed(train, *pruning, finetune=last, after=settled(recalibrate, finetune.batch_size))


METHODS = {"apoz": apoz}
