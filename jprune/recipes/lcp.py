"""LcP: one learned offset a group, so that the units of all layers can stand in one ranking.

A cheap score is off by another amount in every layer. An offset for each group is added to the base
scores of its units, and the lowest units of all groups go, one after another, until the budget is
met. Offsets are found by regularised evolution: candidates are scored by the loss of the masked net
on held-out images, without training, or after a few steps; what is oldest leaves the queue. Then
the net is fine-tuned.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Chin, Zhang, Marculescu, Layer-compensated pruning for resource-constrained convolutional neural
    networks, 2018, arXiv 1810.00518 [25]. Its own numbers are not known; those here are of the
    code of Chin, Ding, Zhang, Marculescu, Towards efficient model compression via learned global
    ranking (LeGR), 2020, arXiv 1904.12368, which adds the factor (`scale`). There int(0.1 L) groups
    mutate, none of fewer than ten; here one at least. A residual sum has one offset here, and there
    one for each of its layers; statistics of norms are those of the dense net there, and taken anew
    here.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.candidates import Trial
from jprune.stages.frame import framed
from jprune.stages.offsets import Aging, SearchOffsets
from jprune.stages.prune import CriterionOf, l1_of, l2_of, taylor_of
from jprune.stages.train import Train

SCORES: dict[str, CriterionOf] = {"l1": l1_of, "l2": l2_of, "taylor": taylor_of}


def lcp(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    score: str = "l2",
    scale: bool = False,
    evaluations: int = 400,
    population: int = 64,
    tournament: int = 16,
    mutated: float = 0.1,
    tau: int = 0,
    rate: float = 0.01,
    fitness: str = "loss",
    least: float = 0.1,
    images: int = 500,
    recalibrate: int = 4,
) -> Recipe:
    """Search of offsets, the cut, fine-tuning.

    Args:
        budget: what is kept; every candidate meets it.
        train: training of the dense net; None where it is trained already.
        finetune: training of the pruned net. The authors' search script trains for 60 epochs, from
            0.01, a fifth of it after 30, 60 and 80 %.
        score: the base score: "l2" (the sum of squares, without a root, as in the authors' code),
            "l1" or "taylor"; the scores of a unit are summed over its layers.
        scale: LeGR: a factor for every group beside the offset, from a normal draw of its
            logarithm that falls to a fifth over the search.
        evaluations: candidates in all.
        population: length of the queue, and the random candidates of the beginning, the last of
            which has no offsets; all evaluations are a random search.
        tournament: candidates drawn of the queue, whose best one is mutated.
        mutated: fraction of the groups that a mutation changes, one at least.
        tau: training steps of a candidate before it is scored.
        rate: learning rate of these steps, which is constant.
        fitness: "loss" (minus the loss) or "accuracy" (minus the loss, where there is none).
        least: fraction of every group that stays, and two units at least, where the budget has no
            floor for it.
        images: of the validation split that a candidate is scored on.
        recalibrate: training batches that a candidate's statistics are taken from anew; 0: none.

    Returns:
        The recipe. `before_finetune` is the best candidate.

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> [stage.name for stage in lcp(Budget(macs=0.5), None, Train(8, 0.01, name="finetune"))]
        ['save', 'dense', 'search', 'before_finetune', 'finetune']
    """
    errors.check_words("lcp", ("score", score, SCORES), ("fitness", fitness, ("accuracy", "loss")))
    errors.check_numbers(
        "lcp", ("tau", tau, tau >= 0, "0 or more"), ("rate", rate, rate > 0, "above 0")
    )
    short = dataclasses.replace(
        finetune, epochs=float(tau), max_steps=tau, learning_rate=rate, schedule="constant",
        warmup=0.0, name="candidate",
    ) if tau else None  # fmt: skip
    trial = Trial(images, recalibrate, finetune.batch_size, fitness, short)
    aging = Aging(evaluations, population, tournament, mutated, scale)
    return framed(
        train, SearchOffsets(SCORES[score], budget, least, trial, aging), finetune=finetune
    )


METHODS = {"lcp": lcp}
