"""BAR: hard-concrete gates under a barrier that explodes at a shrinking budget.

The trained net goes on learning, from the labels and from itself as it was, with a random gate on
every channel. The expected cost of the gates is a penalty, multiplied by a barrier that is infinite
where the net, cut as it stands, would cost as much as the present budget; that budget shrinks from
the whole net to what shall be kept. In the end closed channels go, the values of open gates are
folded into the net, and it is fine-tuned. Gates meet gradients in the open: while they are trained
nothing is masked; in the fine-tuning masked weights are *frozen*.

Differences: the barrier counts what the budget counts (MACs, parameters or units), and its expected
cost is that of the cost model; the paper's volume of maps is `measure="volume"`. Costs are
fractions of the whole net's, so `strength` does not depend on its size. Gates have plain gradient
steps with a limit instead of a clipped norm. A gate stands in what reads its channel, which behind
a ReLU is the paper's place behind the norm. If the last step is above the budget all the same, the
lowest open gates are closed: it is never overshot. Channels of a residual sum have one gate for all
that is added, so the paper's blocks with mixed connectivity are not made.

References:
    Lemaire, Achkar, Jodoin, Structured pruning of neural networks with budget-aware regularization,
    2019, arXiv 1811.09332 [24]; numbers as in a third-party implementation, there being no code of
    the authors.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.hard_concrete import ByBarrier
from jprune.stages.train import Train
from jprune.stages.unit_gates import CutGates, Gated, TrainGates


def bar(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    gates: str = "",
    share: float = 0.75,
    strength: float = 0.1,
    measure: str = "budget",
    slope: float = 10.0,
    tolerance: float = 0.01,
    margin: float = 1e-4,
    distill: float = 0.9,
    temperature: float = 4.0,
    gate_rate: float | None = None,
    gate_limit: float | None = None,
) -> Recipe:
    """Training with gates under a barrier, then without what they have closed.

    Args:
        budget: what is kept; never overshot in the end.
        train: training of the dense net; None where it is trained already.
        finetune: training with gates and fine-tuning after it.
        gates: patterns of groups that get gates, with ":" between; none: all.
        share: fraction of the fine-tuning epochs that training with gates takes.
        strength: of the expected cost, as a fraction of the whole net's, times the barrier. The
            1e-5 of a third-party implementation, over its batch, is this for 1.3 million values.
        measure: "budget": cost is what the budget counts; "volume": values of all maps, as in the
            paper, with the goal that the same fraction everywhere would have.
        slope: of the sigmoid along which the budget shrinks.
        tolerance: by how much the budget begins above the whole net.
        margin: how far below the goal the pressure ends.
        distill: weight of the dense net's outputs in the loss; 0: labels alone.
        temperature: of the distillation.
        gate_rate: of the steps of gates; None: 2,000 over the number of steps, 10 at least.
        gate_limit: the largest step of a gate's number; None: as long as closes it in a tenth of
            the steps.

    Returns:
        The recipe.

    Raises:
        ArgumentError: a word or number that is none of these.

    Example:
        >>> recipe = bar(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'gates', 'prune', 'before_finetune', 'finetune']
    """
    numbers = {"slope": slope, "tolerance": tolerance, "margin": margin}
    numbers |= {"gate_rate": gate_rate or 1.0, "gate_limit": gate_limit or 1.0}
    errors.check_words("bar", ("measure", measure, ("budget", "volume")))
    errors.check_numbers(
        "bar",
        ("share", share, 0 < share < 1, "in (0, 1)"),
        ("strength", strength, strength >= 0, "0 or more"),
        *((name, value, value > 0, "above 0") for name, value in numbers.items()),
    )
    during = dataclasses.replace(
        finetune, epochs=share * finetune.epochs, distill=distill, temperature=temperature
    )
    gated = Gated(gates, residual=True)
    kind = ByBarrier(strength, measure, slope, tolerance, margin, gate_rate, gate_limit)
    return framed(
        train,
        TrainGates(during, budget, gated, kind),
        CutGates(budget, gated, closed="gone"),
        finetune=dataclasses.replace(finetune, epochs=(1 - share) * finetune.epochs),
    )


METHODS = {"bar": bar}
