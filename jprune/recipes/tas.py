"""Transformable architecture search: widths and depths by descent, then training anew.

Several widths of every layer run at once, resized along the channels so that they can be averaged,
and blocks of every stage count by how likely the stage is as deep. Which is likely is learned on
examples of their own, from the loss and from the expected cost, in turns with the weights. The
likeliest shape is then trained from new initial values, and learns from the dense net's outputs.
Where no residual block can go (and under a density, which counts units), widths alone are searched.

While shapes are mixed nothing is masked; in the last training masks meet gradients *frozen*: a
masked weight is exactly 0 and takes no step.

References:
    Dong, Yang, Network pruning via transformable architecture search, 2019, arXiv 1905.09717 [42];
    details as in the authors' code. There every layer has a width of its own, blocks of unequal
    widths get a shortcut, and outputs of unequal depths are averaged; here what is added up on a
    residual stream has one width, and a block's branch is multiplied by the probability that its
    stage is as deep (the same where nothing but blocks changes the stream). Logits learn there from
    half of the training split, here from the validation split. Temperatures fall from epoch to
    epoch there, here from step to step; the paper writes 10 for the highest. The cost ends between
    the budget and `tolerance` below it, as in the code (the paper writes both sides); widths
    and depths are then moved to within two points of the budget, at the least loss of
    log-probability.
"""

import dataclasses

from jprune.base import Budget, Recipe
from jprune.stages.choices import Choices
from jprune.stages.frame import framed
from jprune.stages.reinitialise import BeginAnew, like_the_dense
from jprune.stages.train import Train
from jprune.stages.width_mixture import SearchShape


def tas(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    least: float = 0.3,
    options: int = 8,
    depths: str = "odd",
    strength: float = 2.0,
    tolerance: float = 0.05,
    highest: float = 5.0,
    lowest: float = 0.1,
    rate: float | None = None,
    decay: float = 1e-3,
    search_epochs: float | None = None,
    distill: float = 0.9,
    temperature: float = 4.0,
    epochs: float | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
) -> Recipe:
    """A shape by descent on loss and cost, trained from scratch with the dense net as its teacher.

    Args:
        budget: what is kept.
        train: training of the dense net; the shape is searched and trained in the same way.
        finetune: is not run. Where the dense net is read, its batch size is that of the trainings.
        least: the smallest width, as a fraction of a group.
        options: widths of a group, evenly spaced up to all of it.
        depths: of a stage of residual blocks: "odd" ones and all (CIFAR), "even" shares of which
            there are as many as blocks in the shallowest stage (ImageNet), "every", or "whole".
        strength: the paper's lambda, of the cost in the loss of the logits.
        tolerance: how far below the budget the cost may end, as a fraction of the dense net's.
        highest: temperature of the Gumbel-softmax in the beginning.
        lowest: in the end.
        rate: Adam's learning rate for the logits; None: 1e-3, or 5 over the number of steps where
            that is more (0.5 at most), since short searches do not move logits otherwise.
        decay: weight decay of the logits.
        search_epochs: None: as long as the last training. (The paper: 600 epochs of half of the
            examples, and 300 of all.)
        distill: weight of the dense net's outputs in the last training; 0: labels alone.
        temperature: of the distillation.
        epochs: of the dense net; None are those of `train`.
        learning_rate: the largest one of both trainings; None is that of `train`.
        schedule: of that learning rate; None is that of `train`. (The paper: cosine.)

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation, of
        the untrained small net), its trainings `search` and `scratch`.

    Raises:
        ArgumentError: the dense net is read, and epochs or learning rate are not written; or an
            option out of range.

    Example:
        >>> recipe = tas(Budget(macs=0.5), Train(300, 0.1), Train(40, 0.001))
        >>> [stage.name for stage in recipe][3:]
        ['search', 'begin_anew', 'before_finetune', 'scratch']
    """
    own = {"epochs": epochs, "learning_rate": learning_rate, "schedule": schedule}
    anew = like_the_dense(train, finetune, "epochs", None, **own).train
    of_search = dataclasses.replace(
        anew, epochs=anew.epochs if search_epochs is None else search_epochs
    )
    choices = Choices(least, options, depths, strength, tolerance, highest, lowest)
    return framed(
        train,
        SearchShape(of_search, budget, choices, rate, decay),
        BeginAnew(),
        finetune=dataclasses.replace(anew, distill=distill, temperature=temperature),
    )


METHODS = {"tas": tas}
