"""What of a net's outputs can depend on its inputs: a question about zeros, not about one input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune.graph.look.reach import reached
from tests.nets import FIRST_CUT, draw


def sparse(variables, seed, density):
    """Weights of which most are 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf * (rng.uniform(size=leaf.shape) < density), variables)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", range(len(FIRST_CUT)))
def test_whatever_has_a_gradient_is_reached(number, seed):
    net = FIRST_CUT[number]
    variables, inputs = draw(net)
    variables = sparse(variables, seed, 0.3)
    found = reached(net.fn, variables, *inputs)
    jacobians = jax.tree.leaves(jax.jacrev(net.fn, argnums=1)(variables, *inputs))
    for part, jacobian in zip(found, jacobians):
        moves = np.asarray(jacobian).reshape(*part.shape, -1).any(axis=-1)
        assert not (moves & ~part).any()


def test_nothing_is_reached_behind_a_layer_of_zeros():
    def fn(v, x):
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, v["a"], (1, 1), "SAME"))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        x = jax.nn.silu(x * v["scale"] + v["shift"]).mean((2, 3))
        return x @ v["b"], x

    rng = np.random.default_rng(0)
    shapes = {"a": (5, 3, 3, 3), "scale": (5, 1, 1), "shift": (5, 1, 1), "b": (5, 4)}
    v = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    x = np.zeros((2, 3, 8, 8))  # a ReLU may be silent here: no matter
    out, hidden = reached(fn, v, x)
    assert out.all()
    assert hidden.all()
    v["scale"][:3], v["b"][:, 1] = 0, 0
    out, hidden = reached(fn, v, x)
    assert hidden.tolist() == [[False] * 3 + [True] * 2] * 2
    assert out.tolist() == [[True, False, True, True]] * 2
    v["a"][3:] = 0
    assert not any(part.any() for part in reached(fn, v, x))


def test_bodies_are_read_and_loops_are_taken_as_open():
    v = {"a": np.array([[1.0, 0.0]]), "b": np.ones((2, 2))}
    x = np.ones((1, 1))
    jitted = lambda v, x: jax.checkpoint(jax.jit(lambda x: jax.nn.relu(x @ v["a"])))(x)
    assert reached(jitted, v, x)[0].tolist() == [[True, False]]
    loop = lambda v, x: jax.lax.fori_loop(0, 3, lambda _, h: h @ v["b"], x @ v["a"])
    assert reached(loop, v, x)[0].all()
    nothing = {**v, "a": np.zeros((1, 2))}
    assert not reached(loop, nothing, x)[0].any()
