"""The hard patterns: the units derived by hand, and the law in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from tests.law import check_law, quick, random_masks, relative_error
from tests.nets import Net, draw
from tests.patterns import PATTERNS
from tests.patterns.control import LOOPING


@pytest.mark.parametrize("net", PATTERNS, ids=lambda net: net.name)
def test_pattern(net: Net):
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    assert groups.sizes == net.groups
    masks = random_masks(groups)
    assert any(not mask.all() for mask in masks.values())
    check_law(net.fn, variables, inputs, masks, groups, net.bound)


@pytest.mark.parametrize("net", [net for net in PATTERNS if net.name in ("c2f", "grouped")])
def test_permuting_channels_permutes_units(net: Net):
    """The net with exchanged channels is the same net, and loses the same ones."""
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    name = groups.names[-1]
    order = np.random.default_rng(0).permutation(groups.sizes[name])
    leaves = dict(zip(groups.leaves, jax.tree.leaves(variables)))
    for place in groups.places[name]:
        taken = np.flatnonzero(place.units >= 0)
        index = np.arange(len(place.units))
        rank = np.argsort(place.units[taken], kind="stable").reshape(groups.sizes[name], -1)
        index[taken[rank.reshape(-1)]] = taken[rank[order].reshape(-1)]
        leaves[place.leaf] = jnp.take(leaves[place.leaf], index, place.axis)
    permuted = jax.tree.unflatten(groups.treedef, list(leaves.values()))
    masks = random_masks(groups)
    exchanged = {**masks, name: masks[name][order]}
    slim = lambda masks, v: quick(
        jprune.slim(net.fn, groups, masks), jprune.slim_params(groups, masks, v), *inputs
    )
    assert relative_error(slim(masks, variables), slim(exchanged, permuted)) < 1e-6


def test_a_while_loop_obeys_the_law_in_forward_mode():
    variables, inputs = draw(LOOPING)
    groups = jprune.trace(LOOPING.fn, variables, *inputs)
    assert groups.sizes == LOOPING.groups
    masks = random_masks(groups)
    cut = lambda tree: jprune.slim_params(groups, masks, tree)
    clear = lambda tree: jprune.apply_masks(tree, jprune.expand(groups, masks, roles=("in",)))
    along = draw(LOOPING, seed=1)[0]
    masked = jax.jvp(lambda v: LOOPING.fn(v, *inputs), (clear(variables),), (clear(along),))
    small_fn = jprune.slim(LOOPING.fn, groups, masks)
    slim = jax.jvp(lambda v: small_fn(v, *inputs), (cut(variables),), (cut(along),))
    assert relative_error(masked[0], slim[0]) < 1e-5
    assert relative_error(masked[1], slim[1]) < 1e-4
