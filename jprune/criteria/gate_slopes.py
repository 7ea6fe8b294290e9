"""Slopes of gates, example by example: what the loss of each example does as a unit is closed.

References:
    Molchanov, Tyree, Karras, Aila, Kautz, Pruning convolutional neural networks for resource
    efficient inference, 2017, arXiv 1611.06440: the absolute slope, of every example before the
    mean. Crowley, Turner, Storkey, O'Boyle, A closer look at structured pruning for neural network
    compression, 2018, arXiv 1810.04622: the square, a Fisher information.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Criterion, Groups, Variables
from jprune.criteria._average import add, start, value_of
from jprune.curvature.products import losses_of, weights_of
from jprune.graph import Site, gateable, gated, intercept, taps

FORMS = ("absolute", "signed", "entries", "square")


def gate_slopes(
    fn: Callable[..., Any],
    loss: Callable[..., Any],
    groups: Groups,
    form: str = "absolute",
    at: str = "norm",
    has_aux: bool = False,
) -> Criterion:
    """First-order change of the loss as a unit's feature map goes to 0.

    A gate z = 1 multiplies the feature map a of a unit, M numbers for each example n. The slope of
    that example's loss is g_n = dC_n/dz = sum_m a_m dC_n/da_m, the same before and behind a ReLU.

    - "absolute": mean over n of |g_n| / M (Molchanov et al. 2017; signs cancel within a map, and
      not between examples);
    - "signed": |mean over n of g_n| / M, where examples cancel too (a widely used port);
    - "entries": mean over n and m of |a_m dC_n/da_m|, where nothing cancels (the authors' later
      code);
    - "square": mean over n of g_n^2 / 2 (Crowley et al. 2018).

    The slopes are a by-product of training: a batch that holds `slopes`, {group: [batch, units]},
    is scored by them, and the net is not run (all forms but "entries"). `sparsify.one_by_one` shows
    a step that hands them over.

    Args:
        fn: `fn(variables, batch["image"])`.
        loss: `loss(out, batch) -> [batch]`.
        groups: from `trace`.
        form: see above.
        at: site of the gates: `norm` (between batch norm and nonlinearity), `act` or `in`.
        has_aux: `fn` returns `(out, statistics)`: a net in training mode. Slopes are then those of
            the sum of all losses: examples share the statistics of their batch.

    Returns:
        A criterion; scores are {group: [units]}. M is the number of positions at which the layers
        that make a unit are applied. Groups without a site `at` are left out.

    Raises:
        ArgumentError: an unknown form, or no group has a site of the kind.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> loss = lambda out, batch: out[:, 0]
        >>> variables = {"a": jnp.eye(2), "b": jnp.array([[1.0], [-3.0]])}
        >>> batch = {"image": jnp.array([[2.0, 1.0], [4.0, 1.0]])}
        >>> groups = jprune.trace(fn, variables, batch["image"])
        >>> jprune.run_criterion(gate_slopes(fn, loss, groups), variables, [batch])["a"]
        Array([3., 3.], dtype=float32)
    """
    if form not in FORMS:
        raise errors.ArgumentError(f"gate_slopes(form={form!r}); write one of {', '.join(FORMS)}.")
    names = gateable(groups, at)
    if groups.sizes and not names:
        kinds = sorted({site.kind for site in groups.sites if site.groups})
        raise errors.ArgumentError(
            f"gate_slopes(at={at!r}): no group of this net has a site {at!r}. Write "
            f"at={' or at='.join(map(repr, kinds))}."
        )
    out_of = (lambda result: result[0]) if has_aux else (lambda result: result)
    entries = _entries(groups)
    with_gates = gated(fn, groups, at)

    def slopes_of(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """{group: [batch, units]}."""
        # One gate an example: a single backward pass of the sum of all losses gives every slope,
        # also where the examples of a batch share its statistics.
        wide = {name: jnp.ones((len(weights_of(batch)), groups.sizes[name])) for name in names}
        total = lambda gates: losses_of(
            loss, out_of(with_gates(variables, gates, batch["image"])), batch
        ).sum()
        return jax.grad(total)(wide)

    def contribution(variables: Variables, batch: Batch, shares: jax.Array) -> dict[str, Any]:
        if form == "entries":
            return _of_entries(fn, loss, out_of, groups, at)(variables, batch, shares, entries)
        slopes = batch["slopes"] if "slopes" in batch else slopes_of(variables, batch)
        if form == "square":
            # Delta = 1 / (2 N) sum_n g_n^2
            return {name: shares @ slopes[name] ** 2 / 2 for name in names}
        # Theta = 1 / N sum_n |1 / M sum_m a_m dC_n/da_m|, or the mean first
        size = jnp.abs if form == "absolute" else lambda slope: slope
        return {name: shares @ size(slopes[name]) / entries[name] for name in names}

    def init(variables: Variables) -> Any:
        del variables
        numbers = lambda size: jax.ShapeDtypeStruct((size,), jnp.result_type(float))
        return start({name: numbers(groups.sizes[name]) for name in names})

    @jax.jit
    def update(state: Any, variables: Variables, batch: Batch) -> Any:
        weights = weights_of(batch)
        shares = weights / weights.sum()
        # A batch counts by its examples, padded ones left out.
        return add(state, contribution(variables, batch, shares), None, 1, weights.sum())

    def score(state: Any, variables: Variables) -> dict[str, Any]:
        del variables
        return jax.tree.map(abs, value_of(state, None))

    return Criterion(init, update, score)


def _entries(groups: Groups) -> dict[str, float]:
    """{group: M, the numbers of a unit's feature maps for one example}."""
    entries = dict.fromkeys(groups.sizes, 0.0)
    for layer in groups.layers.values():
        for name in layer.writes:
            entries[name] += layer.positions
    # A unit that no contraction makes (of an embedding) counts as one number.
    return {name: size or 1.0 for name, size in entries.items()}


def _of_entries(fn, loss, out_of, groups: Groups, at: str):
    """`(variables, batch, shares, entries) -> {group: [units]}`, nothing cancelling."""

    def closed(site: Site, value: Any, gates: Any) -> tuple[Any, Any]:
        """A gate for every entry of every map: [batch, positions, units]."""
        last = jnp.moveaxis(value, (site.examples, site.axis), (0, -1))
        flat = last.reshape(last.shape[0], -1, last.shape[-1])
        for name, units in site.units.items():
            along = jnp.where(units < 0, 1.0, gates[site.layer][name][..., np.maximum(units, 0)])
            flat = flat * along.astype(flat.dtype)
        last = flat.reshape(last.shape)
        return jnp.moveaxis(last, (0, -1), (site.examples, site.axis)), gates

    run = intercept(fn, groups, closed, (at,))
    sites = {site.layer: site for site in groups.sites if site.kind == at}

    def scores(variables: Variables, batch: Batch, shares: jax.Array, entries: dict[str, float]):
        values = jax.eval_shape(taps(fn, groups, (at,)), variables, batch["image"])[1]
        gates = {}
        for layer, site in sites.items():
            shape = values[layer, at].shape
            places = math.prod(shape) // (len(shares) * shape[site.axis])
            wide = (len(shares), places)
            gates[layer] = {name: jnp.ones((*wide, groups.sizes[name])) for name in site.groups}

        def total(gates: dict[str, dict[str, jax.Array]]) -> jax.Array:
            out, _ = run(variables, gates, batch["image"])
            return losses_of(loss, out_of(out), batch).sum()

        summed: dict[str, Any] = {}
        for by_group in jax.grad(total)(gates).values():
            for name, slope in by_group.items():
                # 1 / N sum_n 1 / M sum_m |a_m dC_n/da_m|
                here = shares @ jnp.abs(slope).sum(1) / entries[name]
                summed[name] = summed.get(name, 0.0) + here
        return summed

    return scores
