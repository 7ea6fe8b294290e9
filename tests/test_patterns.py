"""The hard patterns: the units derived by hand, and the law in value and gradient."""

import jax
import pytest

import jprune
from tests.law import check_law, random_masks, relative_error
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
