"""Group-wise brain damage: the same taps vanish from all filters of a kernel, and im2col is thin.

    E(K) + lambda sum over (c, r, s) of min(||K[:, c, r, s]||, theta)

A group is a tap of one input over all filters of a kernel: a column of the patch matrix. Columns
that are 0 in all filters need not be made (`jprune.forms.Thin`, `jprune.forms.compact`), so cost
falls with their number. They go in one of three ways: "gradual" pulls ever more of the weakest
columns down, and spares those above theta; what falls to epsilon stays 0 for good. "group" is plain
group lasso on all columns. "fixed" takes a pattern as it is, such as a cross. Then the zeros are
masks, and fine-tuning is *frozen*. While the penalty acts, masks meet gradients *prox*: there is no
mask, the step makes zeros (of "gradual" for good; of "group" until the gradient brings them back).

Differences. The authors' code has the thin inference and fine-tuning under fixed zeros, read off
the first filter, and no regulariser; here a column is 0 if all filters are. They take subgradients;
here the proximal step is the default. Lambda, theta and epsilon are not in the paper: theta is the
norm of the next column that stays, lambda what has the time to act. Fractions of columns (tau) are
the same in all kernels, or `keep`. Grouped and depthwise kernels have no columns here and stay.

References:
    Lebedev, Lempitsky, Fast ConvNets using group-wise brain damage, 2016, arXiv 1506.02515 [15].
"""

import dataclasses
from collections.abc import Sequence

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.blocks.kinds import as_words
from jprune.stages.frame import framed
from jprune.stages.train import Train
from jprune.stages.truncated_lasso import Columns, PruneColumns, ReadOffColumns, ShrinkWeakest
from jprune.train.numbers import Numbers

MODES = ("gradual", "group", "fixed")


def group_brain_damage(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    mode: str = "gradual",
    strength: Numbers | None = None,
    names: str | Sequence[str] | None = None,
    keep: Numbers | None = None,
    pattern: str = "cross",
    how: str = "prox",
    epsilon: float = 1e-4,
    ramp: float = 0.5,
    every: int | None = None,
    stop: float = 0.6,
    correct: bool = True,
) -> Recipe:
    """Columns of kernels brought to 0, then fine-tuning under their masks.

    Args:
        budget: what may be kept. Masks are of weights: `multiple_of` and floors of parts of a group
            say nothing, and a floor of its whole size leaves the kernels that make a group whole.
        train: training of the dense net; None where it is trained already.
        finetune: the training under the penalty and the one after it.
        mode: "gradual", "group" or "fixed".
        strength: lambda: of all kernels, of each in execution order, or by name. None: what would
            bring the columns that go to 0 if the loss did not hold them: in half of the steps
            behind the ramp, or with "group" in all steps. With "fixed" there is none.
        names: paths of the kernels that take part; None: all convolutions and dense layers but
            those that make the outputs. (On the command line with "+" between.)
        keep: tau, the fraction of columns kept: of all kernels, of each, or by name, which must
            meet the budget; None: the same fraction of all that meets it.
        pattern: with "fixed": "cross" (the middle lines of a window, filled up or cut by the norm),
            "position" (the same positions for every input) or "norm" (the largest columns).
        how: "prox", or "subgradient", the paper's, by which a column swings about 0.
        epsilon: the norm at which a targeted column is 0 for good, with "gradual"; with "group",
            weights below it become 0 after every subgradient step.
        ramp: with "gradual", the fraction of its steps in which all that is to go comes to be
            targeted.
        every: with "gradual", steps from one ranking of the columns to the next; None: 20 rankings.
        stop: fraction of the fine-tuning epochs under the penalty.
        correct: where too few columns are 0, cut those too of which least is left. False is an
            error that says what was reached.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, a number out of range, or an option of another mode.

    Example:
        >>> recipe = group_brain_damage(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('shrink', None), ('prune', None), ('before_finetune', None), ('finetune', 4.0)]
    """
    if mode not in MODES or not 0 < stop < 1:
        raise errors.ArgumentError(
            f"group_brain_damage(mode={mode!r}, stop={stop}); mode is one of {', '.join(MODES)}, "
            "and stop in (0, 1)."
        )
    for option, set_, modes in (
        ("strength", strength is not None, ("gradual", "group")),
        ("pattern", pattern != "cross", ("fixed",)),
        ("how", how != "prox", ("gradual", "group")),
        ("epsilon", epsilon != 1e-4, ("gradual", "group")),
        ("ramp", ramp != 0.5, ("gradual",)),
        ("every", every is not None, ("gradual",)),
        ("stop", stop != 0.6, ("gradual", "group")),
        ("correct", not correct, ("gradual", "group")),
    ):
        if set_ and mode not in modes:
            raise errors.ArgumentError(
                f"group_brain_damage(mode={mode!r}) does not look at {option}. Write mode="
                f"{modes[0]!r}, or leave it out."
            )
    wanted = None if names is None else as_words(names)
    if mode == "fixed":
        return framed(train, PruneColumns(budget, pattern, keep, wanted), finetune=finetune)
    during = dataclasses.replace(finetune, epochs=stop * finetune.epochs)
    columns = Columns(budget, "column", keep, wanted)
    slope = ramp if mode == "gradual" else None
    return framed(
        train,
        ShrinkWeakest(during, columns, strength, slope, every, how, epsilon),
        ReadOffColumns(columns, correct),
        finetune=dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs),
    )


METHODS = {"group_brain_damage": group_brain_damage}
