"""GAL: soft masks that an adversary judges by the net's outputs, pruned without labels.

The net under soft masks learns the outputs of the dense net; a discriminator learns to tell the
two apart; an L1 penalty pushes the masks to 0 by FISTA. What is 0 is removed, and the rest is
fine-tuned with labels. Masks meet gradients by *prox*: while they are soft there is nothing masked,
and the zeros are made by the masks' own step; fine-tuning is *frozen*.

Other than in the authors' code, the L1 term is in the proximal step alone (theirs adds its
subgradient too, which doubles it), the discriminator's sigmoid is taken once, ReLU stands between
its layers, it sees logits over the root mean square of the dense net's, and the dense net is in
inference mode.

References:
    Lin, Ji, Yan, Zhang, Cao, Ye, Huang, Doermann, Towards optimal structured CNN pruning via
    generative adversarial learning, 2019, arXiv 1903.09291 [30]; details as in the authors' code.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.learners import Terms
from jprune.stages.adversarial import Adversarial, SettleSoftMasks, Soft
from jprune.stages.frame import framed
from jprune.stages.train import Train


def gal(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    masks: str = "channel",
    gates: str = "",
    strength: float | None = None,
    mu: float = 1.0,
    adversarial: float = 1.0,
    regulariser: str = "adversarial",
    init: str = "ones",
    mask_steps: int = 100,
    mask_rate: float = 0.01,
    judge_rate: float = 0.01,
    judge_std: float | None = None,
    restart: int = 0,
    share: float = 0.5,
) -> Recipe:
    """Adversarial pruning of the trained net without labels, then fine-tuning with them.

    Args:
        budget: masks fall until it is met, and rest from then on.
        train: training of the dense net; None where it is trained already.
        finetune: adversarial training and fine-tuning after it.
        masks: "channel", "branch" (one mask for all that a layer puts into a concatenation; of such
            a branch `min_units` channels stay as zeros, or as many as its floor asks for), "block"
            (residual blocks, as in the paper's ResNets), or "channel+block" (its GAL-joint).
        gates: patterns of what gets masks, with ":" between; none: everything.
        strength: the paper's lambda (0.6 and 0.8 for ResNet-56's blocks, 1e-3 to 1e-2 for
            channels); the budget is then an error if lambda is too weak for it. None: it rises
            from where a mask falls from 1 to 0 in all mask steps to 100 times that.
        mu: weight of the mean squared difference of logits (0.1 for VGG-16, GoogLeNet, DenseNet).
        adversarial: weight of the discriminator's verdict; 0: no adversary.
        regulariser: of the discriminator: "adversarial" (the paper's best), "l1", "l2" (with a
            weight of 1e-3, which the paper does not give), "none".
        init: of the masks, "ones", or "normal" as in the authors' code, where the first step of
            the masks removes what is below 0: half of everything at random, whatever the budget.
        mask_steps: how many steps of the masks lie in the training, evenly (the authors' 100, with
            some 390 steps of the weights between two). Blocks want 20 or more in between: with
            fewer they fall together (`experiments/claims/p30b.py`).
        mask_rate: step size of the masks.
        judge_rate: learning rate of the discriminator.
        judge_std: of its initial weights; None is He's. The authors' 0.01 needs their 39,000 steps.
        restart: FISTA's momentum starts anew after so many steps of the masks; 0: never (the
            authors mean every 30, but theirs never fires).
        share: fraction of the fine-tuning epochs that the adversarial part takes.

    Returns:
        The recipe.

    Raises:
        ArgumentError: a name or number that is none of these.

    Example:
        >>> recipe = gal(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"), mu=0.1)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'adversarial', 'settle', 'before_finetune', 'finetune']
    """
    soft = Soft(masks, gates, strength, init, mask_steps, mask_rate, restart)
    terms = Terms(mu, adversarial, regulariser)
    if not 0 < share < 1:
        raise errors.ArgumentError(f"gal(share={share}); it is in (0, 1).")
    during = dataclasses.replace(
        # The dense net is the teacher here anyway, by the adversarial loss.
        finetune,
        epochs=share * finetune.epochs,
        schedule="constant",
        distill=0.0,
    )
    return framed(
        train,
        Adversarial(during, budget, soft, terms, judge_rate, judge_std),
        SettleSoftMasks(budget),
        finetune=dataclasses.replace(finetune, epochs=(1 - share) * finetune.epochs),
    )


METHODS = {"gal": gal}
