"""NetAdapt: one layer at a time shrinks until the resource that the budget names is met.

In every round each layer alone is proposed with as few units less as meet the round's target, those
with the smallest L2 norms going; the proposals are trained for a few steps, and the one of the best
accuracy on held-out images is where the next round begins, weights and all. What a net uses is
measured, not estimated layer by layer: MACs, parameters, or latency from a table of the device.
Then the net is fine-tuned.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Yang, Howard, Chen, Zhang, Go, Sandler, Sze, Adam, NetAdapt: platform-aware neural network
    adaptation for mobile applications, 2018, arXiv 1804.03230. Numbers are those of the authors'
    later code (denru01/netadapt), which stops after 10 rounds, whatever is left then (0.79 of the
    dense net), and lets the proposal win that loses the least accuracy for what it saves (`ratio`;
    the paper: the highest accuracy). Its steps end above 0.375 of the dense net: for smaller
    budgets they are larger here. There the last round may go below the budget; here its target is
    the budget, and a proposal that would end more than two points below is the last choice. A
    residual sum is one layer here, and there one for each of its layers; statistics of norms are
    those of the short training there, and taken anew here.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.candidates import Trial
from jprune.stages.frame import framed
from jprune.stages.narrowing import NarrowByProposals
from jprune.stages.train import Train

WINNERS = ("accuracy", "ratio")


def netadapt(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    step: float | None = None,
    decay: float = 0.96,
    winner: str = "accuracy",
    tau: int | None = None,
    rate: float = 1e-3,
    images: int = 500,
    recalibrate: int = 4,
) -> Recipe:
    """Rounds of proposals, fine-tuning.

    Args:
        budget: what is kept, and of which resource.
        train: training of the dense net; None where it is trained already.
        finetune: training of the pruned net.
        step: what the first round takes, a fraction of the dense net; None: 0.025, or as much as
            meets the budget in 40 rounds.
        decay: what a round takes, as a fraction of the one before.
        winner: "accuracy" (minus the loss, where there is none), or "ratio": of what is lost to
            what is saved.
        tau: training steps of a proposal (the paper: 10,000 or more, on ImageNet); None: the code's
            10, or fewer where fine-tuning has fewer. Each round has them for every layer.
        rate: learning rate of these steps, which is constant.
        images: of the validation split that a proposal is scored on.
        recalibrate: training batches that a proposal's statistics are taken from anew; 0: none.

    Returns:
        The recipe. `before_finetune` is the last winner.

    Raises:
        ArgumentError: another word, or a number out of range.
        BudgetError: the steps end above the budget.

    Example:
        >>> recipe = netadapt(Budget(macs=0.5), None, Train(8, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'search', 'before_finetune', 'finetune']
    """
    errors.check_words("netadapt", ("winner", winner, WINNERS))
    errors.check_numbers(
        "netadapt",
        ("tau", tau, tau is None or tau >= 0, "0 or more"),
        ("rate", rate, rate > 0, "above 0"),
    )
    steps = min(10, finetune.max_steps or 10) if tau is None else tau
    short = dataclasses.replace(
        finetune, epochs=float(steps), max_steps=steps, learning_rate=rate, schedule="constant",
        warmup=0.0, name="proposal",
    ) if steps else None  # fmt: skip
    trial = Trial(images, recalibrate, finetune.batch_size, train=short)
    rounds = NarrowByProposals(budget, trial, step, decay, ratio=winner == "ratio")
    return framed(train, rounds, finetune=finetune)


METHODS = {"netadapt": netadapt}
