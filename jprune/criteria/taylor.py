"""Taylor: the squared change of the loss if a weight or unit is removed, to first or second order.

References:
    Molchanov, Mallya, Tyree, Frosio, Kautz, Importance estimation for neural network pruning, 2019,
    arXiv 1906.10771. The paper's second-order term uses a whole row of the Hessian; for the
    removal of one unit alone only the diagonal is exact, and that is what its code and this file
    use.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jprune import errors
from jprune.base import Criterion, Groups
from jprune.criteria._average import add, start, value_of
from jprune.curvature.products import losses_of, shares_of, weights_of
from jprune.graph import gateable, gated
from jprune.masks import map_parameters
from jprune.units import to_units

FORMS = ("separate", "joint", "gate")


def taylor(
    fn: Callable[..., Any],
    loss: Callable[..., Any],
    groups: Groups | None = None,
    form: str = "separate",
    at: str = "norm",
    order: int = 1,
    per_example: bool = False,
    momentum: float | None = None,
    every: int = 1,
    has_aux: bool = False,
    roles: tuple[str, ...] = ("kernel",),
) -> Criterion:
    """Squared change of the loss on removal.

    E is the mean loss of a batch, g its gradient, w a weight; of a complex one g w is the real
    part. A batch contributes

    - "separate": (g w)^2 for every parameter, a tree like the variables, None for statistics (the
      paper's "Taylor on weights"); pooled by `to_units` it is the sum of (g w)^2 over a filter;
    - "joint": (sum over the unit of g w)^2;
    - "gate": (dE/dz)^2 for a gate z = 1 per unit (the paper's recommended Taylor-FO-BN, where the
      gate follows the batch norm); with order 2, (dE/dz - 1/2 d2E/dz2)^2. A gate used at several
      sites (a residual stream) collects several gradients, so its score is divided by their
      number, as the paper intends.

    Scores of a net with pruned units are about 0 there; `masked` makes them -inf.

    Args:
        fn: `fn(variables, batch["image"])`.
        loss: `loss(out, batch) -> [batch]`; E is its mean, weighted by batch["weight"] if there is
            one.
        groups: from `trace`; needed for `joint` and `gate`.
        form: `separate`, `joint` or `gate`.
        at: site of the gates: `norm` (between batch norm and nonlinearity), `in`, or `act`.
        order: 1, or 2 for gates.
        per_example: whether gradients are squared per example and then averaged over all examples
            (gates only), instead of squaring the batch's gradient and averaging over batches.
        momentum: None for the plain mean over batches; else the running mean of rounds (0.9 in the
            paper's code, which calls it useless).
        every: batches in a round (30 in the paper's code for ResNet-50).
        has_aux: `fn` returns `(out, statistics)`: a net in training mode, whose norms use the
            batch's own statistics.
        roles: which of a unit's places the sum of `joint` includes.

    Returns:
        A criterion; scores are real, a tree (`separate`) or {group: [units]}. Groups without a
        site `at` have no gate score and are left out.

    Raises:
        ArgumentError: an unknown form or order, groups that are missing, or gates at sites that
            the net does not have.

    Example:
        >>> import jprune
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: out.sum(axis=1)
        >>> batch = {"image": jnp.array([[2.0, 1.0]])}
        >>> variables = {"w": jnp.array([[3.0], [1.0]])}
        >>> jprune.run_criterion(taylor(fn, loss), variables, [batch])["w"][:, 0]
        Array([36.,  1.], dtype=float32)
    """
    _check(form, order, groups, per_example, momentum, every)
    if form == "gate":
        _check_sites(_traced(groups), at)
    out_of = (lambda result: result[0]) if has_aux else (lambda result: result)

    def mean_loss(variables, batch):
        return shares_of(batch) @ losses_of(loss, out_of(fn(variables, batch["image"])), batch)

    def products(variables, batch):
        # g_m w_m: minus the first-order change of E if w_m becomes 0.
        gradient = jax.grad(mean_loss, allow_int=True)(variables, batch)
        return map_parameters(_product, variables, gradient)

    def separate(variables, batch):
        # I_m = (g_m w_m)^2
        return jax.tree.map(jnp.square, products(variables, batch))

    def joint(variables, batch):
        # I_S = (sum over s in S of g_s w_s)^2: terms of opposite sign cancel within a unit.
        sums = to_units(_traced(groups), products(variables, batch), roles)
        return jax.tree.map(jnp.square, sums)

    def gate(variables, batch):
        return _gate_scores(fn, loss, out_of, _traced(groups), at, order, per_example)(
            variables, batch
        )

    contribution = {"separate": separate, "joint": joint, "gate": gate}[form]

    def init(variables):
        if form == "separate":
            return start(map_parameters(_real, variables))
        traced = _traced(groups)
        names = gateable(traced, at) if form == "gate" else traced.names
        numbers = lambda size: jax.ShapeDtypeStruct((size,), jnp.result_type(float))
        return start({name: numbers(traced.sizes[name]) for name in names})

    @jax.jit
    def update(state, variables, batch):
        # Means over examples weigh a batch by its examples, padded ones left out.
        weight = weights_of(batch).sum() if per_example else 1.0
        return add(state, contribution(variables, batch), momentum, every, weight)

    return Criterion(init, update, lambda state, variables: value_of(state, momentum))


def _check(form, order, groups, per_example, momentum, every) -> None:
    # Only gates have so few entries that their Hessian's diagonal is affordable.
    if form not in FORMS:
        raise errors.ArgumentError(f"taylor(form={form!r}); write one of {', '.join(FORMS)}.")
    # Order 2 is for gates alone: they are few enough for the exact diagonal of their Hessian.
    if order not in (1, 2) or (order == 2 and form != "gate"):
        raise errors.ArgumentError(
            f'taylor(form={form!r}, order={order}); order is 1, or 2 with form="gate".'
        )
    if per_example and (form != "gate" or order != 1):
        raise errors.ArgumentError(
            'taylor(per_example=True) squares gate gradients per example; write form="gate", '
            "order=1."
        )
    if form != "separate" and groups is None:
        raise errors.ArgumentError(
            f"taylor(form={form!r}) scores units; pass groups=jprune.trace(fn, variables, x)."
        )
    if momentum is not None and not 0 <= momentum < 1:
        raise errors.ArgumentError(f"taylor(momentum={momentum}); it is None or in [0, 1).")
    if every < 1:
        raise errors.ArgumentError(f"taylor(every={every}); a round has 1 batch or more.")


def _check_sites(groups: Groups, at: str) -> None:
    if groups.sizes and not gateable(groups, at):
        kinds = sorted({site.kind for site in groups.sites if site.groups})
        raise errors.ArgumentError(
            f'taylor(form="gate", at={at!r}): no group of this net has a site {at!r}. Write '
            + (f"at={' or at='.join(map(repr, kinds))}, or " if kinds else "")
            + 'form="joint", which needs no site.'
        )


def _traced(groups: Groups | None) -> Groups:
    assert groups is not None  # checked by the factory
    return groups


def _real(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and real type of the scores of a leaf."""
    return jax.ShapeDtypeStruct(leaf.shape, np.zeros((), leaf.dtype).real.dtype)


def _product(leaf: jax.Array, gradient: jax.Array) -> jax.Array:
    # Integer parameters have a gradient of dtype float0, which holds nothing.
    if gradient.dtype == jax.dtypes.float0:
        return jnp.zeros(leaf.shape)
    # E changes by Re(g w) when a complex w goes to 0, with JAX's gradient of a real loss.
    return jnp.real(gradient * leaf)


def _gate_scores(fn, loss, out_of, groups: Groups, at: str, order: int, per_example: bool):
    """`scores(variables, batch) -> {group: [units]}`."""
    with_gates = gated(fn, groups, at)
    names = gateable(groups, at)
    shared = {
        name: sum(site.kind == at and name in site.groups for site in groups.sites)
        for name in names
    }

    def scores(variables, batch):
        def losses(gates):
            return losses_of(loss, out_of(with_gates(variables, gates, batch["image"])), batch)

        ones = {name: jnp.ones(groups.sizes[name]) for name in names}
        weights = shares_of(batch)
        if per_example:
            # A gate per example, [batch, units]: one backward pass gives every dE_n/dz, and
            # I = sum_n w_n (dE_n/dz)^2 instead of (sum_n w_n dE_n/dz)^2.
            wide = {name: jnp.ones((len(weights), *one.shape)) for name, one in ones.items()}
            # The sum, not the mean: dE_n/dz must not depend on the batch's size.
            gradient = jax.grad(lambda gates: losses(gates).sum())(wide)
            squares = {name: weights @ g**2 for name, g in gradient.items()}
        else:
            slope = jax.grad(lambda gates: weights @ losses(gates))
            gradient = slope(ones)
            if order == 2:
                # I = (g z - 1/2 h z^2)^2 at z = 1, h the diagonal of the Hessian in the gates.
                curvature = _diagonal(slope, ones)
                gradient = jax.tree.map(lambda g, h: g - 0.5 * h, gradient, curvature)
            squares = jax.tree.map(jnp.square, gradient)
        # A gate at n sites collects n gradients: the paper divides its square by n.
        return {name: square / shared[name] for name, square in squares.items()}

    return scores


def _diagonal(slope, at):
    """Exact diagonal of the Hessian, one Hessian-vector product per entry."""
    flat, back = ravel_pytree(at)

    def entry(number):
        # h_kk = e_k . (H e_k); `map` and not `vmap`, whose memory would grow with the gates.
        direction = back(jnp.zeros_like(flat).at[number].set(1))
        product = jax.jvp(slope, (at,), (direction,))[1]
        return ravel_pytree(product)[0][number]

    return back(jax.lax.map(entry, jnp.arange(flat.size)))
