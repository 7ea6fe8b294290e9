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


def named(*names):
    """Some of the nets."""
    nets = [net for net in PATTERNS if net.name in names]
    assert len(nets) == len(names)
    return pytest.mark.parametrize("net", nets, ids=lambda net: net.name)


@named("c2f", "grouped", "multi_head", "pixel_shuffle", "scanned")
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


@named("bottleneck", "c2f", "grouped", "multi_head", "scanned", "pyramid")
def test_slim_of_slim_is_slim_of_the_intersection(net: Net):
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    first = random_masks(groups, seed=1, density=0.8)
    small_fn = jprune.slim(net.fn, groups, first)
    small = jprune.slim_params(groups, first, variables)
    again = jprune.trace(small_fn, small, *inputs)
    assert again.sizes == {name: int(mask.sum()) for name, mask in first.items()}
    second = random_masks(again, seed=2)
    both = {name: mask.copy() for name, mask in first.items()}
    for name, mask in both.items():
        mask[mask] = second[name]
    assert any((both[name] != first[name]).any() for name in both)
    twice = jprune.slim_params(again, second, small)
    once = jprune.slim_params(groups, both, variables)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, once, twice))
    slim_once, slim_twice = (
        jprune.slim(net.fn, groups, both),
        jprune.slim(small_fn, again, second),
    )
    outputs = quick(lambda v: (slim_once(v, *inputs), slim_twice(v, *inputs)), once)
    assert relative_error(*outputs) < 1e-6


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
