"""Plans round-trip through JSON, replay on the same net, and refuse another."""

import json

import jax
import jax.numpy as jnp
import pytest

import jprune
from jprune.graph.plans import plan_of, replay
from tests.nets import FIRST_CUT, draw
from tests.test_law import random_masks


def planned(net):
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = random_masks(groups)
    plan = plan_of(net.fn, variables, *inputs, groups=groups, masks=masks)
    return variables, inputs, groups, masks, json.loads(json.dumps(plan))


def test_a_replayed_plan_gives_the_same_small_arrays():
    net = FIRST_CUT[4]
    variables, inputs, groups, masks, plan = planned(net)
    again, replayed = replay(plan, net.fn, variables, *inputs)
    small = jprune.slim_params(groups, masks, variables)
    assert jax.tree.all(
        jax.tree.map(jnp.array_equal, small, jprune.slim_params(again, replayed, variables))
    )


def test_a_changed_net_is_refused_and_the_change_named():
    net = FIRST_CUT[1]
    variables, inputs, _, _, plan = planned(net)
    wider = {**variables, "conv2": jnp.ones((3, 3, 5, 8)), "conv3": jnp.ones((3, 3, 8, 6))}
    wider["norm2"] = jax.tree.map(lambda _: jnp.ones(8), variables["norm2"])
    with pytest.raises(jprune.errors.StructureError, match=r"conv2 had shape \[3, 3, 5, 7\]"):
        replay(plan, net.fn, wider, *inputs)
    with pytest.raises(jprune.errors.StructureError, match="equations"):
        replay(plan, lambda v, x: jnp.tanh(net.fn(v, x)), variables, *inputs)
    with pytest.raises(jprune.errors.StructureError, match="schema 99"):
        replay({**plan, "schema": 99}, net.fn, variables, *inputs)


def test_the_fingerprint_does_not_depend_on_the_place_of_the_code():
    net = FIRST_CUT[0]
    variables, inputs, groups, masks, plan = planned(net)
    elsewhere = lambda v, x: net.fn(v, x)
    other = plan_of(elsewhere, variables, *inputs, groups=groups, masks=masks)
    assert other["sha256"] == plan["sha256"]
