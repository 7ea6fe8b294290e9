"""The law that every test of the engine comes back to, compiled once and without optimisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jprune

QUICK = {"xla_backend_optimization_level": 0}
"""XLA spends most of a small test on optimising what runs once."""


def quick(fn, *args):
    """`fn(*args)`, compiled in a hurry."""
    return jax.jit(fn, compiler_options=QUICK)(*args)


def random_masks(groups, seed=0, density=0.6):
    """Masks that keep about `density` of the units of every group, and at least one."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, size in groups.sizes.items():
        masks[name] = rng.random(size) < density
        masks[name][rng.integers(size)] = True
    return masks


def relative_error(one, other):
    """max|a - b| / max|a| over all leaves."""
    errors = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b), initial=0), one, other)
    sizes = jax.tree.map(lambda a: jnp.max(jnp.abs(a), initial=0), one)
    return float(max(jax.tree.leaves(errors)) / max(jax.tree.leaves(sizes)))


def weighted_sum(tree: Any) -> Any:
    """A scalar in which every entry of every array has a weight of its own."""
    weigh = lambda a: (a * jnp.cos(jnp.arange(a.size)).reshape(a.shape).astype(a.dtype)).sum()
    return sum(jax.tree.leaves(jax.tree.map(weigh, tree)))


def both_nets(fn, variables, inputs, masks, groups):
    """Output and gradient of the masked net, then of the slim one, on the kept places."""
    small_fn = jprune.slim(fn, groups, masks)

    def value_and_grad(function, at, inputs):
        def total(at):
            out = function(at, *inputs)
            return weighted_sum(out), out

        (_, out), gradient = jax.value_and_grad(total, has_aux=True, allow_int=True)(at)
        is_counter = lambda g: g.dtype == jax.dtypes.float0
        return out, jax.tree.map(lambda g: jnp.zeros(g.shape) if is_counter(g) else g, gradient)

    def both(variables, inputs):
        masked = jprune.apply_masks(variables, jprune.expand(groups, masks, roles=("in",)))
        small = jprune.slim_params(groups, masks, variables)
        out, gradient = value_and_grad(fn, masked, inputs)
        gradient = jprune.slim_params(groups, masks, gradient)
        return (out, gradient), value_and_grad(small_fn, small, inputs)

    return quick(both, variables, inputs)


def check_law(fn, variables, inputs, masks, groups, bound):
    """Value and gradient on the kept places; returns the slim output."""
    masked, slim = both_nets(fn, variables, inputs, masks, groups)
    assert relative_error(masked[0], slim[0]) <= bound
    assert relative_error(masked[1], slim[1]) <= 10 * bound
    return slim[0]
