"""Network slimming: an L1 penalty on the scales of batch norms, and one threshold for the net.

    E(W) + lambda sum over channels c of |gamma_c|

Every channel behind a norm is multiplied by its scale; those whose scale the penalty brings down
can go. Units of all layers compete by |gamma|, so that the shape of the small net is found.

Masks meet gradients *prox* while scales shrink: there is no mask, and a scale that is 0 can come
back, its gradient being that of its normalised channel. Afterwards they are *frozen*: what is
masked is exactly 0 and takes no step.

Differences. The authors add the subgradient lambda sign(gamma) to the gradient, before momentum
(`how="subgradient"`), begin with scales of 0.5, penalise all norms, and prune at a quantile of all
|gamma|; here the default is the proximal step, nets begin as they do, and the quantile is the one
that meets the budget. Nets whose norms stand before the convolutions need a layer that selects
channels there; here such a channel is one unit, with the mean of its scales. The authors drop the
shift of a channel that goes; here f(shift) is folded into its readers where it is a constant.

References:
    Liu, Li, Shen, Huang, Yan, Zhang, Learning efficient convolutional networks through network
    slimming, 2017, arXiv 1708.06519; details as in the authors' PyTorch code.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.rounds import evenly
from jprune.stages.scales import PruneScales, ShrinkScales
from jprune.stages.train import Train


def slimming(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    strength: float | None = None,
    how: str = "prox",
    stop: float = 0.5,
    across: str = "mean",
    fold: bool = True,
    rounds: int = 1,
) -> Recipe:
    """Training with shrinking scales, pruning at one threshold, fine-tuning.

    Args:
        budget: what may be kept; met by units that have a scale, all others stay.
        train: training of the dense net; None where it is trained already.
        finetune: the training under the penalty and the one after it; with rounds, of all of them.
        strength: lambda; the paper's are 1e-4 (VGG) and 1e-5 (ResNet-164, DenseNet-40), for 160
            epochs at a learning rate from 0.1 with momentum 0.9, in which 1e-4 moves a scale by
            about 3. None: that with which a scale of the mean size is 0 after half of these steps,
            if the loss does not object. A strength without time to act is said in a warning.
        how: "prox", a step behind the optimizer that makes exact zeros, or "subgradient", the
            authors'.
        stop: fraction of the fine-tuning epochs under the penalty. 0 is the paper's way: the dense
            net is trained under the penalty, from the start.
        across: where a unit has several scales (residual streams): their "mean", "max" or "sum".
        fold: whether what a unit says at scale 0 goes into its readers; False is the authors'.
        rounds: how many times all of it is done, each keeping the same fraction of the rest (the
            paper's multi-pass scheme).

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = slimming(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('shrink', None), ('prune', None), ('before_finetune', None), ('finetune', 4.0)]
    """
    if not 0 <= stop < 1 or rounds < 1 or (stop == 0 and (train is None or rounds > 1)):
        raise errors.ArgumentError(
            f"slimming(stop={stop}, rounds={rounds}); stop is in [0, 1), rounds 1 or more. With "
            "stop=0 the penalty acts while the dense net trains: in one round, and not with "
            "--weights."
        )
    shrink = lambda stage, name: ShrinkScales(stage, budget, strength, how, name)
    prune = lambda wanted: PruneScales(wanted, across, fold)
    if train is not None and stop == 0:
        return framed(shrink(train, "train"), prune(budget), finetune=finetune)
    share = lambda part, name: dataclasses.replace(
        finetune, epochs=part * finetune.epochs / rounds, name=name
    )
    after = share(1 - stop, "between")
    passes = [
        stage
        for wanted in evenly(budget, rounds)
        for stage in (shrink(share(stop, "shrink"), "shrink"), prune(wanted), after)
    ]
    return framed(train, *passes[:-1], finetune=share(1 - stop, finetune.name))


METHODS = {"slimming": slimming}
