"""Residual branches as units, and leaf types that slim nets execute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune.forms.factored import Factored
from jprune.forms.rows import Rows
from jprune.forms.thin import Thin
from tests.graph.test_law import relative_error
from tests.nets import FIRST_CUT, Net, conv, draw, head, head_shapes

RESNET = FIRST_CUT[2]
BRANCHES = ("branch/conv2a", "branch/conv2b")


def traced(net=RESNET):
    variables, inputs = draw(net)
    return variables, inputs, jprune.trace(net.fn, variables, *inputs)


def convolutions(fn, *args):
    return str(jax.make_jaxpr(fn)(*args)).count("conv_general_dilated[")


def test_branches_and_their_leaves():
    _, _, groups = traced()
    assert tuple(branch.name for branch in groups.branches) == BRANCHES
    assert set(groups.branches[0].leaves) == {
        *("conv1a", "conv2a"),
        *(f"norm{i}a/{part}" for i in "12" for part in ("mean", "var", "scale", "shift")),
    }


def test_a_projected_block_has_no_branch():
    assert traced(FIRST_CUT[3])[2].branches == ()


@pytest.mark.parametrize("dead", [(0,), (1,), (0, 1)])
def test_a_removed_branch_is_a_gate_of_zero_and_its_equations_are_gone(dead):
    variables, inputs, groups = traced()
    masks = {BRANCHES[i]: np.array([False]) for i in dead}
    masks["conv1b"] = np.arange(6) < 4
    small = jprune.slim_params(groups, masks, variables)
    small_fn = jprune.slim(RESNET.fn, groups, masks)
    gates = {BRANCHES[i]: jnp.zeros(1) for i in dead}
    masked = jprune.apply_masks(
        variables, jprune.expand(groups, {"conv1b": masks["conv1b"]}, ("in",))
    )
    value = jprune.gated(RESNET.fn, groups, "join")(masked, gates, *inputs)
    assert relative_error(value, small_fn(small, *inputs)) <= 1e-5
    assert convolutions(RESNET.fn, variables, *inputs) == 5
    assert convolutions(small_fn, small, *inputs) == 5 - 2 * len(dead)
    assert all((small["conv2" + "ab"[i]] is None) == (i in dead) for i in (0, 1))


def test_a_gate_of_one_at_a_join_changes_nothing():
    variables, inputs, groups = traced()
    gates = {name: jnp.ones(1) for name in BRANCHES}
    value = jprune.gated(RESNET.fn, groups, "join")(variables, gates, *inputs)
    assert relative_error(RESNET.fn(variables, *inputs), value) == 0


def test_the_cost_of_removed_branches_is_gone():
    variables, inputs, groups = traced()
    masks = {BRANCHES[0]: np.array([False]), "stem": np.arange(8) < 5}
    model = jprune.cost_model(RESNET.fn, variables, *inputs, groups=groups)
    small_fn = jprune.slim(RESNET.fn, groups, masks)
    small = jprune.slim_params(groups, masks, variables)
    assert model(masks)[:2] == jprune.cost(small_fn, small, *inputs)[:2]


def test_statistics_of_a_removed_branch_become_none():
    def train(v, x):
        h = conv(x, v["params"]["stem"])
        b = conv(jax.nn.relu(h), v["params"]["branch"])
        mean = b.mean((0, 1, 2))
        stats = {"mean": 0.9 * v["stats"]["mean"] + 0.1 * mean}
        return (h + jax.nn.sigmoid(b - mean)).mean((1, 2)) @ v["params"]["head"], {"stats": stats}

    def infer(v, x):
        h = conv(x, v["params"]["stem"])
        b = conv(jax.nn.relu(h), v["params"]["branch"])
        return (h + jax.nn.sigmoid(b - v["stats"]["mean"])).mean((1, 2)) @ v["params"]["head"]

    shapes = {
        "params": {"stem": (3, 3, 3, 5), "branch": (3, 3, 5, 5), "head": (5, 4)},
        "stats": {"mean": (5,)},
    }
    variables, (x,) = draw(Net("train", infer, shapes, ((2, 6, 7, 3),), {}))
    groups = jprune.trace(infer, variables, x)
    masks = {groups.branches[0].name: np.array([False])}
    small = jprune.slim_params(groups, masks, variables)
    out, new = jprune.slim(train, groups, masks)(small, x)
    assert new == {"stats": {"mean": None}} == {"stats": small["stats"]}
    plain = conv(x, variables["params"]["stem"]).mean((1, 2)) @ variables["params"]["head"]
    assert relative_error(plain, out) < 1e-5


def two_layers(v, x):
    return head(jax.nn.gelu(conv(x, v["kernel"], 2, ((1, 0), (0, 2)), dilation=2)), v)


TWO = Net(
    "two",
    two_layers,
    {"kernel": (3, 2, 5, 6), "head": head_shapes(6)},
    ((2, 9, 8, 5),),
    {"kernel": 6},
)


@pytest.mark.parametrize("form", ["thin", "rows", "factored"])
def test_a_leaf_type_equals_its_dense_kernel_in_value_and_gradient(form):
    variables, inputs, groups = traced(TWO)
    rng = np.random.default_rng(3)
    kernel = variables["kernel"]
    leaf = {
        "thin": Thin.of(kernel, rng.random((3, 2, 5)) < 0.4),
        "rows": Rows.of(kernel, np.arange(5) % 2 == 0, np.arange(6) != 1),
        "factored": Factored(
            *(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 2), (3, 2, 2, 3), (3, 6)))
        ),
    }[form]
    small_fn = jprune.slim(two_layers, groups, {})
    loss = lambda leaf: (small_fn({**variables, "kernel": leaf}, *inputs) ** 2).sum()
    value, gradient = jax.value_and_grad(loss)(leaf)
    dense_loss = lambda leaf: (
        two_layers({**variables, "kernel": leaf.dense()}, *inputs) ** 2
    ).sum()
    dense_value, dense_gradient = jax.value_and_grad(dense_loss)(leaf)
    assert float(abs(value - dense_value)) <= 1e-5 * float(abs(dense_value))
    assert relative_error(dense_gradient, gradient) <= 1e-5


def test_thin_columns_leave_a_thin_patch_matrix():
    variables, inputs, groups = traced(TWO)
    taps = np.arange(30).reshape(3, 2, 5) % 3 == 0
    thin = {**variables, "kernel": Thin.of(variables["kernel"], taps)}
    text = str(jax.make_jaxpr(jprune.slim(two_layers, groups, {}))(thin, *inputs))
    assert "conv_general_dilated" not in text
    assert ",10]" in text
    assert thin["kernel"].weights.shape == (10, 6)


def test_a_leaf_type_refuses_a_grouped_convolution():
    def fn(v, x):
        return conv(x, v["kernel"], groups=2).mean((1, 2))

    variables = {"kernel": jnp.ones((3, 3, 2, 6))}
    x = jnp.ones((1, 5, 5, 4))
    groups = jprune.trace(fn, variables, x)
    leaf = {"kernel": Thin.of(variables["kernel"], np.ones((3, 3, 2), bool))}
    with pytest.raises(jprune.errors.StructureError, match="feature groups"):
        jprune.slim(fn, groups, {})(leaf, x)
