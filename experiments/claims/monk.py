"""E2's problems and nets: XOR and the MONK's, nets of tanh units at a minimum of their loss.

Targets are -1 and 1, and the loss has weight decay; nets are trained by Levenberg and Marquardt.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import optimize

from jprune.base import Batch, Variables

HIDDEN = {"xor": 2, "monk1": 3, "monk2": 2, "monk3": 2}
"""{problem: hidden units}."""
VALUES = (3, 3, 2, 3, 4, 2)
"""Of the six attributes of a MONK."""
EXAMPLES = {"monk1": 124, "monk2": 169, "monk3": 122}
ATTEMPTS = 100


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
        right = right ^ (rng.permutation(len(right)) < round(0.05 * len(right)))
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
    wanted = 0.05 if problem == "monk3" else 0.0
    for _ in range(ATTEMPTS):
        start = rng.normal(size=flat.size)
        reached = minimum(
            lambda w: np.asarray(residuals(w)), start, lambda w: np.asarray(slope(w)), method="lm"
        )
        variables = back(jnp.asarray(reached.x))
        if error(variables, batch) <= wanted:
            return variables
    raise RuntimeError(f"no net learned {problem} in {ATTEMPTS} attempts.")
