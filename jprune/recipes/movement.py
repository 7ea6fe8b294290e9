"""Movement pruning: weights that training moves away from 0 stay, whatever their size.

While the trained net is fine-tuned, every weight has a score, minus the sum of g w over the steps;
what has the lowest is masked, more and more of it. For a net that was trained for something else:
small weights that the new task needs are found, and large ones that it does not need go. From
scratch it is poor.

Masks meet gradients *straight-through* while scores are learned: the score of every weight, masked
or not, gets the gradient of the masked product times w; masked weights stand still and come back
with the value that they had. After that the masks are fixed and the rest of the training is
*frozen*: a masked weight is exactly 0 and takes no step.

References:
    Sanh, Wolf, Rush, Movement pruning: adaptive sparsity by fine-tuning, 2020, arXiv 2005.07683;
    details as in the authors' code: scores begin at 0 and are learned by Adam, the density falls by
    a cubic after a warm-up, "soft" has an L1 penalty on sigmoid(S). The paper's soft form has no
    budget: it is met at the end, by the scores, which is ours. Scores of the cool-down go on in the
    paper; here its masks are fixed.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.movement import Movement
from jprune.stages.train import Train


def movement(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    form: str = "hard",
    scope: str = "layer",
    score_rate: float = 1e-2,
    warmup: float = 0.1,
    cooldown: float = 0.2,
    threshold: float = 0.1,
    strength: float = 400.0,
) -> Recipe:
    """Training with scores on the trained net, then training under the masks that they chose.

    Args:
        budget: of weights (a density is that of all kernels).
        train: training of the dense net; None where it is trained already.
        finetune: training with scores, and the one after it.
        form: "hard" (the best scores stay, at a density that falls) or "soft" (those above a
            threshold stay, and a penalty lowers all).
        scope: "layer" (the same fraction of every kernel) or "global" (all kernels compete).
        score_rate: learning rate of the scores, by Adam.
        warmup: fraction of the training with scores before the masks become sparse.
        cooldown: fraction of the fine-tuning epochs under the last masks (the paper's 2 of 10).
        threshold: that sigmoid(S) has to pass in the end, of "soft"; it rises from 0.
        strength: of the penalty on the mean of sigmoid(S), of "soft" (the paper's up to 400); it
            rises with the threshold.

    Returns:
        The recipe; it prunes weights, not units.

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = movement(Budget(density=0.1), None, Train(10, 0.01, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('movement', None), ('before_finetune', None), ('finetune', 2.0)]
    """
    if not 0 < cooldown < 1:
        raise errors.ArgumentError(f"movement(cooldown={cooldown}); it is in (0, 1).")
    during = dataclasses.replace(finetune, epochs=(1 - cooldown) * finetune.epochs)
    return framed(
        train,
        Movement(during, budget, form, scope, score_rate, warmup, threshold, strength),
        finetune=dataclasses.replace(finetune, epochs=cooldown * finetune.epochs),
    )


METHODS = {"movement": movement}
