"""Erdos-Renyi densities: the checks' numbers, water-filling as an oracle, traced densities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import allocate, criteria, errors, schedules, sparsify
from jprune.base import Budget
from tests.contracts.own import conv


def layers_of(fn, variables, x):
    return [*jprune.trace(fn, variables, x).layers.values()]


def chain(sizes):
    """Groups of dense layers of these sizes."""
    shapes = {f"w{n}": jnp.ones(pair) for n, pair in enumerate(itertools.pairwise(sizes))}

    def fn(v, x):
        for name in shapes:
            x = jnp.maximum(x @ v[name], 0)
        return x

    return jprune.trace(fn, shapes, jnp.zeros((1, sizes[0]))), shapes


def convolutions(layout="NHWC"):
    shapes = [(3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 64)]
    if layout == "NCHW":
        shapes = [(o, i, h, w) for h, w, i, o in shapes]
    variables = {f"w{n}": jnp.ones(shape) for n, shape in enumerate(shapes)}

    def fn(v, x):
        for name in v:
            x = jax.nn.relu(conv(x, v[name], layout=layout))
        return x

    shape = (1, 6, 6, 3) if layout == "NHWC" else (1, 3, 6, 6)
    return jprune.trace(fn, variables, jnp.zeros(shape)), variables


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_densities_of_convolutions_are_the_papers(layout):
    """Checks B8, in both layouts."""
    groups, variables = convolutions(layout)
    layers = [*groups.layers.values()]
    found = allocate.erdos_renyi_densities(layers, 0.2)
    np.testing.assert_allclose(found, [1, 0.3201923, 0.1512019], rtol=1e-6)
    sizes = np.array([np.prod(layer.shape) for layer in layers])
    assert found @ sizes / sizes.sum() == pytest.approx(0.2, rel=1e-12)
    masks = allocate.erdos_renyi(groups)(variables, Budget(density=0.2))
    assert [int(mask.sum()) for mask in masks.values()] == [432, 1475, 2787]


def test_densities_of_lenet_300_100_are_the_papers():
    """Checks B8: the last layer stays dense."""
    layers = [*chain([784, 300, 100, 10])[0].layers.values()]
    found = allocate.erdos_renyi_densities(layers, 0.1)
    np.testing.assert_allclose(found, [0.0795678, 0.2301887, 1.0], rtol=1e-6)


def test_windows_count_or_not():
    """A kernel of 1 x 1 has a sum of two more than the dense layer; ER sees them as the same."""
    variables = {"a": jnp.ones((1, 1, 4, 6)), "b": jnp.ones((6, 4))}
    fn = lambda v, x: jnp.maximum(conv(x, v["a"]), 0).mean((1, 2)) @ v["b"]
    layers = layers_of(fn, variables, jnp.zeros((1, 3, 3, 4)))
    erk = allocate.erdos_renyi_densities(layers, 0.5)
    assert erk[0] / erk[1] == pytest.approx(12 / 10)
    assert allocate.erdos_renyi_densities(layers, 0.5, window=False) == pytest.approx([0.5, 0.5])


def test_members_of_an_ensemble_are_kernels_side_by_side():
    """Three nets in one array have the density of one of them."""
    fn = lambda v, x: jnp.einsum("mbh,mho->mbo", jnp.einsum("mbi,mih->mbh", x, v["a"]), v["b"])
    variables = {"a": jnp.ones((3, 20, 30)), "b": jnp.ones((3, 30, 2))}
    found = allocate.erdos_renyi_densities(layers_of(fn, variables, jnp.ones((3, 5, 20))), 0.2)
    alone = allocate.erdos_renyi_densities([*chain([20, 30, 2])[0].layers.values()], 0.2)
    np.testing.assert_allclose(found, alone, rtol=1e-12)


LAYER = chain([2, 3])[0].layers["w0"]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    density=st.floats(0.01, 1.0),
)
def test_densities_are_what_bisection_finds(sizes, density):
    """min(1, eps r) of one eps for all layers, the eps found by halving."""
    layers = [LAYER._replace(shape=pair) for pair in itertools.pairwise(sizes)]
    n = np.array([np.prod(layer.shape) for layer in layers], float)
    r = np.array([sum(layer.shape) / np.prod(layer.shape) for layer in layers])
    low, high = 0.0, 1 / r.min()
    for _ in range(200):
        eps = (low + high) / 2
        kept = n @ np.minimum(1, eps * r)
        low, high = (eps, high) if kept < density * n.sum() else (low, eps)
    found = allocate.erdos_renyi_densities(layers, density)
    np.testing.assert_allclose(found, np.minimum(1, high * r), rtol=1e-6)


def test_a_traced_density_shares_out_as_a_number_does():
    layers = [*chain([20, 30, 2, 9])[0].layers.values()]
    traced = jax.jit(lambda d: jnp.stack(allocate.erdos_renyi_densities(layers, d)))
    for density in (0.01, 0.3, 0.6, 0.9, 0.97, 1.0):
        found = allocate.erdos_renyi_densities(layers, density)
        np.testing.assert_allclose(traced(density), found, rtol=1e-5)


def test_the_best_of_every_kernel_are_kept_and_biases_have_no_mask():
    variables = {"w": jnp.arange(30.0).reshape(5, 6), "b": jnp.ones(6), "v": -jnp.ones((6, 2))}
    groups = jprune.trace(
        lambda v, x: jnp.maximum(x @ v["w"] + v["b"], 0) @ v["v"], variables, jnp.ones((1, 5))
    )
    masks = allocate.erdos_renyi(groups)(variables, Budget(density=0.5))
    kept = {name: int(mask.sum()) for name, mask in masks.items() if mask is not None}
    assert kept == {"v": 9, "w": 12}
    np.testing.assert_array_equal(masks["w"], variables["w"] >= 18)
    np.testing.assert_array_equal(masks["v"].ravel(), np.arange(12) < 9)  # ties by index
    assert masks["b"] is None


def test_a_schedule_prunes_at_these_densities_inside_an_optimizer():
    groups, variables = chain([20, 30, 2])
    allocator = allocate.erdos_renyi(groups)
    tx = sparsify.scheduled_prune(criteria.magnitude(), allocator, schedules.one_shot(0.2), every=1)
    params = {name: jnp.asarray(np.random.default_rng(0).normal(size=w.shape), jnp.float32)
              for name, w in variables.items()}  # fmt: skip
    still = jax.tree.map(jnp.zeros_like, params)
    updates, state = jax.jit(tx.update)(still, tx.init(params), params)
    sparse = optax.apply_updates(params, updates)
    assert [int((w != 0).sum()) for w in sparse.values()] == [80, 52]
    by_hand = allocator(criteria.magnitude().score((), params), Budget(density=0.2))
    jax.tree.map(np.testing.assert_array_equal, jprune.masks_of(state), by_hand)


def test_what_cannot_be_is_refused():
    groups, variables = chain([4, 5, 2])
    layers = [*groups.layers.values()]
    for density in (0.0, 1.5, float("nan")):
        with pytest.raises(errors.ArgumentError, match="outside"):
            allocate.erdos_renyi_densities(layers, density)
    with pytest.raises(errors.ArgumentError, match="no kernel"):
        allocate.erdos_renyi_densities([], 0.5)
    broken = {**variables, "w0": variables["w0"].at[0, 0].set(jnp.nan)}
    with pytest.raises(errors.ArgumentError, match="NaN"):
        allocate.erdos_renyi(groups)(broken, Budget(density=0.5))
    with pytest.raises(errors.StructureError):
        allocate.erdos_renyi(groups)({"other": jnp.ones((2, 2))}, Budget(density=0.5))
    with pytest.raises(errors.ArgumentError, match="cost model"):
        allocate.erdos_renyi(groups)(variables, Budget(macs=0.5))
