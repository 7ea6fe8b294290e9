"""MetaPruning: a hypernetwork scores widths, evolution finds the best, training begins anew.

The hypernetwork is trained with widths that are drawn anew in every step. It then gives the weights
of every candidate of the search, whose norms' statistics are taken from a few training batches, and
whose score is the accuracy on images of the validation split. The best widths under the budget are
trained from new initial values. Which units of a layer are kept means nothing here: the leading
ones are.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Liu, Mu, Zhang, Guo, Yang, Cheng, Sun, MetaPruning: meta learning for automatic neural network
    channel pruning, 2019, arXiv 1903.10258 [39]; details as in the authors' code. There the
    encoding of a layer has the three widths of its block, here those of the groups on its kernel;
    classifiers, whose inputs they leave whole, shrink here too unless they are frozen. Random
    candidates come there from widths 12 to 23 of the 31, and are drawn until one costs what it may;
    here from all different widths of a group, and are then moved into the window.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.search.widths import Widths
from jprune.stages.frame import framed
from jprune.stages.hypernetwork import Rounds, Search, TrainHypernetwork
from jprune.stages.reinitialise import BeginAnew
from jprune.stages.train import Train


def metapruning(
    budget: Budget,
    train: Train | None,
    *,
    options: int = 31,
    least: float = 0.1,
    hidden: int = 32,
    vectors: str = "fixed",
    smoothing: float = 0.1,
    meta_epochs: float | None = None,
    window: float = 0.05,
    generations: int = 20,
    population: int = 50,
    parents: int = 10,
    mutants: int = 25,
    crossovers: int = 25,
    probability: float = 0.1,
    images: int = 500,
    recalibrate: int = 20,
) -> Recipe:
    """Hypernetwork, search, training from scratch.

    Args:
        budget: what is kept; a candidate costs (1 - window) of it to all of it.
        train: training of the dense net, and of the small one, from scratch. The paper's ResNet-50
            trains for 128 epochs, from 0.2, a tenth of it after every quarter.
        options: widths that a group may have, evenly spaced.
        least: the smallest of them, as a fraction of the group.
        hidden: width inside the hypernetwork.
        vectors: "fixed", "shared" or "each"; see `jprune.learners.hypernetwork`.
        smoothing: of labels, while the hypernetwork is trained. (The authors' final training has it
            too; here the final training is that of all methods.)
        meta_epochs: training of the hypernetwork; None is a quarter of `train` (32 of 128 epochs).
        window: on the cost, as a fraction of the budget (1,950 to 2,050 of 2,000 M in the paper).
        generations: rounds of the search.
        population: candidates in a round.
        parents: the best so far, which have offspring.
        mutants: offspring of one parent in a round.
        crossovers: offspring of two.
        probability: that a gene of a mutant changes.
        images: of the validation split that a candidate is scored on (50 of every class in the
            paper, taken out of the training set).
        recalibrate: training batches for a candidate's statistics. The paper has 100, in a running
            mean of a tenth, which weighs some 20; here it is the mean of all.

    Returns:
        The recipe. `before_finetune` is the best candidate with the hypernetwork's weights.

    Raises:
        ArgumentError: a number out of range, or a net that is read and not trained here.

    Example:
        >>> [stage.name for stage in metapruning(Budget(macs=0.5), Train(60, 0.1))]
        ['train', 'save', 'dense', 'hypernetwork', 'search', 'before_finetune', 'begin_anew',
         'scratch']
    """
    if train is None:
        raise errors.ArgumentError(
            "metapruning trains a hypernetwork and the net that it finds from the beginning, and "
            "this net is read from a file. Leave out --weights."
        )
    if not 0 < window <= 1 or images < 1 or recalibrate < 0:
        raise errors.ArgumentError(
            f"metapruning(window={window}, images={images}, recalibrate={recalibrate}); the window "
            "is in (0, 1], there is at least one image, and 0 batches or more."
        )
    # 32 of 128 epochs in the paper
    epochs = train.epochs / 4 if meta_epochs is None else meta_epochs
    meta = dataclasses.replace(train, epochs=epochs)
    widths = Widths(budget, options, least, hidden, vectors, window)
    rounds = Rounds(generations, population, parents, mutants, crossovers, probability)
    return framed(
        train,
        TrainHypernetwork(widths, meta, smoothing, recalibrate),
        Search(widths, rounds, images, recalibrate, train.batch_size),
        after=(BeginAnew(), dataclasses.replace(train, name="scratch")),
    )


METHODS = {"metapruning": metapruning}
