"""Primitives that newer versions of JAX write for what older ones spell out: `make newest`."""

import jax
import jax.numpy as jnp
import numpy as np

import jprune
from jprune.jaxprs import program_of, scan_parts
from tests.law import check_law


def stacked(variables, x):
    """Two layers side by side on a new axis, read position by position, then taken apart."""
    a, b = jnp.tanh(x @ variables["a"]), jax.nn.softplus(x @ variables["b"])
    pair = jnp.stack([a, b], axis=1)
    first, second = jnp.unstack(pair * variables["scale"][:, None], axis=1)
    return jnp.einsum("nkc,kco->no", pair, variables["both"]) + (first * second) @ variables["one"]


SHAPES = {"a": (3, 7), "b": (3, 7), "both": (2, 7, 4), "one": (7, 4), "scale": (2,)}


def test_stack_and_unstack():
    rng = np.random.default_rng(0)
    variables = {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
    x = rng.normal(size=(5, 3)).astype(np.float32)
    groups = jprune.trace(stacked, variables, x, strict=True)
    assert groups.sizes == {"a": 7}  # channel c of both layers is read as one
    check_law(stacked, variables, (x,), {"a": np.arange(7) % 3 != 1}, groups, 1e-5)


def test_logarithm_to_base_two():
    fn = lambda v, x: jnp.log2(1 + jnp.square(x @ v["first"])) @ v["second"]
    rng = np.random.default_rng(0)
    variables = {
        "first": rng.normal(size=(3, 6)).astype(np.float32),
        "second": rng.normal(size=(6, 4)).astype(np.float32),
    }
    x = rng.normal(size=(5, 3)).astype(np.float32)
    groups = jprune.trace(fn, variables, x, strict=True)
    assert groups.sizes == {"first": 6}
    check_law(fn, variables, (x,), {"first": np.arange(6) % 2 == 0}, groups, 1e-5)


def test_parts_of_a_scan():
    def fn(weights, start, layers):
        turn = lambda carry, x: ((carry[0] @ weights + x, carry[1] + 1), carry[0])
        return jax.lax.scan(turn, (start, 0), layers)

    program, _ = program_of(fn, jnp.ones((3, 3)), jnp.ones((2, 3)), jnp.ones((4, 2, 3)))
    (scan,) = (equation for equation in program.equations if equation.name == "scan")
    assert scan_parts(scan) == (1, 2)
