"""ResRep: compactors behind the layers forget, while the layers themselves remember.

    G_i <- m_i dL/dQ_i + lambda Q_i / ||Q_i||,   Q [units, units], the identity at first

A square matrix, a compactor, stands behind convolution and norm of every group. Now and then its
shortest rows are chosen, a few more each time, until the net without them meets the budget: the
loss has no say any more in what becomes of these rows, and the penalty brings them to 0. All other
weights are trained as usual, without a penalty. In the end the compactors are folded into the
kernels, and the units whose rows are 0 go: nothing is lost, so nothing is trained after it.

Chosen rows have no mask and no frozen weight: they shrink (*prox*), and a row that was chosen by
mistake has its gradient back at the next choice. After the cut masked weights are *frozen*.

Differences. The authors add the penalty's gradient before the momentum (`how="subgradient"`) and
cut rows below 1e-5 after some 375,000 steps; here the default is the proximal step, which makes
exact zeros in any number of steps, and what goes is what the budget asks for. They choose 4 rows
more every 200 steps (`more`, `every`) from the fifth epoch on, which is a hundredth of their
training for CIFAR-10; here the cost comes down in a line by default. They prune the channels inside
of residual blocks alone; here the others are pruned too where the budget cannot be met otherwise,
with one compactor for all that is added. In place of their kernels with biases, norms stay, with
statistics of the new values. Behind a depthwise layer they fold |shift| of a channel that goes;
here it is the constant itself.

References:
    Ding, Hao, Tan, Liu, Han, Guo, Ding, ResRep: lossless CNN pruning via decoupling remembering and
    forgetting, 2021, arXiv 2007.03260; details as in the authors' PyTorch code.
"""

import dataclasses

from jprune.base import Budget, Recipe
from jprune.stages.compactor import CutRows, Forget, TrainCompactors
from jprune.stages.frame import Evaluate, framed
from jprune.stages.train import Train
from jprune.stages.unit_gates import Gated


def resrep(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    strength: float | None = None,
    momentum: float = 0.99,
    how: str = "prox",
    begin: float = 0.01,
    until: float = 0.3,
    every: int | None = None,
    more: int | None = None,
    gates: str = "",
    residual: bool | None = None,
) -> Recipe:
    """Training with compactors that forget, and the cut; nothing is trained after it.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: the training with compactors. The authors' ResNet-56 takes 480 epochs in batches
            of 64, cosine from 0.01.
        strength: lambda; the authors' is 1e-4. None: such that the rows that are chosen last are 0
            in time. A strength without time to act is said in a warning.
        momentum: of the compactors.
        how: "prox", a step behind the momentum that makes exact zeros, or "subgradient", the
            authors'.
        begin: fraction of the steps before the first rows are chosen.
        until: fraction of the steps after which the rows that are chosen meet the budget.
        every: steps from one choice to the next; the authors' is 200. None: fifty choices.
        more: rows that every choice adds; the authors' is 4, and `until` has no say then. None:
            as many as bring the cost down in a line.
        gates: patterns of groups that get compactors, with ":" between; none: all that can.
        residual: whether channels of residual sums have compactors. None: where the budget cannot
            be met without them.

    Returns:
        The recipe. Its evaluations are named `dense` (test), `before_cut` and `before_finetune`
        (validation, before and after the cut).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = resrep(Budget(macs=0.5), None, Train(8, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'compact', 'before_cut', 'prune', 'before_finetune']
    """
    forget = Forget(strength, momentum, how, begin, until, every, more)
    gated = Gated(gates, residual)
    return framed(
        train,
        TrainCompactors(dataclasses.replace(finetune, name="compact"), budget, gated, forget),
        Evaluate("validation", name="before_cut"),
        CutRows(budget, gated),
    )


METHODS = {"resrep": resrep}
