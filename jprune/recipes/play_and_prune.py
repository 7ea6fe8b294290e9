"""Play and prune: a tolerance of error is given, and how much goes follows from it.

A round presses on the smallest filters of every layer by an L1 penalty (U, a tenth of them), finds
for every layer by bisection the largest threshold on sum |w| below which filters cost nothing
(W_gamma), cuts below W_A, and trains what is left. A controller looks at validation images after
every step of the game: T = max(accuracy - (dense accuracy - tolerance), 0) is what is left of the
tolerance, W_A = delta_w T W_gamma and the penalty's strength T lambda. Both are 0 when it is used
up: pruning stops by itself.

Masks meet gradients *frozen*: what was cut is exactly 0 from then on, and never comes back.

The paper has no code, and its formulas and constants are read second-hand: the definitions above
are those of this project. Ours are also: the budget, below which nothing is cut (the paper prunes
as far as the tolerance goes; write a small one); a net that its training has not brought back
within the tolerance gives way to the last one that was, and cuts are half as deep from then on; a
strength that has the time to act. A filter is a unit over all producers of a residual stream.

References:
    Singh, Verma, Rai, Namboodiri, Play and prune: adaptive filter pruning for deep model
    compression, 2019, arXiv 1905.04446 [40].
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.tolerance import CutBelow, Game, Press, Watch
from jprune.stages.train import Train


def play_and_prune(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    tolerance: float = 0.01,
    fraction: float = 0.1,
    strength: float | None = None,
    gain: float | None = None,
    slack: float = 0.0,
    scales: bool = False,
    press: float = 0.5,
    rounds: int | None = None,
) -> Recipe:
    """Rounds of pressing, cutting and training, as long as the tolerance lasts.

    Args:
        budget: what is kept at least: no cut goes deeper than it takes to meet it. The tolerance
            may end the game before, and the net is then larger than the budget.
        train: training of the dense net; None where it is trained already.
        finetune: all training of the game, divided evenly among rounds.
        tolerance: eps: how far the accuracy on validation images may fall, as a fraction; of a task
            without accuracy, how far its loss may rise. It is kept in every run: where no cut was
            mended, the dense net comes back.
        fraction: alpha: of the filters of a layer that are pressed.
        strength: lambda of the penalty T lambda sum |w|. None: with the whole tolerance left, a
            candidate of mean size comes to 0 in one press if the loss does not hold it; a number is
            the same for all layers (5e-4, with T at most 0.01, takes long trainings).
        gain: delta_w; None: 1 / tolerance, so that W_A begins at W_gamma and never exceeds it.
        slack: of accuracy that the filters below W_gamma of one layer may cost together.
        scales: whether scales of norms belong to |w| of a filter. Behind a norm the size of a
            kernel does not matter, so the penalty alone changes no output before it is 0.
        press: fraction of a round's training that is under the penalty, before the cut.
        rounds: None: one for each epoch of the fine-tuning, 25 at most.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation, at
        the end of the game).

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = play_and_prune(Budget(macs=0.5), None, Train(2, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe][2:7]
        ['baseline', 'press', 'cut', 'recover', 'watch']
    """
    errors.check_numbers(
        "play_and_prune",
        ("press", press, 0 < press < 1, "in (0, 1)"),
        ("rounds", rounds, rounds is None or rounds >= 1, "1 or more"),
    )
    game = Game(tolerance, fraction, strength, gain, slack, scales)
    count = max(1, min(25, round(finetune.epochs))) if rounds is None else rounds
    each = finetune.epochs / count
    # Constant: the penalty pulls alike in all of its steps. What follows comes to rest.
    during = dataclasses.replace(
        finetune, epochs=press * each, schedule="constant", warmup=0.0, name="press"
    )
    mending = dataclasses.replace(finetune, epochs=(1 - press) * each, name="recover")
    turns = [
        (
            Press(during, budget, game),
            CutBelow(budget, game),
            mending,
            Watch(game, last=number == count),
        )
        for number in range(1, count + 1)
    ]
    return framed(train, Watch(game, name="baseline"), *(stage for turn in turns for stage in turn))


METHODS = {"play_and_prune": play_and_prune}
