"""The diagonal of the Hessian of the mean loss, by several estimates, as a mean over batches.

E is the mean loss and H its Hessian; J_n is the Jacobian of the outputs of example n, H_n the
Hessian of its loss in the outputs, w_n its share of the batch:

- `exact`: d2E/dw_k2, a Hessian-vector product per parameter; for tiny nets;
- `hutchinson`: the mean of v * Hv over random signs v, whose expectation is h_kk;
- `gauss_newton`: sum_n w_n diag(J_n^T H_n J_n), never negative: the Hessian without the
  curvature of the net itself;
- `fisher`: sum_n w_n g_n^2 with g_n the gradient of example n's loss.

The last two are computed exactly (a backward pass per example, and per output), or sampled in one
backward pass of the whole batch: with independent random signs s_n, (sum_n sqrt(w_n) s_n g_n)^2 has
the expectation sum_n w_n g_n^2. OBD's own estimate is `recursion`.

References:
    Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990. For diagonals:
    Bekas, Kokiopoulou, Saad, An estimator for the diagonal of a matrix, 2007, Applied Numerical
    Mathematics 57. Gauss-Newton: Schraudolph, Fast curvature matrix-vector products, 2002, Neural
    Computation 14. Fisher: Martens, New insights and perspectives on the natural gradient method,
    2020, arXiv 1412.1193.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Batch, Criterion, Variables
from jprune.curvature.products import (
    Function,
    gradient_of,
    losses_of,
    parameters_of,
    shares_of,
    weights_of,
)
from jprune.curvature.rows import (
    check_labels,
    output_factors,
    signs,
    summed_squares,
    with_drawn_labels,
)
from jprune.graph.shrink.concrete import full, on_host

Diagonal = list[jax.Array]
"""One array per parameter, in the order of `parameters_of`."""


class Estimator(NamedTuple):
    """How the diagonal of a batch is estimated. Two of the same settings are equal.

    Attributes:
        name: for messages.
        estimate: `estimate(fn, loss, variables, batch, key) -> diagonal`, that of one probe.
        draws: whether it needs the key.
        probes: estimates of a batch, each with a key of its own, that are averaged.
    """

    name: str
    estimate: Callable[[Function, Function, Variables, Batch, Any], Diagonal]
    draws: bool
    probes: int = 1


class Sum(NamedTuple):
    """The state of `mean_diagonal`: the sum over the batches so far.

    Attributes:
        key: of the estimator's draws; None where it has none.
        batches: their number; it makes a key of its own for every batch.
        weight: sum of the examples' weights.
        total: sum of the batches' diagonals times their weights.
    """

    key: jax.Array | None
    batches: jax.Array
    weight: jax.Array
    total: Diagonal


def mean_diagonal(
    fn: Function, loss: Function, estimator: Estimator, key: jax.Array | None = None
) -> Criterion:
    """The diagonal of the Hessian over all batches, examples weighted by batch["weight"].

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`.
        estimator: `exact()`, `hutchinson()`, `gauss_newton()`, `fisher()` or `recursion()`.
        key: of the draws of an estimator that draws; every batch has its own.

    Returns:
        A criterion whose scores are the curvature: a tree like the variables, None for statistics.
        Criteria with the same first three arguments share one compilation.

    Raises:
        ArgumentError: no key for an estimator that draws.

    Example:
        >>> import jprune
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: 0.5 * out[:, 0] ** 2
        >>> batch, variables = {"image": jnp.array([[2.0, 1.0]])}, {"w": jnp.ones((2, 1))}
        >>> jprune.run_criterion(mean_diagonal(fn, loss, exact()), variables, [batch])["w"][:, 0]
        Array([4., 1.], dtype=float32)
    """
    if estimator.draws and key is None:
        raise errors.ArgumentError(
            f"the estimate {estimator.name} draws; pass key=jax.random.key(0), or one of yours."
        )

    def init(variables: Variables) -> Sum:
        total = [full(value.shape, 0, value.dtype) for value in parameters_of(variables).values]
        return Sum(key, jnp.zeros((), jnp.int32), jnp.zeros(()), total)

    def score(state: Sum, variables: Variables) -> Any:
        mean = on_host(lambda xnp, total, weight: (total / weight).astype(total.dtype))
        return parameters_of(variables).tree([mean(total, state.weight) for total in state.total])

    return Criterion(init, _updated(fn, loss, estimator), score)


@functools.lru_cache(maxsize=8)
def _updated(fn: Function, loss: Function, estimator: Estimator) -> Callable[..., Sum]:
    # One call a probe instead of a loop inside XLA: convolutions in such loops are ten times slower
    # on a CPU.
    @jax.jit
    def add(
        total: Diagonal, key: jax.Array | None, probe: Any, variables: Variables, batch: Batch
    ) -> Diagonal:
        key = None if key is None else jax.random.fold_in(key, probe)
        diagonal = estimator.estimate(fn, loss, variables, batch, key)
        # A batch's diagonal is a mean: times its weight it is a sum, and batches can be added.
        share = weights_of(batch).sum() / estimator.probes
        return [old + (share * new).astype(old.dtype) for old, new in zip(total, diagonal)]

    def update(state: Sum, variables: Variables, batch: Batch) -> Sum:
        total, first = state.total, estimator.probes * state.batches
        for probe in range(estimator.probes):
            total = add(total, state.key, first + probe, variables, batch)
        weight = state.weight + weights_of(batch).sum()
        return state._replace(batches=state.batches + 1, weight=weight, total=total)

    return update


@functools.cache
def exact() -> Estimator:
    """The diagonal itself, by one Hessian-vector product per parameter."""

    def estimate(
        fn: Function, loss: Function, variables: Variables, batch: Batch, key: Any
    ) -> Diagonal:
        del key
        parameters = parameters_of(variables)
        values = parameters.values
        # v -> H v; the gradient is linearised once, for all parameters.
        product = jax.linearize(gradient_of(fn, loss, parameters, batch), values)[1]
        zeros = [jnp.zeros_like(value) for value in values]

        def leaf(place: int) -> jax.Array:
            flat = zeros[place].reshape(-1)

            # h_kk = e_k . (H e_k)
            def entry(index: jax.Array) -> jax.Array:
                one = flat.at[index].set(1).reshape(zeros[place].shape)
                direction = [*zeros[:place], one, *zeros[place + 1 :]]
                return product(direction)[place].reshape(-1)[index]

            return jax.lax.map(entry, jnp.arange(flat.size)).reshape(zeros[place].shape)

        return [leaf(place) for place in range(len(values))]

    return Estimator("exact", estimate, False)


@functools.cache
def hutchinson(probes: int = 16) -> Estimator:
    """The mean of v * Hv over random signs v.

    A probe is one Hessian-vector product and costs less than four gradients. The error falls like
    1 / sqrt(probes x batches).

    Args:
        probes: number of sign vectors for each batch.

    Raises:
        ArgumentError: less than one probe.
    """
    _check_probes("hutchinson", probes)

    def estimate(
        fn: Function, loss: Function, variables: Variables, batch: Batch, key: Any
    ) -> Diagonal:
        parameters = parameters_of(variables)
        values = parameters.values
        keys = jax.random.split(key, len(values))
        direction = [signs(k, value) for k, value in zip(keys, values)]
        # h_kk = E[v_k (H v)_k] = E[sum_j v_k v_j H_kj], since E[v_k v_j] = 0 for j != k, v_k^2 = 1.
        bent = jax.jvp(gradient_of(fn, loss, parameters, batch), (values,), (direction,))[1]
        return [v * product for v, product in zip(direction, bent)]

    return Estimator("hutchinson", estimate, True, probes)


@functools.cache
def gauss_newton(probes: int | None = None) -> Estimator:
    """The diagonal of J^T H J, H being the Hessian of the loss in the outputs.

    Where the loss is not convex in the outputs, negative eigenvalues of H are set to 0.

    Args:
        probes: None for the exact diagonal (a backward pass per example and output), else
            backward passes of the whole batch.

    Raises:
        ArgumentError: less than one probe.
    """
    _check_probes("gauss_newton", probes)

    def estimate(
        fn: Function, loss: Function, variables: Variables, batch: Batch, key: Any
    ) -> Diagonal:
        if probes is None:
            return summed_squares(fn, loss, variables, batch, "gauss_newton")
        parameters = parameters_of(variables)
        outputs = lambda values: fn(parameters.into(values), batch["image"])
        out, pull = jax.vjp(outputs, parameters.values)
        # H_n = L_n L_n^T: [batch, outputs, outputs]
        factors, wrap = output_factors(loss, out, batch)
        factors = jnp.sqrt(shares_of(batch))[:, None, None] * factors
        # g = sum_n sqrt(w_n) J_n^T L_n s_n, and E[g^2] = sum_n w_n diag(J_n^T L_n L_n^T J_n): the
        # signs make all terms between different examples or columns vanish in expectation.
        drawn = signs(key, factors[:, 0])
        (gradient,) = pull(wrap(jnp.einsum("nij,nj->ni", factors, drawn)))
        return [g**2 for g in gradient]

    return Estimator("gauss_newton", estimate, probes is not None, probes or 1)


@functools.cache
def fisher(probes: int | None = None, labels: str = "data") -> Estimator:
    """The mean of the squared gradients of the examples.

    With the data's labels it is the empirical Fisher information, which goes to 0 as the gradients
    do; with labels drawn from the net's softmax it is the true one, whose expectation is the
    Gauss-Newton diagonal of the cross entropy.

    Args:
        probes: None for a backward pass per example, else backward passes of the whole batch.
        labels: "data", or "model": drawn from the softmax of the outputs.

    Raises:
        ArgumentError: other labels, or less than one probe.
    """
    check_labels(labels)
    _check_probes("fisher", probes)

    def estimate(
        fn: Function, loss: Function, variables: Variables, batch: Batch, key: Any
    ) -> Diagonal:
        if labels == "model":
            key, drawing = jax.random.split(key)
            batch = with_drawn_labels(fn(variables, batch["image"]), batch, drawing)
        if probes is None:
            return summed_squares(fn, loss, variables, batch, "fisher")
        parameters, shares = parameters_of(variables), jnp.sqrt(shares_of(batch))
        losses = lambda values: losses_of(loss, fn(parameters.into(values), batch["image"]), batch)
        examples, pull = jax.vjp(losses, parameters.values)
        # g = sum_n sqrt(w_n) s_n g_n, and E[g^2] = sum_n w_n g_n^2 over the signs s_n.
        (gradient,) = pull((shares * signs(key, shares)).astype(examples.dtype))
        return [g**2 for g in gradient]

    return Estimator("fisher", estimate, labels == "model" or probes is not None, probes or 1)


def _check_probes(name: str, probes: int | None) -> None:
    if probes is not None and probes < 1:
        raise errors.ArgumentError(f"{name}(probes={probes}); write 1 or more, 16 for example.")
