"""Growing regularisation: weight decay that grows takes filters away, or shows which to take.

    dW_g <- dW_g + lambda W_g,   lambda <- min(lambda + delta, ceiling) every K steps

GReg-1 (`pick="l1"`) chooses the filters with the smallest mean |w| and lets the decay of these
grow. GReg-2 (`pick="response"`) first lets the decay of all filters grow a little: weights give way
by h / (h + lambda), so those in flat directions come down most; then it chooses in the same way.

Nothing is masked while filters decay: what was masked before is *frozen*, exactly 0 and without a
step, and so is what was chosen in the fine-tuning.

Differences. The authors decay kernels alone, at a constant learning rate of 1e-3, grow by 1e-4
every 5 steps (10 for CIFAR-10) up to 1, hold that for 40,000 steps (10,000), and stop early where
kept weights are 1,000 times those that go. Here scales and shifts decay with their filter, without
which a norm would undo it, coupled layers lose the same units, and delta follows from the steps
unless it is set; all steps are taken.

References:
    Wang, Qin, Zhang, Fu, Neural pruning via growing regularization, 2021, arXiv 2012.09243; details
    as in the authors' PyTorch code.
"""

import dataclasses
from collections.abc import Sequence

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.blocks.kinds import as_words
from jprune.stages.frame import framed
from jprune.stages.group_decay import ChooseGroups, CutGroups, Grouped
from jprune.stages.growing_decay import Grow
from jprune.stages.train import Train


def greg(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    pick: str = "l1",
    group: str = "filter",
    names: str | Sequence[str] | None = None,
    ceiling: float = 1.0,
    growth: float | None = None,
    every: int = 5,
    others: float | None = None,
    pick_ceiling: float = 0.01,
    pick_growth: float | None = None,
    scales: bool = True,
    stop: float = 0.6,
) -> Recipe:
    """Training in which the decay of chosen filters grows until they are gone, then fine-tuning.

    Args:
        budget: what may be kept, the same fraction of every block.
        train: training of the dense net; None where it is trained already.
        finetune: the training under growing decay, at a constant learning rate, and the one after.
        pick: "l1", by the mean |w| of the dense net (GReg-1); or "response", by that under a decay
            of all filters (GReg-2), which takes a tenth of the steps under decay.
        group: "filter" (all that makes a unit), "channel" (all that reads it), or "column" (one tap
            of one input; masks of weights).
        names: of groups or kernels; None: all. (On the command line with "+" between.)
        ceiling: where the decay of the chosen ones stops.
        growth: delta of that decay; the paper's is 1e-4. None: so that nine tenths of the steps
            bring it to the ceiling. A growth that does not come there is said in a warning.
        every: K, steps from one growth to the next.
        others: decay of the ones that stay meanwhile; None: 0, and the authors' -1e-4 for
            "response".
        pick_ceiling: where the decay of all filters stops, for "response".
        pick_growth: delta of that decay; the paper's is 1e-5. None: as for `growth`.
        scales: whether the scales and shifts of a filter decay with it; False is the authors'.
        stop: fraction of the fine-tuning epochs under decay.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = greg(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('choose', None), ('grow', None), ('prune', None), ('before_finetune', None), \
('finetune', 4.0)]
    """
    if pick not in ("l1", "response") or not 0 < stop < 1:
        raise errors.ArgumentError(
            f"greg(pick={pick!r}, stop={stop}); pick is 'l1' or 'response', stop in (0, 1)."
        )
    grouped = Grouped(group, None if names is None else as_words(names), scales)
    response = pick == "response"
    share = lambda part: dataclasses.replace(
        finetune, epochs=stop * part * finetune.epochs, schedule="constant"
    )
    spared = (-1e-4 if response else 0.0) if others is None else others
    push = Grow(
        share(0.9 if response else 1.0), budget, grouped, ceiling, growth, every,
        start=pick_ceiling if response else 0.0, others=spared,
    )  # fmt: skip
    show = Grow(
        share(0.1), budget, grouped, pick_ceiling, pick_growth, every, of_all=True, name="respond"
    )
    return framed(
        train,
        *((show,) if response else ()),
        ChooseGroups(budget, grouped),
        push,
        CutGroups(budget, grouped),
        finetune=dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs),
    )


METHODS = {"greg": greg}
