"""The pruned shape trained from scratch: what inherited weights have to beat.

The dense net is trained and pruned by the L1 norm, all that is kept gets new initial values, and
the small net is trained like the dense one: for as many epochs (Scratch-E), or for as many
multiply-accumulates, which are more epochs (Scratch-B).

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Liu, Sun, Zhou, Huang, Darrell, Rethinking the value of network pruning, 2019, arXiv 1810.05270
    [49]. Its CIFAR nets train for 160 epochs, from 0.1, a tenth of it after a half and after three
    quarters (`schedule="step"`); its ImageNet nets count ratios of MACs up to 2 (`cap=2`).
"""

from functools import partial

from jprune import allocate
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.prune import Prune, l1_of
from jprune.stages.reinitialise import BeginAnew, like_the_dense
from jprune.stages.train import Train


def scratch(
    same: str,
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    epochs: float | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
    cap: float | None = None,
    per: str = "unit",
) -> Recipe:
    """Trains, prunes, and trains the small net from new initial values.

    Args:
        same: as what the dense net's training took: "epochs" or "macs".
        budget: what is kept.
        train: training of the dense net; the small one is trained in the same way.
        finetune: is not run. Where the dense net is read, its batch size is that of the training.
        epochs: of the dense net; None are those of `train`.
        learning_rate: the largest one; None is that of `train`.
        schedule: of the learning rate; None is that of `train`.
        cap: the largest ratio of MACs that counts; None: there is none.
        per: "unit", or "weight" for single weights of kernels under new initial values.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation, of
        the untrained small net), its training `scratch`.

    Raises:
        ArgumentError: the dense net is read, and epochs or learning rate are not given; or a
            number out of range.

    Example:
        >>> recipe = METHODS["scratch_b"](Budget(macs=0.5), Train(160, 0.1), Train(40, 0.001))
        >>> [stage.name for stage in recipe]
        ['train', 'save', 'dense', 'prune', 'begin_anew', 'before_finetune', 'scratch']
    """
    own = {"epochs": epochs, "learning_rate": learning_rate, "schedule": schedule}
    anew = like_the_dense(train, finetune, same, cap, **own)
    return framed(
        train, Prune(l1_of, allocate.uniform, budget, per=per), BeginAnew(), finetune=anew
    )


METHODS = {"scratch_e": partial(scratch, "epochs"), "scratch_b": partial(scratch, "macs")}
