"""Masks from what is alive: patterns lifted to units, [3], and several kinds together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import blocks, errors
from tests.graph.test_open import NORMS, net_with
from tests.law import quick, relative_error
from tests.nets import FIRST_CUT, draw
from tests.patterns.attention import ATTENTION


def everything(variables):
    """Weight masks that keep all."""
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), variables)


def lifted_error(net, masks, open=()):
    """Units of a pattern, and how far slim is from the masked net, in float64."""
    variables, inputs = draw(net, dtype=jnp.float64)
    groups = jprune.trace(net.fn, variables, *inputs, open=open)
    units = blocks.lift(groups, masks)
    return units, error_of_removal(net, groups, units, masks, variables, inputs)


def error_of_removal(net, groups, units, masks, variables, inputs):
    """How far the net without some units is from the masked one."""
    small_fn = jprune.slim(net.fn, groups, units)

    def both(variables, *inputs):
        masked = jprune.apply_masks(variables, masks)
        small = jprune.slim_params(groups, units, masked)
        return net.fn(masked, *inputs), small_fn(small, *inputs)

    return relative_error(*quick(both, variables, *inputs))


def gone(units):
    """{group: units that went}."""
    return {name: np.flatnonzero(~mask).tolist() for name, mask in units.items() if not mask.all()}


def test_a_pattern_that_leaves_a_unit_no_reader_lifts_to_the_unit(float64):
    net = FIRST_CUT[1]
    masks = everything(draw(net)[0])
    masks["conv2"][:, :, 1] = masks["conv2"][0, 0, 2] = False
    units, error = lifted_error(net, masks)
    assert gone(units) == {"conv1": [1]}
    assert error < 1e-12


def test_a_unit_that_several_layers_read_stays_until_none_does(float64):
    net = FIRST_CUT[2]  # the stream is read by conv1a, conv1b and the head
    masks = everything(draw(net)[0])
    masks["conv1a"][:, :, 3] = masks["conv1b"][:, :, 3] = False
    assert gone(lifted_error(net, masks)[0]) == {}
    masks["head"]["kernel"][3] = False
    units, error = lifted_error(net, masks)
    assert gone(units) == {"stem": [3]}
    assert error < 1e-12


@pytest.mark.parametrize("shift", [True, False], ids=["filter", "filter and norm"])
def test_an_empty_filter_is_no_reason_to_go(shift, float64):
    """Its shift speaks; without one, sigmoid(0) does. Removing it would change the net."""
    net = FIRST_CUT[2]  # conv1a, norm1a, sigmoid, conv2a
    variables, inputs = draw(net, dtype=jnp.float64)
    masks = everything(variables)
    masks["conv1a"][..., 2] = False
    for name in ("mean", "var", "scale", "shift"):
        masks["norm1a"][name][2] = shift
    groups = jprune.trace(net.fn, variables, *inputs)
    assert gone(blocks.lift(groups, masks)) == {}
    removed = {"conv1a": np.arange(5) != 2}
    assert error_of_removal(net, groups, removed, masks, variables, inputs) > 1e-3
    masks["conv2a"][:, :, 2] = False
    units, error = lifted_error(net, masks)
    assert gone(units) == {"conv1a": [2]}
    assert error < 1e-12


def test_what_only_a_dead_unit_was_reading_goes_too(float64):
    net = FIRST_CUT[1]  # conv1, conv2, conv3
    masks = everything(draw(net)[0])
    masks["conv3"][:, :, [0, 4]] = False  # units 0 and 4 of conv2 have no reader
    masks["conv2"][:, :, 3, [1, 2, 3, 5, 6]] = False  # and they alone read unit 3 of conv1
    units, error = lifted_error(net, masks)
    assert gone(units) == {"conv1": [3], "conv2": [0, 4]}
    assert error < 1e-12


def test_heads_and_head_dimensions_lift_apart(float64):
    """A head that the projection does not read; a dimension of q and k without producers."""
    net = next(net for net in ATTENTION if net.name == "multi_head")
    masks = everything(draw(net)[0])
    masks["project"][1] = False
    for name in "qk":
        masks[name][..., 2] = masks[name + "_bias"][:, 2] = False
    masks["q"][..., 3] = masks["q_bias"][:, 3] = False  # k still has it: its place is not empty
    units, error = lifted_error(net, masks)
    assert gone(units) == {"q": [1], "q@2": [2]}
    assert error < 1e-12


def test_an_opened_group_stays_whole(float64):
    """A layer norm counts a channel that nobody reads."""
    net = net_with(NORMS["layer"])
    masks = everything(draw(net)[0])
    masks["b"][:, :, 2] = False
    units, error = lifted_error(net, masks, open=("a",))
    assert gone(units) == {}
    assert error < 1e-12


def test_a_layer_keeps_a_unit(float64):
    net = FIRST_CUT[1]
    masks = everything(draw(net)[0])
    masks["conv2"][...] = False
    units, error = lifted_error(net, masks)
    assert gone(units) == {"conv1": [1, 2, 3, 4]}
    assert error < 1e-12


@pytest.mark.parametrize(
    ("number", "kind", "density"),
    [(0, "kernels", 0.1), (1, "vectors", 0.05), (3, "columns", 0.2)],
    ids=["kernel", "vector", "column"],
)
def test_any_pattern_lifts_exactly(number, kind, density, float64):
    rng = np.random.default_rng(number)
    net = FIRST_CUT[number]
    variables, inputs = draw(net)
    patterns = getattr(blocks, kind)(jprune.trace(net.fn, variables, *inputs))
    alive = {name: rng.random(block.size) < density for name, block in patterns.items()}
    units, error = lifted_error(net, blocks.spread(patterns, alive))
    assert gone(units)
    assert error < 1e-12


def test_spread_refuses_masks_of_other_blocks():
    groups = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.ones((3, 2))}, jnp.ones(3))
    with pytest.raises(errors.StructureError, match=r"masks of these rows are \[2\]"):
        blocks.spread(blocks.rows(groups), {"w": np.ones(3, bool)})
    with pytest.raises(errors.StructureError, match="are of w"):
        blocks.spread(blocks.rows(groups), {"v": np.ones(3, bool)})
    by_hand = blocks.Blocks("row", "weight", dict(blocks.rows(groups)))
    with pytest.raises(errors.ArgumentError, match="belong to no net"):
        blocks.spread(by_hand, {"w": np.ones(2, bool)})


def test_masks_of_several_kinds_meet():
    """A unit goes with its filter or its channel; a column takes nothing else along."""
    fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
    variables = {"a": jnp.ones((2, 4)).at[:, 0].set(0), "b": jnp.ones((4, 3)).at[1].set(0)}
    variables["a"] = variables["a"].at[1].set(0)
    groups = jprune.trace(fn, variables, jnp.ones(2))
    units = blocks.filters(groups), blocks.channels(groups)
    alive = lambda kinds: {each.kind: blocks.alive(each, variables) for each in kinds}
    masks = blocks.masks(units, alive(units))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "a": [False, False, True, True]
    }
    kinds = (*units, blocks.columns(groups))
    of_weights = blocks.masks(kinds, alive(kinds))
    assert np.asarray(of_weights["a"]).tolist() == [[False, False, True, True], [False] * 4]
    assert np.asarray(of_weights["b"]).all(1).tolist() == [False, False, True, True]
    before = {"a": np.array([True, True, False, True])}
    assert blocks.masks(units, alive(units), before)["a"].tolist() == [False, False, False, True]
    with pytest.raises(errors.ArgumentError, match="alive is of filter; of blocks of several"):
        blocks.masks(units, {"filter": {}})
    with pytest.raises(errors.ArgumentError, match="each kind can come once"):
        blocks.masks((units[0], units[0]), {"filter": {}})
