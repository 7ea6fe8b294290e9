"""Global sparse momentum: a few weights of the net are trained in a step, and all others decay.

    T = |g w|,   B = 1 for the Q largest T of all kernels together
    Z <- beta Z + eta W + B g,   W <- W - alpha Z

The Q weights are chosen anew in every step. What is never chosen decays through the momentum, 1 /
(1 - beta) times faster than by weight decay alone, until the final cut to the Q largest weights
changes nothing; so nothing is trained after it. A weight that was passive by mistake comes back.

Nothing is masked while weights decay, neither weights nor their momentum. What was masked before
is *frozen*: exactly 0, without a step.

Differences. The paper's momentum is 0.98 or 0.99, with which passive weights of its long runs
shrink by e^-8 to e^-19; in fewer steps the same settings hardly shrink them, so that momentum and
weight decay follow from the steps here unless they are set. The authors' scripts for lottery
tickets take Nesterov's momentum, the paper plain one. Weight decay is of kernels alone. Ties go
by position, where the authors' threshold lets all equal ones pass.

References:
    Ding, Ding, Zhou, Guo, Han, Liu, Global sparse momentum SGD for pruning very deep neural
    networks, 2019, arXiv 1909.12778 [31]; details as in the authors' PyTorch code.
"""

from jprune.base import Budget, Recipe
from jprune.stages.active_gradients import CutPassive, TrainActive
from jprune.stages.frame import Evaluate, framed
from jprune.stages.train import Train


def gsm(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    momentum: float | None = None,
    weight_decay: float | None = None,
    nesterov: bool = False,
    schedule: str = "one_shot",
    goal: float = 4e-4,
) -> Recipe:
    """Trains the weights that matter while the others decay, and cuts; nothing is trained after.

    Args:
        budget: what is kept, of weights (a density is that of all kernels, and Q is that many; for
            a budget in MACs or parameters, Q is how many weights it would keep of the dense net).
        train: training of the dense net; None where it is trained already.
        finetune: the training in which passive weights decay. The paper's ResNet-56 takes 600
            epochs at a learning rate from 0.005, a tenth of it after 400 and 500, in batches of 64;
            its LeNets 280 epochs from 0.01 in batches of 256, after a warm-up of 5.
        momentum: beta; the paper's are 0.99 (LeNets) and 0.98. None: the largest of 0.98, 0.95,
            0.9, 0.8 and 0.5 with which passive weights come down to `goal` in these steps.
        weight_decay: eta; the paper's are 5e-4 (LeNets) and 1e-4. None: the smallest with which
            they do. With numbers that leave more, a warning says how much.
        nesterov: whether the momentum is Nesterov's.
        schedule: of Q: "one_shot", the last number in all steps, as in the paper; or "cubic", from
            all weights down to Q in the first half of the steps, fast at first (ours).
        goal: what is left of a passive weight in the end; the paper's ResNet-56: e^-7.8.

    Returns:
        The recipe; it prunes weights. Its evaluations are named `dense` (test), `before_cut` and
        `before_finetune` (validation, before and after the cut).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = gsm(Budget(density=0.1), None, Train(8, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'passive', 'before_cut', 'prune', 'before_finetune']
    """
    return framed(
        train,
        TrainActive(finetune, budget, momentum, weight_decay, nesterov, schedule, goal),
        Evaluate("validation", name="before_cut"),
        CutPassive(budget),
    )


METHODS = {"gsm": gsm}
