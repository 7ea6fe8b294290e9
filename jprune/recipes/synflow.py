"""SynFlow: pruned before training and without any data, in a hundred rounds.

A signal of ones goes through the absolute weights; a weight's score is what it carries of it, and
the scores of every layer add up to the same sum. Each of n rounds keeps the same fraction, so that
density^(k / n) of the weights are left after the k-th, and scores what is left anew: a layer that
has become thin has high scores, and none is emptied as long as the budget leaves it a weight on a
path. The sparse net is then trained as the dense one is.

As in the authors' code, norms are in inference mode, with the absolute values of statistics and
shifts too, and biases are not pruned. The paper has 100 rounds, the code's command line 1, with
which layers collapse as they do under other criteria. The code rounds counts down, here they are
exact, and the best weight of a layer stays. A budget in MACs or parameters falls from round to
round by the same factor, as a density does.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Tanaka, Kunin, Yamins, Ganguli, Pruning neural networks without any data by iteratively
    conserving synaptic flow, 2020, arXiv 2006.05467.
"""

from jprune.base import Budget, Recipe
from jprune.stages.train import Train
from jprune.stages.untrained import PruneUntrained, before_training
from jprune.stages.untrained_scores import BySynapticFlow


def synflow(
    budget: Budget,
    train: Train | None,
    *,
    rounds: int = 100,
    per: str = "weight",
    collapse: str = "refuse",
) -> Recipe:
    """Prunes the untrained net by synaptic flow, and trains it.

    Args:
        budget: what is kept; of weights, a density is that of all kernels.
        train: training of the pruned net, and of the dense one beside it.
        rounds: of scoring and pruning; 100 in the paper.
        per: "weight", as in the paper, or "unit": scores are summed over a filter.
        collapse: where no path of weights is left: "refuse", or "warn" and go on.

    Returns:
        The recipe; it has no fine-tuning. Its evaluations are named `dense` (test) and
        `before_finetune` (validation, of the untrained sparse net).

    Raises:
        ArgumentError: another word, a number below 1, or a net that is read and not trained here;
            (before anything is trained) a net through which no signal of ones comes.

    Example:
        >>> [stage.name for stage in synflow(Budget(density=0.1), Train(20, 0.1))]
        ['save', 'train', 'save', 'dense', 'rewind', 'prune', 'before_finetune', 'finetune']
    """
    prune = PruneUntrained(BySynapticFlow(), budget, rounds, per, collapse=collapse)
    return before_training("synflow", train, prune)


METHODS = {"synflow": synflow}
