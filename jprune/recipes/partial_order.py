"""Partial order pruning: shapes are trained and compared, and what cannot win is never trained.

A net that is contained in another one, narrower and less deep everywhere, is taken to be no better.
So a trained net bounds all nets in it, and those that cost no less than a trained net as good as
that bound are spared. Candidates are drawn of what is left, until none is or enough were trained.
The best shape under the budget, with the next best units that the budget leaves room for, is cut
out of the dense net and fine-tuned. The cost is that of the budget: MACs, parameters, units, or
what the net's cost model measures.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Li, Zhou, Pan, Feng, Partial order pruning: for best speed/accuracy trade-off in neural
    architecture search, 2019, arXiv 1903.03777 [26]. Its ladder of widths and its ranges of depths
    are not known, and no code of the search is public: those here are ours. The paper searches a
    space of new nets and trains each from the beginning; here the space is that of nets within the
    dense one, which begin with its weights, of the largest L1 norms, and the last blocks of a stage
    are those that go (the best net can be trained from the beginning by `scratch_e`). Widths are
    those of groups of equal size together; `tied=False`: of every group, as in the paper.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.candidates import Trial
from jprune.stages.choices import Choices
from jprune.stages.frame import framed
from jprune.stages.partial_order import SearchByOrder
from jprune.stages.train import Train


def partial_order(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    least: float = 0.25,
    options: int = 4,
    depths: str = "every",
    tied: bool = True,
    window: float = 0.5,
    evaluations: int = 16,
    slack: float = 0.0,
    probe_epochs: float | None = None,
    images: int = 2000,
    recalibrate: int = 0,
) -> Recipe:
    """A search that spares what cannot win, the best shape, fine-tuning.

    Args:
        budget: what is kept; candidates cost no more.
        train: training of the dense net; None where it is trained already.
        finetune: training of the pruned net.
        least: the smallest width, as a fraction of a group.
        options: widths of a group, evenly spaced up to all of it.
        depths: of a stage of residual blocks: "every" one, "odd" ones, "even" shares, or "whole":
            no block goes. Under a density, which counts units, none does.
        tied: whether groups with the same number of units, which are mostly those of a stage, have
            one width.
        window: candidates cost (1 - window) of the budget to all of it.
        evaluations: candidates that are trained, at most.
        slack: how far a bound has to be beaten before what it bounds is spared: twice the error of
            the scores.
        probe_epochs: training of a candidate; None is a quarter of `finetune`.
        images: of the validation split that a candidate is scored on.
        recalibrate: training batches that a candidate's statistics are taken from anew; 0: none.

    Returns:
        The recipe. `before_finetune` is the best shape with the dense net's weights.

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = partial_order(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'search', 'before_finetune', 'finetune']
    """
    epochs = finetune.epochs / 4 if probe_epochs is None else probe_epochs
    errors.check_numbers(
        "partial_order",
        ("evaluations", evaluations, evaluations >= 1, "1 or more"),
        ("slack", slack, slack >= 0, "0 or more"),
        ("probe_epochs", epochs, epochs > 0, "above 0"),
    )
    short = dataclasses.replace(finetune, epochs=epochs, name="candidate")
    trial = Trial(images, recalibrate, finetune.batch_size, train=short)
    choices = Choices(least, options, depths)
    search = SearchByOrder(budget, choices, tied, window, evaluations, slack, trial)
    return framed(train, search, finetune=finetune)


METHODS = {"partial_order": partial_order}
