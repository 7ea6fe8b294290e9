"""Losses, directions, outputs and memory that curvature and criteria cannot take: they say so."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import criteria, curvature, errors, reconstruct

BATCH = {"image": jnp.array([[2.0, 1.0, 0.5], [1.0, 3.0, -1.0]])}
VARIABLES = {"w": jnp.array([[0.3, 1.0], [0.7, -0.2], [0.1, 0.4]])}


def fn(v, x):
    return x @ v["w"]


def loss(out, batch):
    del batch
    return 0.5 * (out**2).sum(1)


def mean(out, batch):
    return loss(out, batch).mean()


@pytest.mark.parametrize(
    "make",
    [
        criteria.taylor,
        criteria.obd,
        lambda fn, loss: criteria.obd(fn, loss, curvature.fisher()),
        lambda fn, loss: criteria.obd(fn, loss, curvature.recursion()),
    ],
)
def test_a_loss_that_is_a_mean_is_refused(make):
    jprune.run_criterion(make(fn, loss), VARIABLES, [BATCH])
    with pytest.raises(errors.ArgumentError, match=r"shape \(\); a loss is one number"):
        jprune.run_criterion(make(fn, mean), VARIABLES, [BATCH])


def test_a_direction_may_have_statistics_or_none():
    net = lambda v, x: x @ v["params"]["w"] - v["stats"]["m"]
    tree = lambda w, m: {"params": {"w": w}, "stats": {"m": m}}
    direction = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    # E = mean of |x w - m|^2 / 2: H v = X^T X v / n for every output
    x = np.asarray(BATCH["image"])
    expected = x.T @ x @ np.asarray(direction) / 2
    for beside in (jnp.ones(2), None):
        given = tree(VARIABLES["w"], jnp.zeros(2)), BATCH, tree(direction, beside)
        product = curvature.hessian_product(net, loss, *given)
        np.testing.assert_allclose(product["params"]["w"], expected, rtol=1e-5)
        assert product["stats"]["m"] is None
    with pytest.raises(errors.StructureError, match="direction"):
        curvature.hessian_product(net, loss, given[0], BATCH, {"w": direction})


@pytest.mark.parametrize("estimator", [curvature.gauss_newton(), curvature.recursion()])
def test_hessians_in_too_many_outputs_are_refused(estimator):
    wide = {"w": jnp.ones((3, 2100))}
    with pytest.raises(errors.ArgumentError, match=r"2,100 outputs.*fisher\(\)"):
        jprune.run_criterion(criteria.obd(fn, loss, estimator), wide, [BATCH])
    scores = jprune.run_criterion(criteria.obd(fn, loss, curvature.fisher()), wide, [BATCH])
    assert scores["w"].shape == (3, 2100)


def test_surgery_beyond_memory_is_refused_before_any_is_taken():
    long = {"w": jnp.ones((2_000_000, 1))}
    batches = [{"image": jnp.ones((1, 2_000_000))}]
    with pytest.raises(errors.ArgumentError, match=r"29,802 GiB of memory.*block=1000"):
        reconstruct.obs(fn, loss, long, batches, 1)


def test_surgery_takes_no_more_memory_than_it_says():
    size = 600
    rng = np.random.default_rng(0)
    weights = {"w": jnp.asarray(rng.normal(size=(size, 1)), jnp.float32)}
    batches = [{"image": jnp.asarray(rng.normal(size=(8, size)), jnp.float32)}]
    surgery = lambda: reconstruct.obs(fn, loss, weights, batches, size - 100)
    surgery()  # compiles
    tracemalloc.start()
    surgery()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 8 n^2 bytes of the inverse, and blocks of rows beside it, whose share falls with n.
    assert 8 * size**2 <= peak < 14 * size**2
