"""SparseGPT: a layer is pruned in one pass over its inputs; later ones make up for earlier ones.

What a layer reads makes one Hessian, 2 X X^T / n. Input by input, weights go and all inputs behind
make up for the error; one triangular factor serves all outputs, so that a layer of n inputs takes
n^3 operations where ExactOBS takes them for every output. Which weights go is chosen for blocks of
128 inputs at a time, of all outputs together, by w^2 over the curvature that is left for it.

The method is made for language models, layer after layer on the inputs that the pruned net gives
(`inputs="now"`), with a damping of 0.01; a convolution has its windows as inputs. Every block keeps
the same share of its weights, in exact numbers; the code takes a threshold in each. Patterns such
as 2:4 and quantisation are not part of it. Kernels that are no plain convolution or dense layer
stay whole.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Frantar, Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot,
    2023, arXiv 2301.00774.
"""

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed, settled
from jprune.stages.solvers import SolveLayers, Sweep
from jprune.stages.train import Train


def sparsegpt(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    block: int = 128,
    damping: float = 0.01,
    inputs: str = "now",
    batches: int = 8,
    batch_size: int = 128,
    points: int = 10,
    recalibrate: int = 0,
) -> Recipe:
    """Prunes single weights layer by layer, in one pass over each layer's inputs.

    Args:
        budget: what is kept; a density is that of the kernels that are pruned.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; the paper has none: its results are the evaluation
            `before_finetune`.
        block: inputs whose weights are chosen together; 128 in the paper.
        damping: added to the diagonal of a Hessian, over its mean; 0.01 in the paper.
        inputs: what layers read: in the net as it is "now", the layers before being pruned, as in
            the paper, or in the "dense" net.
        batches: of calibration images; the paper has 128 sequences of 2,048 tokens.
        batch_size: images in one.
        points: sampled positions per image and layer.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = sparsegpt(Budget(density=0.5), None, Train(4, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    prune = SolveLayers(budget, Sweep(block, damping), inputs, batches, batch_size, points)
    return framed(train, prune, finetune=finetune, after=settled(recalibrate, finetune.batch_size))


METHODS = {"sparsegpt": sparsegpt}
