"""Random keys that a net holds, or that stand among its variables, are no channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from tests.law import check_law, quick, random_masks, relative_error
from tests.nets import Net, draw

KEYS = {"typed": jax.random.key(5), "raw": jax.random.PRNGKey(5)}
SHAPES = {"q": (3, 8), "k": (3, 8), "v": (3, 6), "out": (6, 4)}
UNITS = {"q": 8, "v": 6}


def attend(v, x, key):
    """Attention that drops weights, and adds noise to what it returns."""
    drop, noise = jax.random.split(key)
    q, k, w = (jnp.tanh(x @ v[name]) for name in "qkv")
    weights = jax.nn.softmax(q @ k.swapaxes(1, 2))
    weights = jnp.where(jax.random.bernoulli(drop, 0.7, weights.shape), weights, 0.0)
    y = weights @ w
    return (y + 0.1 * jax.random.normal(noise, y.shape)) @ v["out"]


@pytest.fixture
def drawn():
    return draw(Net("attend", attend, SHAPES, ((2, 5, 3),), UNITS))


@pytest.mark.parametrize("kind", KEYS)
def test_a_net_may_hold_its_key(kind, drawn):
    variables, inputs = drawn
    net = lambda v, x: attend(v, x, KEYS[kind])
    groups = jprune.trace(net, variables, *inputs)
    assert groups.sizes == UNITS
    check_law(net, variables, inputs, random_masks(groups), groups, 1e-5)


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_among_the_variables_is_passed_through(kind, drawn):
    variables, inputs = drawn
    variables = {"params": variables, "stream": KEYS[kind]}
    net = lambda v, x: attend(v["params"], x, v["stream"])
    groups = jprune.trace(net, variables, *inputs)
    assert groups.sizes == {f"params/{name}": size for name, size in UNITS.items()}
    masks = random_masks(groups)
    masked = jprune.apply_masks(variables, jprune.expand(groups, masks, roles=("in",)))
    small = jprune.slim_params(groups, masks, variables)
    for tree in (masked, small):
        assert jnp.array_equal(*map(jax.random.key_data, (tree["stream"], KEYS[kind])))
    slim = quick(jprune.slim(net, groups, masks), small, *inputs)
    assert relative_error(quick(net, masked, *inputs), slim) < 1e-5


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_has_no_role_and_no_cost(kind, drawn):
    variables, inputs = drawn
    variables = {"params": variables, "stream": KEYS[kind]}
    net = lambda v, x: attend(v["params"], x, v["stream"])
    groups = jprune.trace(net, variables, *inputs)
    assert not [record for record in groups.frozen if record.leaf == "stream" and record.remedy]
    assert all("stream" not in layer.affine for layer in groups.layers.values())
    cost = jprune.cost(net, variables, *inputs, groups=groups)
    assert cost.params == sum(np.prod(shape) for shape in SHAPES.values())
