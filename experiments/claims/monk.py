"""E2's problems and nets: XOR and the MONK's, nets of tanh units at a minimum of their loss.

Targets are -1 and 1, and the loss has weight decay; nets are trained by Levenberg and Marquardt,
and lose one weight after the other (`curve`).
"""

from statistics import fmean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import optimize

from experiments.claims.statements import Value, of_seed
from experiments.rows import Row
from jprune import criteria, run_criterion
from jprune.base import Batch, Masks, Variables
from jprune.curvature import gauss_newton, mean_loss
from jprune.masks import apply_masks
from jprune.reconstruct.obs import obs

HIDDEN = {"xor": 2, "monk1": 3, "monk2": 2, "monk3": 2}
"""{problem: hidden units}."""
VALUES = (3, 3, 2, 3, 4, 2)
"""Of the six attributes of a MONK."""
EXAMPLES = {"monk1": 124, "monk2": 169, "monk3": 122}
ATTEMPTS = 100
ERROR = 0.05
"""Fraction of the third problem's labels that are wrong, and that its nets may get wrong."""


def fn(variables: Variables, x: jax.Array) -> jax.Array:
    """[batch, inputs] -> [batch, 1]."""
    hidden = jnp.tanh(x @ variables["hidden"]["kernel"] + variables["hidden"]["bias"])
    return jnp.tanh(hidden @ variables["out"]["kernel"] + variables["out"]["bias"])


def loss(out: jax.Array, batch: Batch) -> jax.Array:
    """The paper's error, ||t - o||^2 / 2."""
    return 0.5 * ((batch["label"] - out) ** 2).sum(axis=1)


def error(variables: Variables, batch: Batch) -> float:
    """Fraction of the examples on the wrong side."""
    return float((fn(variables, batch["image"]) * batch["label"] <= 0).mean())


def examples(problem: str, rng: np.random.Generator) -> Batch:
    """The training set of a problem, drawn from its rule; 5 % of the third's labels are wrong."""
    if problem == "xor":
        x = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
        return {"image": jnp.asarray(x), "label": jnp.asarray(-x[:, :1] * x[:, 1:])}
    every = np.stack(np.meshgrid(*map(np.arange, VALUES), indexing="ij"), axis=-1).reshape(-1, 6)
    a = every[rng.permutation(len(every))[: EXAMPLES[problem]]] + 1
    right = {
        "monk1": (a[:, 0] == a[:, 1]) | (a[:, 4] == 1),
        "monk2": (a == 1).sum(axis=1) == 2,
        "monk3": ((a[:, 4] == 3) & (a[:, 3] == 1)) | ((a[:, 4] != 4) & (a[:, 1] != 3)),
    }[problem]
    if problem == "monk3":
        right = right ^ (rng.permutation(len(right)) < round(ERROR * len(right)))
    x = np.concatenate([np.eye(n)[a[:, place] - 1] for place, n in enumerate(VALUES)], axis=1)
    return {"image": jnp.asarray(x), "label": jnp.asarray(np.where(right, 1.0, -1.0)[:, None])}


def trained(problem: str, batch: Batch, decay: float, rng: np.random.Generator) -> Variables:
    """A net at a minimum of loss and penalty, right about the training set.

    For the third problem, whose labels are wrong in places: right about 95 % of it.

    Raises:
        RuntimeError: no net learned the problem in `ATTEMPTS` attempts.
    """
    inputs, hidden = batch["image"].shape[1], HIDDEN[problem]
    like = {
        "hidden": {"bias": jnp.zeros(hidden), "kernel": jnp.zeros((inputs, hidden))},
        "out": {"bias": jnp.zeros(1), "kernel": jnp.zeros((hidden, 1))},
    }
    flat, back = ravel_pytree(like)
    root = np.sqrt(decay)

    @jax.jit
    def residuals(w: jax.Array) -> jax.Array:
        wrong = (fn(back(w), batch["image"]) - batch["label"])[:, 0] / np.sqrt(len(batch["label"]))
        return jnp.concatenate([wrong, root * w])

    slope = jax.jit(jax.jacobian(residuals))
    minimum: Any = optimize.least_squares
    wanted = ERROR if problem == "monk3" else 0.0
    for _ in range(ATTEMPTS):
        start = rng.normal(size=flat.size)
        reached = minimum(
            lambda w: np.asarray(residuals(w)), start, lambda w: np.asarray(slope(w)), method="lm"
        )
        variables = back(jnp.asarray(reached.x))
        if error(variables, batch) <= wanted:
            return variables
    raise RuntimeError(f"no net learned {problem} in {ATTEMPTS} attempts.")


def without_one(
    method: str, variables: Variables, masks: Masks, batch: Batch, decay: float
) -> tuple[Variables, Masks]:
    """One more weight deleted."""
    if method == "obs":
        done = obs(fn, loss, variables, [batch], 1, candidates=masks, masks=masks, alpha=decay)
        return done.variables, done.masks
    if method == "obd":
        criterion = criteria.obd(fn, loss, gauss_newton(), weight_decay=decay)
    else:
        criterion = criteria.magnitude()
    scores = run_criterion(criteria.masked(criterion, masks), variables, [batch])
    flat, back = ravel_pytree(scores)
    alive = np.asarray(flat) > -np.inf
    alive[np.argmin(np.where(alive, flat, np.inf))] = False
    masks = jax.tree.map(lambda score: score > 0, back(jnp.asarray(alive, flat.dtype)))
    return apply_masks(variables, masks), masks


def curve(method: str, variables: Variables, batch: Batch, decay: float) -> tuple[int, list[float]]:
    """How many weights go before the training error rises, and the losses until all are gone."""
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), variables)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    before, removed, losses = error(variables, batch), None, []
    for number in range(count):
        losses.append(float(mean_loss(fn, loss, variables, batch)))
        if removed is None and error(variables, batch) > before:
            removed = number - 1
        variables, masks = without_one(method, variables, masks, batch, decay)
    return count - 1 if removed is None else removed, losses


def ahead(better: str, worse: str, fraction: float) -> Value:
    """Percentage of the MONK nets whose loss is no higher, a fraction being deleted."""

    def wins(rows: list[Row]) -> float:
        of = {(row["problem"], row["arm"]): row["losses"] for row in rows}
        pairs = [pair for name in EXAMPLES for pair in zip(of[name, better], of[name, worse])]
        places = [round(fraction * len(one)) for one, _ in pairs]
        return 100 * fmean(a[place] <= b[place] for (a, b), place in zip(pairs, places))

    return of_seed(wins, problem=tuple(EXAMPLES))
