"""ExactOBS: optimal brain surgery within every layer, exact for squared errors of its outputs.

What a layer reads on calibration images makes one Hessian, 2 X X^T / n, that all its outputs share.
For each output the weight that costs least is deleted and the others make up for it, to the last;
of all outputs together the cheapest deletions are taken, until the layer's share is left. The
weights that stay are those of least squares.

The paper has no damping; where a Hessian has no inverse, as little as it takes is added here. Its
images are 1,024, each seen ten times with augmentation and at all positions; here positions are
drawn. The paper's layers can keep different fractions, found by a search over all of them; here all
layers keep the same one (`floors` of the budget leave some whole). Patterns such as 2:4, and
quantisation, are not part of it. Kernels that are no plain convolution or dense layer stay whole.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Frantar, Singh, Alistarh, Optimal brain compression: a framework for accurate post-training
    quantization and pruning, 2022, arXiv 2208.11580.
"""

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed, settled
from jprune.stages.solvers import Eliminate, SolveLayers
from jprune.stages.train import Train


def exact_obs(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    damping: float = 0.0,
    inputs: str = "dense",
    batches: int = 8,
    batch_size: int = 128,
    points: int = 10,
    recalibrate: int = 0,
) -> Recipe:
    """Prunes single weights layer by layer, by exact surgery on each output.

    Args:
        budget: what is kept; a density is that of the kernels that are pruned.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; the paper's results without are the evaluation
            `before_finetune`.
        damping: added to the diagonal of a Hessian, over its mean; 0 in the paper.
        inputs: what layers read: in the "dense" net, as in the paper, or in the net as it is "now",
            the layers before being pruned.
        batches: of calibration images; 1,024 images as in the paper, or what there is.
        batch_size: images in one.
        points: sampled positions per image and layer.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = exact_obs(Budget(density=0.3), None, Train(4, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    prune = SolveLayers(budget, Eliminate(damping), inputs, batches, batch_size, points)
    return framed(train, prune, finetune=finetune, after=settled(recalibrate, finetune.batch_size))


METHODS = {"exact_obs": exact_obs}
