"""Simulated annealing of real numbers: worse candidates are taken too, less and less often.

References:
    Liu, Ma, Xu, Wang, Tang, Ye, AutoCompress: an automatic DNN structured pruning framework for
    ultra-high compression rates, 2020, arXiv 1907.03141 [37]; redraws as in Microsoft's NNI.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Searcher

TRIES = 100
"""Draws of one candidate, at most; after every `NARROWER` of them they are drawn half as far."""
NARROWER = 10


class AnnealingState(NamedTuple):
    """Where the walk stands, and the best of all that it has tried.

    Attributes:
        seed: [k] bits of the key.
        tried: candidates that have a score.
        top: [genes]: the best of them; of equal ones the first.
        best: its score; -inf where there is none.
        place: [genes]: the candidate that was accepted last.
        level: its score; -inf where there is none.
        cooled: how often the temperature has fallen.
        refused: candidates since then.
    """

    seed: jax.Array
    tried: jax.Array
    top: jax.Array
    best: jax.Array
    place: jax.Array
    level: jax.Array
    cooled: jax.Array
    refused: jax.Array


def annealing(
    genes: int,
    arrange: Callable[[np.ndarray], np.ndarray | None],
    evaluations: int = 150,
    hot: float = 0.05,
    cold: float = 0.002,
    cool: float = 0.9,
    size: float | None = 0.35,
    redraws: int = 10,
    from_zero: bool = False,
) -> Searcher:
    """One candidate at a time, near the one that was accepted last; the best of all is the result.

    The temperature falls with every candidate that is accepted, and after so many that were not.
    At the coldest the walk goes on until all evaluations are used.

    Args:
        genes: numbers in a candidate, 0 or more each.
        arrange: makes a candidate of numbers, or None; asked again with other numbers then.
        evaluations: candidates in all.
        hot: the first temperature, on the scale of differences of scores.
        cold: the walk cools no further than just above this.
        cool: factor of the temperature.
        size: perturbations are uniform in +-size at the first temperature, and fall with it; None:
            every candidate is drawn anew, which is random search.
        redraws: candidates refused at a temperature before it falls all the same.
        from_zero: the first candidate is 0 everywhere, instead of uniform in [0, 1).

    Raises:
        ArgumentError: a number out of range.
        BudgetError: no draw can be arranged; from `ask`.

    Example:
        >>> halves = lambda rates: 1.5 * rates / rates.sum()  # half of each, in the mean
        >>> searcher = annealing(3, halves, evaluations=150)
        >>> state = searcher.init(jax.random.key(0))
        >>> while len(rates := searcher.ask(state)):
        ...     state = searcher.tell(state, rates, -((rates - [0.2, 0.5, 0.8]) ** 2).sum(axis=1))
        >>> bool(np.abs(searcher.best(state)[0] - [0.2, 0.5, 0.8]).max() < 0.1)
        True
    """
    errors.check_numbers(
        "annealing",
        ("genes", genes, genes >= 1, "1 or more"),
        ("evaluations", evaluations, evaluations >= 1, "1 or more"),
        ("hot", hot, hot > 0, "above 0"),
        ("cold", cold, 0 < cold < hot, "above 0 and below hot"),
        ("cool", cool, 0 < cool < 1, "in (0, 1)"),
        ("size", size, size is None or size > 0, "above 0"),
        ("redraws", redraws, redraws >= 1, "1 or more"),
    )
    heats = temperatures(hot, cold, cool)
    heat = lambda state: heats[min(int(state.cooled), len(heats) - 1)]

    def init(key: jax.Array) -> AnnealingState:
        seed, zero = jnp.ravel(jax.random.key_data(key)), jnp.zeros((), jnp.int32)
        start = (jnp.zeros(genes), jnp.array(-jnp.inf))
        return AnnealingState(seed, zero, *start, *start, zero, zero)

    def ask(state: AnnealingState) -> np.ndarray:
        if int(state.tried) >= evaluations:
            return np.zeros((0, genes))
        rng, first = _draws(state), not np.isfinite(float(state.level))
        if from_zero and int(state.tried) == 0:
            return np.zeros((1, genes))
        for number in range(TRIES):
            near = 0.5 ** (number // NARROWER)
            if first or size is None:
                numbers = 0.5 + near * (rng.random(genes) - 0.5)
            else:
                # s' = max(0, s + U(-mu_T, mu_T)), mu_T = mu_0 T / T_0
                reach = near * size * heat(state) / hot
                numbers = np.asarray(state.place, float) + rng.uniform(-reach, reach, genes)
            if (candidate := arrange(np.maximum(numbers, 0))) is not None:
                return candidate[None]
        raise errors.BudgetError(
            f"none of {TRIES} draws, the last nearly the same for all, meets the constraint of the "
            "search. Ask for more, or prune in more rounds."
        )

    def tell(state: AnnealingState, candidates: np.ndarray, scores: np.ndarray) -> AnnealingState:
        if not len(candidates):
            return state
        rates, score = jnp.asarray(candidates[0], jnp.float32), np.float32(scores[0])
        score = float(score) if np.isfinite(score) else -np.inf
        chance = acceptance(float(state.level), score, heat(state))
        # A draw of its own: that of `ask` is another sequence.
        taken = bool(_draws(state).spawn(1)[0].random() < chance)
        refused = 0 if taken else int(state.refused) + 1
        falls = taken or refused >= redraws
        better = score > float(state.best)
        return AnnealingState(
            seed=state.seed,
            tried=state.tried + 1,
            top=rates if better else state.top,
            best=jnp.asarray(score if better else state.best, jnp.float32),
            place=rates if taken else state.place,
            level=jnp.asarray(score if taken else state.level, jnp.float32),
            cooled=state.cooled + int(falls),
            refused=jnp.asarray(0 if falls else refused, jnp.int32),
        )

    def best(state: AnnealingState) -> tuple[np.ndarray, float]:
        return np.asarray(state.top), float(state.best)

    return Searcher(init, ask, tell, best)


def _draws(state: AnnealingState) -> np.random.Generator:
    """Of (seed, number of the candidate) alone, so that a resumed search goes on alike."""
    return np.random.default_rng([*np.asarray(state.seed).tolist(), int(state.tried)])


def acceptance(before: float, after: float, temperature: float) -> float:
    """The probability that a candidate is accepted: 1 if better, else exp(-(A - A') / T).

    Example:
        >>> acceptance(0.5, 0.6, 0.01), round(acceptance(0.5, 0.48, 0.01), 6)
        (1.0, 0.135335)
    """
    if after == -np.inf:
        return 0.0
    return 1.0 if after > before else math.exp(-(before - after) / temperature)


def temperatures(hot: float, cold: float, cool: float) -> list[float]:
    """The temperatures T_0, cool T_0, ... above the coldest.

    Example:
        >>> len(temperatures(100, 20, 0.9)), round(temperatures(100, 20, 0.9)[-1], 3)
        (16, 20.589)
    """
    heats = [hot]
    while heats[-1] * cool > cold:
        heats.append(heats[-1] * cool)
    return heats
