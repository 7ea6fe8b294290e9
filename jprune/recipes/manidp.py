"""ManiDP: channels chosen anew for every image, fewer for easy ones, alike for like ones.

A squeeze branch reads a layer's inputs and says how salient each output channel is for an image;
channels under the layer's threshold are 0 for it, the others are multiplied by their salience.
Thresholds are the same for all images, so that the number of open channels differs: the loss makes
easy images pay for their saliences, and holds the similarities of saliences to those of features.
What comes out depends on its input: `slim` removes nothing, kernels are held as
`jprune.forms.Thresholded`, `params` are those of the dense net and of the branches, and `macs`
is a mean over the images of a split, with closed inputs and outputs left out.

A closed channel is *frozen* for that image: exactly 0, without gradient from the labels.

Where this differs: the weight of an easy image is no path of the gradient (`detach`; in the
authors' code it raises the loss of easy images). Easy is what lies under the mean loss of the round
before; in the first round, where the authors evaluate the net once, of the steps so far. Gates
stand behind the norm and before the nonlinearity: the same for ReLU. All convolutions can have
gates, stems and shortcuts as well. With a budget in MACs all thresholds are multiplied by one
number in the end, so that the mean of 512 training images meets it; an image may have no open
channel in a layer.

References:
    Tang, Wang, Xu, Deng, Xu, Tao, Xu, Manifold regularized dynamic network pruning, 2021,
    arXiv 2103.05861 [38]; details as in the authors' code.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.learners.manifold import Manifold
from jprune.stages.deformed import DEFORMATIONS, EvaluateDeformed
from jprune.stages.difficulty import EvaluateDifficulty
from jprune.stages.frame import opening
from jprune.stages.input_gates import refuse_budget
from jprune.stages.manifold import KeepManifold
from jprune.stages.train import Train


def manidp(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    gates: str = "",
    lasso: float = 5e-3,
    similarity: float = 1.0,
    easy: float = 0.5,
    gamma: float = 1.0,
    detach: bool = True,
    every: int | None = None,
) -> Recipe:
    """Squeeze branches on the trained net, trained with it while thresholds rise.

    Args:
        budget: in MACs: the mean of an image; or a density: the share r of a layer's channels whose
            mean salience reaches the last threshold, which is the paper's. `min_units` and `floors`
            are the fewest of these; `multiple_of` has no meaning where channels differ by image.
        train: training of the dense net; None where it is trained already.
        finetune: training of net and branches. The paper's has 400 epochs.
        gates: patterns of the kernels that get gates, with ":" between; none: all convolutions.
        lasso: weight of the saliences of easy images.
        similarity: weight of the gap between similarities; 0: without.
        easy: an image is easy whose loss is under so many times the mean; inf: all, with weight 1.
        gamma: power of how easy it is.
        detach: whether an image's weight is a constant for the gradient.
        every: steps between two thresholds; None: an epoch as in the paper, or a tenth of the steps
            where there are fewer than ten epochs.

    Returns:
        The recipe; it ends with scores on deformed images and on images of rising difficulty.

    Raises:
        ArgumentError: a budget that an input-dependent net cannot have, or an option out of range.

    Example:
        >>> [s.name for s in manidp(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))]
        ['save', 'dense', 'manifold', 'mosaic', 'occlusion', 'difficulty']
    """
    refuse_budget("manidp", budget)
    if finetune.distill:
        raise errors.ArgumentError("manidp learns from labels alone; leave out --distill.")
    # Checked here, before anything is trained.
    manifold = Manifold(lasso, similarity, easy, gamma, detach)
    short = dataclasses.replace(finetune, name="manifold")
    return (
        *opening(train),
        KeepManifold(short, budget, manifold, gates, every),
        *(EvaluateDeformed(name) for name in DEFORMATIONS),
        EvaluateDifficulty(),
    )


METHODS = {"manidp": manidp}
