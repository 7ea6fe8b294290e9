"""The lottery ticket: prune the smallest weights, go back to where training began, train again.

Every round removes a fraction of the weights that are left, puts the others back to their values at
the start (or after the first steps), and trains them as the dense net was trained. `control` gives
the nets that a ticket is compared with.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Frankle, Carbin, The lottery ticket hypothesis: finding sparse, trainable neural networks, 2019,
    arXiv 1803.03635 [9]. Going back to a later step: Frankle, Dziugaite, Roy, Carbin, Linear mode
    connectivity and the lottery ticket hypothesis, 2020, arXiv 1912.05671.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import Evaluate, Rewind, Save, opening
from jprune.stages.reinitialise import Reinitialise, ShuffleMasks
from jprune.stages.rounds import rounds_for
from jprune.stages.tickets import PruneRound
from jprune.stages.train import Train

PER_ROUND = 0.8
CONTROLS = ("ticket", "reinit", "random_mask")


def lottery_ticket(
    budget: Budget,
    train: Train | None,
    *,
    rounds: int | None = None,
    scope: str = "layer",
    output_rate: float = 0.5,
    convolution_rate: float = 1.0,
    one_more: bool = False,
    rewind_to: int = 0,
    control: str = "ticket",
) -> Recipe:
    """Iterative magnitude pruning with rewinding.

    Args:
        budget: what is kept after the last round; of weights (a density is that of all kernels).
        train: training of the dense net and of every round.
        rounds: number of rounds of pruning; None takes as many as keep 0.8 of the weights each
            time. 1 is the paper's one-shot pruning.
        scope: "layer" (every layer loses the same fraction) or "global" (all layers but the last
            compete; the paper's choice for deep nets).
        output_rate: fraction that the last layer loses, over that of the others; 0 leaves it whole.
        convolution_rate: fraction that convolutions lose, over that of dense layers; 0 leaves them
            whole. The paper's Conv-2 and Conv-4 have 0.5; with scope "global", layers of one rate
            compete.
        one_more: a round removes round(p n) + 1 of n weights, as the authors' code does, and not
            round(p n), as the paper says.
        rewind_to: training step whose weights the survivors go back to; 0: the initial ones. The
            optimizer begins anew there, in the dense net as well.
        control: "ticket"; "reinit" (the last round trains the ticket's masks from new initial
            values) or "random_mask" (its masks are shuffled within every layer).

    Returns:
        The recipe; it prunes weights, not units.

    Raises:
        ArgumentError: an unknown scope or control, a number out of range, or a net that is read
            and not trained here: it has no initial values to go back to.

    Example:
        >>> recipe = lottery_ticket(Budget(density=0.5), Train(10, 0.1))
        >>> [stage.name for stage in recipe if stage.name in ("prune", "train", "finetune")]
        ['train', 'prune', 'train', 'prune', 'train', 'prune', 'train', 'prune', 'finetune']
    """
    if train is None:
        raise errors.ArgumentError(
            "lottery_ticket goes back to where training began, and this net is read and not "
            "trained here. Leave out --weights."
        )
    if control not in CONTROLS or scope not in ("layer", "global"):
        raise errors.ArgumentError(
            f"lottery_ticket(scope={scope!r}, control={control!r}); scope is layer or global, "
            f"control one of {', '.join(CONTROLS)}."
        )
    if rounds is None:
        rounds = rounds_for(budget, PER_ROUND)
    errors.check_numbers(
        "lottery_ticket",
        ("rounds", rounds, rounds >= 1, "1 or more"),
        ("output_rate", output_rate, 0 <= output_rate <= 1, "a number in [0, 1]"),
        ("convolution_rate", convolution_rate, 0 <= convolution_rate <= 1, "a number in [0, 1]"),
        ("rewind_to", rewind_to, rewind_to >= 0, "0 or more"),
    )
    early = () if rewind_to == 0 else (dataclasses.replace(train, stop=rewind_to, name="early"),)
    # The rest of the schedule: ticket and dense net take the same steps from there.
    late = dataclasses.replace(train, begin=rewind_to)
    # Each round knows how many are to come: it takes the p that meets the budget after all of them.
    prunings = [
        PruneRound(budget, to_go, scope == "global", output_rate, convolution_rate, one_more)
        for to_go in range(rounds, 0, -1)
    ]
    again = [stage for prune in prunings[:-1] for stage in (prune, Rewind("rewind"), late)]
    return (
        *early,
        Save("rewind"),
        *opening(late),
        *again,
        prunings[-1],
        *{"ticket": (), "reinit": (), "random_mask": (ShuffleMasks(),)}[control],
        *((Reinitialise(),) if control == "reinit" else (Rewind("rewind"),)),
        Evaluate("validation", name="before_finetune"),
        dataclasses.replace(late, name="finetune"),
    )


METHODS = {"lottery_ticket": lottery_ticket}
