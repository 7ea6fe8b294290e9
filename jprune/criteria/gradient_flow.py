"""Gradient flow: what the removal of a weight does to the squared norm of the gradient.

References:
    Wang, Zhang, Grosse, Picking winning tickets before training by preserving gradient flow, 2020,
    arXiv 2002.07376.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Batch, Criterion
from jprune.criteria._average import add, start, value_of
from jprune.curvature import parameters_of, weights_of
from jprune.curvature.products import gradient_of


def gradient_flow(
    fn: Callable[..., Any],
    loss: Callable[..., Any],
    temperature: float = 200.0,
    parts: int = 1,
    has_aux: bool = False,
) -> Criterion:
    """Scores w (H g) of parameters, over the size of their sum: what stays has the highest.

    To first order, removing w changes g . g, by which a small step lowers the loss, by
    -2 w (H g). The paper has S = -w (H g), of which the highest are removed; here the sign is the
    other one. Signs count: a weight whose removal lets the gradient grow goes first.

    Args:
        fn: `fn(variables, batch["image"])`.
        loss: `loss(out, batch) -> [batch]`.
        temperature: T: the loss is that of outputs / T. 200 in the authors' code for logits, which
            keeps the softmax of an untrained net even; 1 for a loss of other outputs.
        parts: a batch is cut into so many, one behind the other; g and H are means over them. That
            matters for norms in training mode, whose statistics are those of a part.
        has_aux: `fn` returns `(out, statistics)`: a net in training mode.

    Returns:
        A criterion; scores are a tree like the variables, None for statistics. With several batches
        it is the mean of w (H g), H and g of the same batch.

    Raises:
        ArgumentError: a temperature that is not above 0, or less than one part; when it sees a
            batch: fewer examples than parts.

    Example:
        >>> import jprune
        >>> hessian = jnp.array([[2.0, 1.0], [1.0, 3.0]])
        >>> fn = lambda v, x: v["w"] * x
        >>> loss = lambda out, batch: 0.5 * ((out @ hessian) * out).sum(axis=1)
        >>> batch = {"image": jnp.ones((1, 2))}
        >>> criterion = gradient_flow(fn, loss, temperature=1.0)
        >>> jprune.run_criterion(criterion, {"w": jnp.array([1.0, -1.0])}, [batch])["w"]
        Array([0., 1.], dtype=float32)
    """
    if not temperature > 0 or parts < 1:
        raise errors.ArgumentError(
            f"gradient_flow(temperature={temperature}, parts={parts}); the temperature is above 0 "
            "(200 for logits, 1 for other outputs), parts are 1 or more."
        )
    run = (lambda variables, x: fn(variables, x)[0]) if has_aux else fn
    # The loss of the softmax of outputs / T
    cooled = lambda out, batch: loss(jax.tree.map(lambda o: o / temperature, out), batch)

    def init(variables: Any) -> Any:
        return start(parameters_of(variables).values)

    @jax.jit
    def update(state: Any, variables: Any, batch: Batch) -> Any:
        parameters = parameters_of(variables)
        pieces = _cut(batch, parts)
        counts = [weights_of(piece).sum() for piece in pieces]
        slopes = [gradient_of(run, cooled, parameters, piece) for piece in pieces]

        def gradient(values: list[jax.Array]) -> list[jax.Array]:
            each = [slope(values) for slope in slopes]
            return jax.tree.map(lambda *g: sum(n * one for n, one in zip(counts, g)), *each)

        total = sum(counts)
        g = [part / total for part in gradient(parameters.values)]
        # H g = d/dt grad E(w + t g) at t = 0; g itself is held constant.
        products = jax.jvp(gradient, (parameters.values,), (g,))[1]
        # -S = w (H g)
        kept = [w * product / total for w, product in zip(parameters.values, products)]
        return add(state, kept, None, 1, total)

    def score(state: Any, variables: Any) -> Any:
        return parameters_of(variables).tree(_scaled(value_of(state, None)))

    return Criterion(init, update, score)


def _cut(batch: Batch, parts: int) -> list[Batch]:
    """The batch in nearly equal parts, the last ones larger."""
    examples = len(weights_of(batch))
    if examples < parts:
        raise errors.ArgumentError(
            f"a batch of {examples} examples for {parts} parts; write a larger batch_size, or "
            "parts=1."
        )
    bounds = [examples * number // parts for number in range(parts + 1)]
    return [
        jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], dict(batch))
        for a, b in itertools.pairwise(bounds)
    ]


@jax.jit
def _scaled(scores: list[jax.Array]) -> list[jax.Array]:
    total = sum((part.sum() for part in scores), jnp.zeros(()))
    # As in the authors' code: over |sum of S| + 1e-10; the order stays.
    return [part / (jnp.abs(total) + 1e-10) for part in scores]
