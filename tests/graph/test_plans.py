"""Plans round-trip through JSON, replay on the same net, and refuse another."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune.forms.csr import CSR
from jprune.forms.factored import Factored
from jprune.forms.rows import Rows
from jprune.forms.thin import Thin
from jprune.graph.shrink.plans import held, plan_of, replay
from tests.graph.test_open import NORMS, net_with
from tests.law import random_masks, relative_error
from tests.nets import FIRST_CUT, Net, conv, draw, head, head_shapes

RESNET = FIRST_CUT[2]


def planned(net):
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = random_masks(groups)
    plan = plan_of(net.fn, variables, *inputs, groups=groups, masks=masks)
    return variables, inputs, groups, masks, json.loads(json.dumps(plan))


def same_arrays(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, one, other))


def test_a_replayed_plan_gives_the_same_small_arrays():
    net = FIRST_CUT[4]
    variables, inputs, groups, masks, plan = planned(net)
    again, replayed = replay(plan, net.fn, variables, *inputs)
    cut = lambda groups, masks: jprune.slim_params(groups, masks, variables)
    same_arrays(cut(groups, masks), cut(again, replayed))


def test_removed_branches_are_in_the_plan():
    variables, inputs = draw(RESNET)
    groups = jprune.trace(RESNET.fn, variables, *inputs)
    masks = {"branch/conv2a": np.array([False]), "branch/conv2b": np.array([True])}
    masks["conv1b"] = np.arange(6) < 4
    plan = plan_of(RESNET.fn, variables, *inputs, groups=groups, masks=masks)
    assert plan["branches"] == ["branch/conv2a"]
    again, replayed = replay(json.loads(json.dumps(plan)), RESNET.fn, variables, *inputs)
    small = jprune.slim_params(groups, masks, variables)
    assert small["conv2a"] is None
    same_arrays(small, jprune.slim_params(again, replayed, variables))


def two_convolutions(v, x):
    return head(jax.nn.sigmoid(conv(jax.nn.gelu(conv(x, v["a"], 2)), v["b"])), v)


TWO = Net(
    "two",
    two_convolutions,
    {"a": (3, 2, 5, 6), "b": (2, 3, 6, 7), "head": head_shapes(7)},
    ((2, 9, 8, 5),),
    {"a": 6, "b": 7},
)


def two_with_outputs_first(v, x):
    """The same net, its second kernel written [outputs, inputs, window...]."""
    return two_convolutions({**v, "b": v["b"].transpose(2, 3, 1, 0)}, x)


@pytest.mark.parametrize("axes", [None, (2, 3, 1, 0)], ids=["in order", "outputs first"])
@pytest.mark.parametrize("form", ["thin", "rows", "csr", "factored"])
def test_plans_keep_leaf_types(form, axes, float64):
    variables, inputs = draw(TWO, dtype=jnp.float64)
    fn = TWO.fn
    if axes is not None:
        fn, variables = (
            two_with_outputs_first,
            {**variables, "b": variables["b"].transpose(3, 2, 0, 1)},
        )
    groups = jprune.trace(fn, variables, *inputs)
    masks = {"a": np.arange(6) != 2}
    small = jprune.slim_params(groups, masks, variables)
    rng, kernel = np.random.default_rng(4), small["b"]
    leaf = {
        "thin": Thin.of(kernel, rng.random((2, 3, 5)) < 0.5, np.arange(7) != 3, axes),
        "rows": Rows.of(kernel, np.arange(5) != 1, np.arange(7) % 2 == 0, axes),
        "csr": CSR.of(kernel, rng.random(kernel.shape) < 0.2, axes),
        "factored": Factored(
            *(jnp.asarray(rng.normal(size=shape)) for shape in ((5, 2), (2, 3, 2, 4), (4, 7))),
            axes=axes,
        ),
    }[form]
    plan = plan_of(fn, variables, *inputs, groups=groups, masks=masks, small={**small, "b": leaf})
    plan = json.loads(json.dumps(plan))
    assert list(plan["leaf_types"]) == ["b"]
    assert plan["leaf_types"]["b"]["form"] == form
    again, replayed = replay(plan, fn, variables, *inputs)
    restored = held(plan, {**small, "b": leaf.dense()})
    assert type(restored["b"]) is type(leaf)
    shapes = lambda leaf: [part.shape for part in jax.tree.leaves(leaf)]
    assert shapes(restored["b"]) == shapes(leaf)
    assert relative_error(leaf.dense(), restored["b"].dense()) < 1e-12
    run = lambda v: jprune.slim(fn, again, replayed)(v, *inputs)
    expected = run({**small, "b": leaf.dense()})
    assert relative_error(expected, run({**small, "b": leaf})) < 1e-12
    assert relative_error(expected, run(restored)) < 1e-12


def test_a_changed_net_is_refused_and_the_change_named():
    net = FIRST_CUT[1]
    variables, inputs, _, _, plan = planned(net)
    wider = {**variables, "conv2": jnp.ones((3, 3, 5, 8)), "conv3": jnp.ones((3, 3, 8, 6))}
    wider["norm2"] = jax.tree.map(lambda _: jnp.ones(8), variables["norm2"])
    with pytest.raises(jprune.errors.StructureError, match=r"conv2 had shape \[3, 3, 5, 7\]"):
        replay(plan, net.fn, wider, *inputs)
    with pytest.raises(jprune.errors.StructureError, match="it had 0 equations 'tanh' and has 1"):
        replay(plan, lambda v, x: jnp.tanh(net.fn(v, x)), variables, *inputs)
    with pytest.raises(jprune.errors.StructureError, match="schema 99"):
        replay({**plan, "schema": 99}, net.fn, variables, *inputs)


CHANGES = {
    # what the net does before and after, and the primitive that the message names
    "stride": (lambda x: x[:, ::2], lambda x: x[:, 1::2], "slice"),
    "order of channels": (
        lambda x: x[..., np.array([1, 0, 2, 3, 4])],
        lambda x: x[..., np.array([0, 1, 2, 4, 3])],
        "add int32",  # the index is normalised first
    ),
    "slope": (
        lambda x: jnp.where(x > 0, x, 0.1 * x),
        lambda x: jnp.where(x > 0, x, 0.3 * x),
        "mul",
    ),
    "order of sums": (lambda x: x + x * 3.0, lambda x: x * 3.0 + x, "add"),
    "window": (
        lambda x: jax.lax.cumsum(x, 1),
        lambda x: jax.lax.cumsum(x, 1, reverse=True),
        "cumsum",
    ),
    "inside a loop": (
        lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * 0.5, x),
        lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * 0.7, x),
        "scan",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_parameter_or_constant_is_named(change):
    before, after, primitive = CHANGES[change]
    net = lambda function: lambda v, x: head(jax.nn.sigmoid(function(conv(x, v["a"]))), v)
    shapes = {"a": (3, 3, 3, 5), "head": head_shapes(5)}
    variables, inputs = draw(Net(change, net(before), shapes, ((2, 6, 8, 3),), {}))
    groups = jprune.trace(net(before), variables, *inputs)
    plan = plan_of(net(before), variables, *inputs, groups=groups, masks=random_masks(groups))
    replay(plan, net(before), variables, *inputs)
    message = f"first equation that differs is now {primitive}.*test_plans.py"
    with pytest.raises(jprune.errors.StructureError, match=message):
        replay(plan, net(after), variables, *inputs)


def test_a_net_that_was_traced_with_options_is_replayed_with_them():
    net = net_with(NORMS["layer"])
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs, open=("a",))
    masks = {"a": np.arange(6) < 4}
    plan = plan_of(net.fn, variables, *inputs, groups=groups, masks=masks)
    with pytest.raises(jprune.errors.StructureError, match="'a' has 6 units in the plan and no"):
        replay(plan, net.fn, variables, *inputs)
    _, replayed = replay(plan, net.fn, variables, *inputs, groups=groups)
    assert replayed["a"].tolist() == masks["a"].tolist()


def test_the_fingerprint_does_not_depend_on_the_place_of_the_code():
    net = FIRST_CUT[0]
    variables, inputs, groups, masks, plan = planned(net)
    elsewhere = lambda v, x: net.fn(v, x)
    other = plan_of(elsewhere, variables, *inputs, groups=groups, masks=masks)
    assert other["sha256"] == plan["sha256"]
    assert other["equations"] == plan["equations"]
