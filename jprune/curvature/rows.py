"""Rows whose outer products are the Gauss-Newton matrix or the Fisher information.

The rows r_i of a batch satisfy sum_i r_i r_i^T = sum_n w_n J_n^T H_n J_n (Gauss-Newton) or
sum_n w_n g_n g_n^T (Fisher); w_n are the shares of the examples in the mean, J_n the Jacobian of
the outputs, H_n the Hessian of the loss in the outputs, g_n the gradient of the loss.

Examples are computed one at a time: `vmap` over them would turn convolutions into grouped ones,
whose weight gradients are far slower.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jprune import errors
from jprune.base import Batch, Variables
from jprune.curvature.products import Function, losses_of, parameters_of, shares_of

HOW = ("gauss_newton", "fisher")
MAXIMUM_OUTPUTS = 2048
"""Numbers an example whose Hessian is decomposed, at most: a second for each example."""


def signs(key: jax.Array, like: jax.Array) -> jax.Array:
    """Random signs of an array's shape and type."""
    return jax.random.rademacher(key, like.shape).astype(like.dtype)


def check_labels(labels: str) -> None:
    """Refuses labels other than "data" and "model"."""
    if labels not in ("data", "model"):
        raise errors.ArgumentError(f"labels={labels!r}; write 'data' or 'model'.")


def with_drawn_labels(out: Any, batch: Batch, key: jax.Array) -> Batch:
    """The batch with labels drawn from the softmax of the outputs.

    Args:
        out: logits [batch, classes].
        batch: with a "label" [batch].
        key: of the draw.

    Raises:
        ArgumentError: the batch has no label, or the outputs are no logits.
    """
    if "label" not in batch or jnp.ndim(out) != jnp.ndim(batch["label"]) + 1:
        raise errors.ArgumentError(
            f"labels='model' draws batch['label'] from logits; the outputs have the shape "
            f"{jnp.shape(out)} and the batch has {', '.join(batch)}. Write gauss_newton."
        )
    drawn = jax.random.categorical(key, out)
    return {**batch, "label": drawn.astype(jnp.asarray(batch["label"]).dtype)}


def check_outputs(count: int) -> None:
    """Refuses nets with so many outputs that their Hessian in them is out of reach.

    Raises:
        ArgumentError: more than `MAXIMUM_OUTPUTS` numbers for each example.
    """
    if count > MAXIMUM_OUTPUTS:
        raise errors.ArgumentError(
            f"the net has {count:,} outputs for every example, and this curvature needs the "
            f"Hessian of the loss in them: {count:,} x {count:,} numbers an example, which take "
            f"seconds each to decompose ({MAXIMUM_OUTPUTS:,} outputs are the most). Take "
            "fisher(), which needs gradients alone, or hutchinson()."
        )


def softmax_factors(logits: jax.Array, batch: Batch) -> jax.Array:
    """Factors of the Hessians of the softmax cross entropy in the logits, without a decomposition.

    Args:
        logits: [batch, classes].
        batch: not read: the Hessian is the same for all labels.

    Returns:
        L [batch, classes, classes] with L L^T = diag(p) - p p^T, p the softmax of the logits.

    Example:
        >>> (factor,) = softmax_factors(jnp.zeros((1, 2)), {})
        >>> (factor @ factor.T).round(3).tolist()
        [[0.25, -0.25], [-0.25, 0.25]]
    """
    del batch
    p = jax.nn.softmax(logits)
    root = jnp.sqrt(p)
    # L = diag(sqrt p) - p sqrt(p)^T
    return root[:, :, None] * jnp.eye(p.shape[-1], dtype=p.dtype) - p[:, :, None] * root[:, None]


def output_factors(loss: Function, out: Any, batch: Batch) -> tuple[jax.Array, Callable[..., Any]]:
    """Factors L_n of the Hessians of the loss in the outputs: H_n = L_n L_n^T.

    Args:
        loss: `loss(out, batch) -> [batch]`; one that knows its factors brings them as
            `loss.output_factors(out, batch) -> [batch, outputs, outputs]`, as the cross entropy of
            `train.task` does with `softmax_factors`: a decomposition costs outputs^3 an example.
        out: the outputs.
        batch: the examples.

    Returns:
        L [batch, outputs, outputs], and a function that gives arrays [batch, outputs] the structure
        of `out`. Negative eigenvalues of H_n are set to 0.

    Raises:
        ArgumentError: more outputs than such a matrix can be decomposed for.
    """
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], out))
    wrap = lambda rows: jax.vmap(unravel)(rows.astype(flat.dtype))
    known = getattr(loss, "output_factors", None)
    if known is not None and jnp.shape(out)[1:] == flat.shape:  # one vector an example
        return known(out, batch), wrap
    check_outputs(flat.size)

    def factor(one: Any, example: Batch) -> jax.Array:
        flat, back = ravel_pytree(one)
        many = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example)

        def of(vector: jax.Array) -> jax.Array:
            return losses_of(loss, jax.tree.map(lambda leaf: leaf[None], back(vector)), many)[0]

        # H = V diag(l) V^T = L L^T, L = V diag(sqrt(l)). Not Cholesky: softmax makes H singular.
        values, vectors = jnp.linalg.eigh(jax.hessian(of)(flat))
        return vectors * jnp.sqrt(jnp.maximum(values, 0))

    return jax.vmap(factor)(out, dict(batch)), wrap


def _rows_of_one(
    fn: Function, loss: Function, variables: Variables, how: str, samples: int | None
) -> Callable[[tuple[Any, ...]], list[jax.Array]]:
    """`(example, share, key) -> [rows, *shape]` for every parameter."""
    parameters = parameters_of(variables)

    def rows(item: tuple[Any, ...]) -> list[jax.Array]:
        example, share, key = item
        batch = jax.tree.map(lambda leaf: leaf[None], example)
        outputs = lambda values: fn(parameters.into(values), batch["image"])
        # r = sqrt(w_n) g_n
        if how == "fisher":
            losses = lambda values: jnp.sqrt(share) * losses_of(loss, outputs(values), batch)[0]
            return [g[None] for g in jax.grad(losses)(parameters.values)]
        out, pull = jax.vjp(outputs, parameters.values)
        # r_i = sqrt(w_n) J_n^T l_i for the columns l_i of L_n: sum_i r_i r_i^T = w_n J_n^T H_n J_n.
        factors, wrap = output_factors(loss, out, batch)
        columns = jnp.sqrt(share) * factors[0].T
        if samples is not None:
            # E[(L s)(L s)^T] = L L^T for random signs s: a few mixed columns instead of all.
            drawn = jax.random.rademacher(key, (samples, len(columns))).astype(columns.dtype)
            columns = drawn @ columns / samples**0.5
        return jax.lax.map(lambda column: pull(wrap(column[None]))[0], columns)

    return rows


def _examples(batch: Batch, key: jax.Array | None) -> tuple[Any, ...]:
    """All examples with their shares and keys, along the first axis."""
    shares = shares_of(batch)
    # Zeros stand in for keys where nothing is drawn: `map` wants an array.
    keys = jnp.zeros(len(shares)) if key is None else jax.random.split(key, len(shares))
    return jax.tree.map(jnp.asarray, dict(batch)), shares, keys


def gradient_rows(
    fn: Function,
    loss: Function,
    variables: Variables,
    batch: Batch,
    how: str = "gauss_newton",
    samples: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Rows r_i of a batch with sum_i r_i r_i^T its Gauss-Newton matrix or Fisher information.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`.
        variables: of the net.
        batch: examples.
        how: "gauss_newton" (as many rows an example as it has outputs) or "fisher" (one: the
            gradient of its loss).
        samples: rows an example, drawn so that the sum is right in expectation (Gauss-Newton);
            None: all.
        key: of the draws.

    Returns:
        [rows, parameters]: all parameters side by side, in the order of `parameters_of`.

    Raises:
        ArgumentError: an unknown name, samples below 1 or not of Gauss-Newton, or no key for them.

    Example:
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: 0.5 * out[:, 0] ** 2
        >>> batch, variables = {"image": jnp.array([[2.0, 1.0]])}, {"w": jnp.ones((2, 1))}
        >>> jnp.abs(gradient_rows(fn, loss, variables, batch))
        Array([[2., 1.]], dtype=float32)
    """
    if how not in HOW:
        raise errors.ArgumentError(f"gradient_rows(how={how!r}); write one of {', '.join(HOW)}.")
    if samples is not None and (samples < 1 or how != "gauss_newton"):
        raise errors.ArgumentError(
            f"gradient_rows(how={how!r}, samples={samples}); samples are 1 or more rows an example "
            "of gauss_newton. Write samples=None for all rows."
        )
    if (samples is None) != (key is None):
        raise errors.ArgumentError(
            "gradient_rows takes samples and the key of their draws, or none."
        )
    rows = jax.lax.map(_rows_of_one(fn, loss, variables, how, samples), _examples(batch, key))
    # [examples, rows an example, *shape] -> [rows, size], parameters side by side.
    flat = [part.reshape(part.shape[0] * part.shape[1], -1) for part in rows]
    return jnp.concatenate(flat, axis=1)


def summed_squares(
    fn: Function, loss: Function, variables: Variables, batch: Batch, how: str
) -> list[jax.Array]:
    """The diagonal of sum_i r_i r_i^T, without keeping the rows."""
    one = _rows_of_one(fn, loss, variables, how, None)

    def add(total: list[jax.Array], example: tuple[Any, ...]) -> tuple[list[jax.Array], None]:
        return [t + (rows**2).sum(axis=0) for t, rows in zip(total, one(example))], None

    zeros = [jnp.zeros_like(value) for value in parameters_of(variables).values]
    return jax.lax.scan(add, zeros, _examples(batch, None))[0]
