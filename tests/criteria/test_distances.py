"""Distances between units: worked cases, and what does not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import criteria, errors
from jprune.criteria.distances import METRICS, sums

FILTERS = np.array([[0.7, 1.5], [-1, -1.8], [-1.2, -1.9], [-0.1, 1.9], [-1.8, -1.2]])
EXPECTED = {
    "euclidean": [12.18111175, 8.74363559, 8.99643775, 12.19385574, 9.13716225],
    "manhattan": [16.7, 11.3, 11.8, 15.5, 12.7],
    "cosine": [5.96132125, 3.95754738, 3.89651782, 5.2911761, 3.56244741],
}


@pytest.mark.parametrize("metric", METRICS)
def test_the_worked_case_and_which_filter_goes_first(metric):
    """Checks [34] P1; the norms of the same filters say two others."""
    np.testing.assert_allclose(sums(FILTERS, metric), EXPECTED[metric], rtol=1e-6)
    traced = jax.jit(lambda f: sums(f, metric))(jnp.asarray(FILTERS, jnp.float32))
    np.testing.assert_allclose(traced, EXPECTED[metric], rtol=1e-5)
    assert np.argmin(EXPECTED[metric]) == {"euclidean": 1, "manhattan": 1, "cosine": 4}[metric]
    l1, l2 = np.abs(FILTERS).sum(1), np.sqrt((FILTERS**2).sum(1))
    np.testing.assert_allclose(l1, [2.2, 2.8, 3.1, 2.0, 3.0])
    np.testing.assert_allclose(
        l2, [1.65529454, 2.05912603, 2.24722051, 1.90262976, 2.16333077], rtol=1e-7
    )
    assert (np.argmin(l1), np.argmin(l2)) == (3, 0)


def test_the_point_in_the_middle_goes_and_not_the_shortest():
    points = np.array([[0, 0], [1, 0], [0, 1], [0.4, 0.4], [5, 5]])
    expected = [9.636753, 9.538448, 9.538448, 8.513288, 26.382699]
    np.testing.assert_allclose(sums(points), expected, atol=1e-6)


def test_what_changes_nothing():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(7, 4))
    for metric in ("euclidean", "manhattan"):
        np.testing.assert_allclose(sums(points + 3.0, metric), sums(points, metric), rtol=1e-9)
    lengths = rng.uniform(0.1, 9, (7, 1))
    np.testing.assert_allclose(sums(points * lengths, "cosine"), sums(points, "cosine"), rtol=1e-9)


def test_units_of_zeros_are_together_and_no_number_is_undefined():
    points = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert sums(points, "euclidean").tolist() == [5.0, 5.0, 10.0]
    assert sums(points, "cosine").tolist() == [2.0, 2.0, 2.0]
    slope = jax.jit(lambda f: sums(f, "cosine"))(jnp.asarray(points))
    assert np.isfinite(slope).all()


def test_coupled_layers_are_one_point():
    """In a sum of two layers a unit is the kernels of both."""
    rng = np.random.default_rng(1)
    shapes = {"a": (3, 5), "b": (2, 5), "out": (5, 2)}
    variables = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    fn = lambda v, x: jax.nn.relu(x @ v["a"] + x[:, :2] @ v["b"]) @ v["out"]
    groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
    ((name, scores),) = jprune.run_criterion(criteria.distances(groups), variables, ()).items()
    both = np.concatenate([variables["a"], variables["b"]]).T
    expected = np.sqrt(((both[:, None] - both[None]) ** 2).sum(-1)).sum(1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert groups.sizes[name] == 5
    with pytest.raises(errors.ArgumentError, match="euclidean, manhattan, cosine"):
        criteria.distances(groups, "l2")
