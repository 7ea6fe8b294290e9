"""What makes sparse takes parameters of any tree, the variables whole or a part of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import blocks, errors, sparsify

SHAPES = {"w1": (3, 3, 2, 6), "b1": (1, 1, 1, 6), "w2": (6, 3)}
TREES = {
    "params": lambda leaves: {"params": leaves, "stats": {"n": jnp.ones(6)}},
    "flat": lambda leaves: leaves,
    "list": lambda leaves: [leaves["w1"], leaves["b1"], leaves["w2"]],
    "nested": lambda leaves: {"a": {"w": leaves["w1"], "b": leaves["b1"]}, "z": (leaves["w2"],)},
}
TRANSFORMATIONS = {
    "group_lasso": lambda groups: optax.chain(
        optax.sgd(0.1), sparsify.group_lasso(blocks.filters(groups), strength=13.0, rate=0.1)
    ),
    "columns and filters": lambda groups: optax.chain(
        optax.sgd(0.1),
        sparsify.group_lasso(
            (blocks.columns(groups), blocks.filters(groups)),
            strength={"column": 12.0, "filter": 20.0},
            rate=lambda step: 0.1 / (1 + step),
            least=1,
        ),
    ),
    "l1_decay": lambda groups: optax.chain(
        optax.sgd(0.1), sparsify.l1_decay(blocks.weights(groups), strength=0.5, rate=0.1)
    ),
    "low_rank": lambda groups: optax.chain(
        optax.sgd(0.1), sparsify.low_rank(groups, strength=30.0, rate=0.1)
    ),
    "admm": lambda groups: sparsify.admm(
        optax.sgd(0.1), sparsify.projection(blocks.filters(groups), 0.5), rho=1.0, every=2
    ),
}


def leaves():
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}


def net(variables, x):
    """A convolution with a bias [1, 1, 1, C] and a dense layer, in whichever tree."""
    arrays = jax.tree.leaves(variables)
    by_shape = {jnp.shape(leaf): leaf for leaf in arrays}
    kernel, bias, out = (by_shape[SHAPES[name]] for name in SHAPES)
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return jax.nn.relu(x + bias).mean((1, 2)) @ out


def moved(name, tree):
    """{leaf of SHAPES: it after three steps}, in a tree."""
    variables = TREES[tree](leaves())
    groups = jprune.trace(net, variables, jnp.ones((1, 5, 5, 2)))
    params = variables["params"] if tree == "params" else variables
    tx = TRANSFORMATIONS[name](groups)
    state = tx.init(params)
    for _ in range(3):
        gradients = jax.tree.map(lambda leaf: 0.1 * leaf, params)
        updates, state = jax.jit(tx.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    by_shape = {leaf.shape: np.asarray(leaf) for leaf in jax.tree.leaves(params)}
    return {name: by_shape[shape] for name, shape in SHAPES.items()}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_tree_makes_no_difference(name):
    expected = moved(name, "flat")
    assert any((leaf == 0).any() for leaf in expected.values()) or name == "admm"
    for tree in TREES:
        for path, leaf in moved(name, tree).items():
            np.testing.assert_allclose(leaf, expected[path], atol=1e-6)


def test_a_bias_is_no_kernel_whatever_its_rank():
    decayed = moved("l1_decay", "flat")["b1"]
    np.testing.assert_allclose(decayed, 0.99**3 * leaves()["b1"], rtol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_parameters_of_another_net_and_missing_ones_are_refused(name):
    tx = TRANSFORMATIONS[name](jprune.trace(net, leaves(), jnp.ones((1, 5, 5, 2))))
    with pytest.raises(errors.StructureError, match="the groups are of another net"):
        tx.init({"other": jnp.ones(2)})
    with pytest.raises(errors.ArgumentError, match="needs the parameters"):
        tx.update(leaves(), tx.init(leaves()))


def test_strengths_are_of_blocks_that_are_there():
    filters = blocks.filters(jprune.trace(net, leaves(), jnp.ones((1, 5, 5, 2))))
    with pytest.raises(errors.ArgumentError, match="strength is of the filters w2"):
        sparsify.group_lasso(filters, {"w2": 0.1}, 0.1)
    with pytest.raises(errors.ArgumentError, match="each by 0 or more"):
        sparsify.group_lasso(filters, -1.0, 0.1)
    with pytest.raises(errors.ArgumentError, match="strength is of row; of blocks of several"):
        sparsify.group_lasso([filters], {"row": 0.1}, 0.1)
