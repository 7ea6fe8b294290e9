"""Learning both weights and connections: prune by size within the layer, retrain, again.

Every layer loses the weights below q_l standard deviations; what is left goes on from its trained
values. The q_l say which layer bears more, and come from a scan that prunes one layer at a time,
anew in every round; one multiplier of all of them meets the budget of a round. Masks meet gradients
*frozen*: a masked weight is exactly 0 and takes no step.

References:
    Han, Pool, Tran, Dally, Learning both weights and connections for efficient neural networks,
    2015, arXiv 1506.02626 [4].
"""

import dataclasses
from typing import Literal

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.criteria.std_rule import STD_OVER
from jprune.stages.dead_units import RemoveDead
from jprune.stages.dropout import RescaleDropout
from jprune.stages.frame import framed
from jprune.stages.rounds import evenly
from jprune.stages.sensitivity import Sensitivity
from jprune.stages.std_rule import L1Penalty, OnlyMoves, StdPrune
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def han(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    rounds: int = 5,
    q: Numbers | Literal["scan"] = "scan",
    std_over: str = "alive",
    tolerance: float = 0.01,
    examples: int = 1024,
    alternate: bool = False,
    l1: float = 0.0,
) -> Recipe:
    """Iterative magnitude pruning with thresholds in standard deviations of the layers.

    Args:
        budget: what is kept after the last round; of weights (a density is that of all kernels).
        train: training of the dense net; None where it is trained already. The paper's has L2, its
            `weight_decay`; dropout, where a net has it, gets the rate D_o sqrt(C_r / C_o) when its
            layer has C_r of C_o weights left.
        finetune: all of the retraining, a round getting its share. The paper's learning rate is a
            tenth (LeNets) or a hundredth (AlexNet) of the original one.
        rounds: number of rounds of pruning (the paper: 5 on VGG-16); each keeps the same fraction.
        q: "scan" (before every round, the largest q at which pruning this layer alone costs at most
            `tolerance` of validation accuracy; the first convolution gets at most the smallest of
            the others), or relative ones by hand: one for all, one for each kernel in execution
            order (on the command line 0.4:1:1:0.7), or {kernel: q}.
        std_over: "alive" or "all" weights; see `criteria.std_rule`.
        tolerance: of the scan.
        examples: of the validation split that the scan looks at.
        alternate: prune the dense layers and retrain them with the convolutions fixed, then the
            other way round: the paper's way with deep nets, where gradients vanish. Each takes half
            of the round's retraining.
        l1: strength of an L1 penalty in the dense net's training, in place of weight decay; the
            paper finds it better before retraining and worse after.

    Returns:
        The recipe; it prunes weights, and removes units that are left without in- or outputs.

    Raises:
        ArgumentError: a number out of range, or `l1` for a net that is read and not trained here.

    Example:
        >>> recipe = han(Budget(density=0.08), None, Train(10, 0.01, name="finetune"), rounds=1)
        >>> [stage.name for stage in recipe][2:]
        ['scan', 'prune', 'remove_dead', 'rescale_dropout', 'before_finetune', 'finetune']
    """
    if rounds < 1 or not 0 <= tolerance < 1 or examples < 1 or l1 < 0 or std_over not in STD_OVER:
        raise errors.ArgumentError(
            f"han(rounds={rounds}, tolerance={tolerance}, examples={examples}, l1={l1}, "
            f"std_over={std_over!r}); rounds and examples are 1 or more, tolerance in [0, 1), l1 0 "
            f"or more, std_over one of {', '.join(STD_OVER)}."
        )
    if l1 and train is None:
        raise errors.ArgumentError(
            "han(l1=...) acts while the dense net trains, and this one is read and not trained "
            "here. Leave out --weights."
        )
    if train is not None and l1:
        # In place of L2, as in the paper's comparison.
        train = dataclasses.replace(train, weight_decay=0.0, wrap=L1Penalty(l1))
    parts = ("dense", "conv") if alternate else (None,)
    goals = [(goal, part) for goal in evenly(budget, rounds) for part in parts]
    between = dataclasses.replace(finetune, epochs=finetune.epochs / len(goals), name="between")
    scan = Sensitivity(budget, q, tolerance, examples, std_over)
    stages = []
    for number, (goal, part) in enumerate(goals):
        # Numbers by hand do not change; a scan is made anew,
        # since layers bear less when they are pruned.
        if number == 0 or (q == "scan" and part == parts[0]):
            stages.append(scan)
        stages += [StdPrune(goal, std_over, part), RemoveDead(), RescaleDropout()]
        moves = None if part is None else OnlyMoves(part)
        stages.append(dataclasses.replace(between, wrap=moves))
    # The last retraining is the fine-tuning: together they train `finetune.epochs`.
    *pruning, last = stages
    return framed(train, *pruning, finetune=dataclasses.replace(last, name=finetune.name))


METHODS = {"han": han}
