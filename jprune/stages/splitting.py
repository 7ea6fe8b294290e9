"""Training with a copy of the weights and duals: what its stages share, and options of ADMM."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jprune import errors
from jprune.allocate import ALLOCATORS
from jprune.base import Batch, Learner, Pruned, Task
from jprune.blocks import Blocks
from jprune.train.net import Net
from jprune.train.step import TrainState

OPTIMIZERS = ("adam", "sgd")

LEAST = 100
"""The fewest steps of a round: in fewer, duals outrun the weights, and supports flip."""


def steps_of_round(steps: int, rounds: int | None, most: int, least: int = LEAST) -> int:
    """Steps in a round.

    Args:
        steps: of all rounds.
        rounds: how many; None: the most there are, or as many as are long enough.
        most: rounds of the authors.
        least: steps that are long enough.

    Raises:
        ArgumentError: too few steps for the rounds.
    """
    # Rounds of equal length: a dual that is refreshed early is not yet what its W-step says.
    wanted = max(1, min(most, steps // least)) if rounds is None else rounds
    every = steps // wanted
    if not every or steps // every != wanted:
        raise errors.ArgumentError(
            f"ADMM with rounds={wanted} in {steps} steps: they do not make so many rounds of "
            f"equal length, and a round needs some {least} for the weights to follow. Write "
            "fewer rounds or more epochs."
        )
    return every


def pulled(
    learner: Learner,
    task: Task,
    pruned: Pruned,
    families: Sequence[Blocks],
    extra: Callable[[Any], dict[str, Any]],
) -> Learner:
    """A learner whose optimizer is `admm`, with residuals among its metrics.

    Args:
        learner: of `train.plain`.
        task: of the net.
        pruned: where training begins.
        families: the groups that are projected.
        extra: of the state of `admm`: what goes to the next stage, beside `stopped`.

    Returns:
        A learner that ends with the net of the last good round.

    Raises:
        ArgumentError: weights that are not finite.
    """
    counted = frozenset[str]().union(*(each.counted for each in families))
    # A NaN would win every comparison of norms in the projection, or none.
    Net(task).refuse_nan(pruned.variables, tuple(sorted(counted)))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = learner.step(state, batch)
        # Primal ||W - Z|| / ||W|| and dual residual ||Z - Z
        # before|| / ||W||: both fall where it converges.
        residuals = {name: getattr(state.opt_state, name) for name in ("primal", "change")}
        return state, {**metrics, **residuals}

    def finish(state: TrainState) -> Pruned:
        stopped = int(state.opt_state.stopped)
        # Duals that diverged have pulled W away: go back to the last round that was good.
        params = state.opt_state.good if stopped else state.params
        handed_on = {**extra(state.opt_state), "stopped": stopped}
        return Pruned(task.merge(params, state.rest), pruned.masks, handed_on, pruned.saved)

    return learner._replace(step=step, finish=finish)


def refuse_diverged(stopped: int) -> None:
    """Refuses a net whose duals diverged in this round; 0: they have not.

    Raises:
        DivergenceError: the net that came is that of the last good round.
    """
    if stopped:
        raise errors.DivergenceError(
            f"ADMM stopped: its duals diverged in round {stopped}. The net after round "
            f"{stopped - 1}, the last good one, is kept: it is what the stage before this one "
            "has left. Write a smaller rho where the loss grew, a larger one or growth=1.1 "
            "where the rounds cycled, or a larger limit."
        )


def check_words(
    groups: str | Sequence[str], kinds: Sequence[str], allocator: str, optimizer: str
) -> None:
    """Refuses filters with channels, and allocators and optimizers that there are not.

    Raises:
        ArgumentError: the message says what to write instead.
    """
    if {"filter", "channel"} <= set(kinds):
        raise errors.ArgumentError(
            f"groups={groups!r}: a unit would have to be kept twice, as a filter and as a channel, "
            "and the two supports differ. Write one of them."
        )
    if allocator not in ALLOCATORS or optimizer not in OPTIMIZERS:
        raise errors.ArgumentError(
            f"struct_admm(allocator={allocator!r}, optimizer={optimizer!r}); write one of "
            f"{', '.join(ALLOCATORS)}, and one of {', '.join(OPTIMIZERS)}."
        )


def check_numbers(*options: tuple[str, float | None, bool, str]) -> None:
    """Refuses options out of range.

    Args:
        *options: (option, value, whether it is right, what is right) of each.

    Raises:
        ArgumentError: one is not right.
    """
    for name, value, right, expected in options:
        if not right:
            raise errors.ArgumentError(f"struct_admm({name}={value}); {name} is {expected}.")
