"""Schedules: optax schedules from a step to the density (the fraction kept) at that step."""

from collections.abc import Callable

import jax.numpy as jnp

from jprune import errors
from jprune.base import Schedule


def _check_density(density: float, name: str = "density") -> None:
    if not 0 < density <= 1:
        raise errors.ArgumentError(
            f"{name}={density} is outside (0, 1]: it is the fraction kept. To remove 90 %, write "
            f"{name}=0.1."
        )


def one_shot(density: float, at: int = 0) -> Schedule:
    """Prunes everything at once: density 1 before step `at`, `density` from then on.

    Raises:
        ArgumentError: a density outside (0, 1] or a negative step.

    Example:
        >>> [float(one_shot(0.25, at=2)(step)) for step in (0, 1, 2, 9)]
        [1.0, 1.0, 0.25, 0.25]
    """
    _check_density(density)
    if at < 0:
        raise errors.ArgumentError(f"one_shot(at={at}): steps count from 0.")
    # `where` and not `if`: the step may be traced.
    return lambda step: jnp.where(jnp.asarray(step) < at, 1.0, density)


def iterative(density: float, rounds: int, every: int) -> Schedule:
    """Prunes the same fraction of the remaining entries in every round.

    The density is density^((r + 1) / rounds) in round r.

    Args:
        density: kept after the last round.
        rounds: number of rounds.
        every: steps from one round to the next; round 0 is at step 0.

    Raises:
        ArgumentError: a density outside (0, 1], or fewer than one round or step.

    References:
        Frankle and Carbin, The Lottery Ticket Hypothesis, 2019, arXiv 1803.03635.

    Example:
        >>> [round(float(iterative(0.25, rounds=2, every=10)(step)), 3) for step in (0, 9, 10, 99)]
        [0.5, 0.5, 0.25, 0.25]
    """
    _check_density(density)
    if rounds < 1 or every < 1:
        raise errors.ArgumentError(
            f"iterative(rounds={rounds}, every={every}): both are at least 1."
        )

    def schedule(step):
        # Each round keeps q^(1 / n) of what the last one kept, q^(r / n) after r of n rounds. The
        # last value is returned as given: the power may miss it by rounding.
        done = jnp.minimum(jnp.asarray(step) // every + 1, rounds)
        return jnp.where(done == rounds, density, density ** (done / rounds))

    return schedule


def cubic(density: float, begin: int, end: int, initial: float = 1.0) -> Schedule:
    """Prunes fast at first and ever more slowly towards the end.

    At t = (step - begin) / (end - begin), cut to [0, 1], the density is
    `density + (initial - density) (1 - t)^3`. (The paper's sparsity s is 1 minus it.)

    Args:
        density: kept from step `end` on.
        begin: step up to which `initial` is kept.
        end: last step of the ramp.
        initial: density at the beginning.

    Raises:
        ArgumentError: a density outside (0, 1], or `end` not after `begin`.

    References:
        Zhu and Gupta, To prune, or not to prune, 2017, arXiv 1710.01878.

    Example:
        >>> [round(float(cubic(0.2, 0, 10)(step)), 3) for step in (0, 5, 10, 11)]
        [1.0, 0.3, 0.2, 0.2]
    """
    _check_density(density)
    _check_density(initial, "initial")
    if end <= begin:
        raise errors.ArgumentError(f"cubic(begin={begin}, end={end}): the ramp must have a length.")

    def schedule(step):
        # s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Delta t))^3, with d = 1 - s
        time = jnp.clip((jnp.asarray(step) - begin) / (end - begin), 0.0, 1.0)
        ramp = density + (initial - density) * (1 - time) ** 3
        return jnp.where(time <= 0, initial, jnp.where(time >= 1, density, ramp))

    return schedule


def asymptotic(density: float, end: int) -> Schedule:
    """Prunes three quarters in the first eighth of the steps, and the rest ever more slowly.

    The fraction that is pruned is a exp(-k t) + b, through (0, 0), (end / 8, 3/4 of the whole) and
    (end, all of it).

    Args:
        density: kept from step `end` on.
        end: last step of the ramp.

    Raises:
        ArgumentError: a density outside (0, 1], or no step.

    References:
        He, Dong, Kang, Fu, Yan, Yang, Asymptotic soft filter pruning for deep convolutional neural
        networks, 2020, arXiv 1808.07471.

    Example:
        >>> [round(float(asymptotic(0.6, 80)(step)), 4) for step in (0, 10, 40, 80, 90)]
        [1.0, 0.7, 0.6016, 0.6, 0.6]
    """
    _check_density(density)
    if end < 1:
        raise errors.ArgumentError(f"asymptotic(end={end}): the ramp must have a length.")
    # With x = exp(-k / 8): (1 - x) / (1 - x^8) = 3/4. The rest falls by x in every eighth.
    rest = 0.0
    for _ in range(60):
        rest = 1 - 0.75 * (1 - rest**8)  # a contraction near its root, 0.25001

    def schedule(step):
        time = jnp.clip(jnp.asarray(step) / end, 0.0, 1.0)
        # P_t = P (1 - x^(8 t)) / (1 - x^8)
        pruned = (1 - density) * (1 - rest ** (8 * time)) / (1 - rest**8)
        return jnp.where(time >= 1, density, 1 - pruned)

    return schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "one_shot": one_shot,
    "iterative": iterative,
    "cubic": cubic,
}
