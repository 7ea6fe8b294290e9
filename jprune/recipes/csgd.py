"""C-SGD: filters grow equal, and are then merged without any loss.

The units of every group are put into as many clusters as shall be left. Training pulls those of a
cluster together until they are the same function; one of them can then speak for all, with the sum
of their outgoing weights. All layers that add into a residual stream share its clusters, so streams
are pruned like everything else.

No mask is there while clusters grow. What is masked afterwards, and in later rounds, is *frozen*:
exactly 0, without a step.

References:
    Ding, Ding, Guo, Han, Centripetal SGD for pruning very deep convolutional networks with
    complicated structure, 2019, arXiv 1904.03837 [41]; details as in the authors' code.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.centripetal import Cluster, MergeClusters, Pull
from jprune.stages.frame import framed
from jprune.stages.rounds import evenly
from jprune.stages.train import Train


def csgd(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    strength: float | None = None,
    of_vectors: float = 0.1,
    bias_rate: float = 2.0,
    clusters: str = "kmeans",
    producers: str = "pacesetter",
    rounds: int = 1,
    goal: float = 1e-6,
) -> Recipe:
    """Trains towards equal filters, and merges them; nothing is trained afterwards.

    Every group whose readers are all plain contractions, which can add a merged unit's weights,
    keeps the same fraction of its units.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: training in which clusters contract; with rounds, all of it together. The paper's
            ResNet-56 takes 600 epochs a round with SGD from 0.03, a tenth of it after a third and
            after two thirds, batches of 64 and weight decay 1e-4.
        strength: the paper's epsilon: 3e-3 for ResNet-56 and DenseNet-40, 0.05 for ResNet-50.
            Differences shrink by about exp(-sum of learning rates * strength / (1 - momentum)), so
            what is right depends on how long is trained. None takes the gentlest strength with
            which all of them shrink to `goal`.
        of_vectors: factor of the strength for scales and biases.
        bias_rate: factor of the learning rate of biases, as in the authors' code; the classifier's
            belongs to no unit and has none.
        clusters: "kmeans" of the kernels, "even" (neighbours) or "imbalanced" (one large cluster).
        producers: whose kernels k-means sees where several layers write a stream: the first one
            ("pacesetter", the paper's) or "all".
        rounds: number of rounds, each keeping the same fraction of the remaining units; the
            paper's ResNet-56 goes to 13/16, 11/16 and 5/8 of its width.
        goal: see `strength`.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = csgd(Budget(macs=0.5), None, Train(8, 0.03, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'cluster', 'pull', 'merge', 'before_finetune']
    """
    if rounds < 1:
        raise errors.ArgumentError(f"csgd(rounds={rounds}); it is 1 or more.")
    # All rounds together train as long as one would.
    each = dataclasses.replace(finetune, epochs=finetune.epochs / rounds, name="pull")
    return framed(
        train,
        *(
            stage
            for goal_of_round in evenly(budget, rounds)
            for stage in (
                Cluster(goal_of_round, clusters, producers),
                Pull(each, strength, of_vectors, bias_rate, goal),
                MergeClusters(),
            )
        ),
    )


METHODS = {"csgd": csgd}
