"""Direct sparse convolution and the roofline that says where it pays [11]."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import errors
from jprune.cost import ATOM, XEON, Machine, Work
from jprune.forms import direct_convolution

CONV5 = Work(macs=256 * 192 * 9 * 13 * 13, activations=4 * 640 * 169, weights=4 * 256 * 192 * 9)
"""AlexNet's conv5 at batch 1: 256 filters of 192 inputs each, 3 x 3, maps of 13 x 13."""


def dense(x, kernel, strides, padding, dilation=(1, 1)):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation)


@pytest.mark.parametrize(
    ("stride", "pad", "dilation"), [(1, 0, 1), (1, 1, 1), (2, 1, 1), (1, 2, 2)]
)
def test_direct_is_the_dense_convolution_in_value_and_gradient(float64, stride, pad, dilation):
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=(2, 3, 7, 8))), rng.normal(size=(4, 3, 3, 3))
    mask = rng.random(kernel.shape) < 0.2
    mask[2] = False  # an empty filter
    kernel, bias = jnp.asarray(kernel * mask), jnp.asarray(rng.normal(size=4))
    settings = {"strides": (stride,) * 2, "padding": ((pad, pad),) * 2, "dilation": (dilation,) * 2}
    direct = lambda x, k: direct_convolution(x, k, mask, bias, **settings)
    whole = lambda x, k: dense(x, k * mask, *settings.values()) + bias[:, None, None]
    found = jax.jit(direct)(x, kernel)
    np.testing.assert_allclose(found, whole(x, kernel), atol=1e-12)
    np.testing.assert_array_equal(found[:, 2], np.broadcast_to(bias[2], found[:, 2].shape))
    square = lambda fn: jax.grad(lambda x, k: (fn(x, k) ** 2).sum(), (0, 1))
    for one, two in zip(jax.jit(square(direct))(x, kernel), square(whole)(x, kernel)):
        np.testing.assert_allclose(one, two, atol=1e-9)


def test_it_is_a_cross_correlation():
    x = jnp.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    kernel = jnp.array([[[[0.0, 2.0], [-1.0, 0.0]]]])
    found = direct_convolution(x, kernel, np.asarray(kernel) != 0)
    assert found[0, 0].tolist() == [[0, 1], [3, 4]]


def test_shapes_that_do_not_fit_are_refused():
    x, kernel = jnp.ones((1, 3, 4, 4)), jnp.ones((2, 3, 3, 3))
    for data, mask in ((x, np.ones((2, 3, 3, 2))), (x[:, :2], np.ones(kernel.shape))):
        with pytest.raises(errors.StructureError, match="expected are"):
            direct_convolution(data, kernel, mask)
    with pytest.raises(errors.StructureError, match="no output"):
        direct_convolution(x[:, :, :2], kernel, np.ones(kernel.shape))


def test_the_roofline_of_conv5():
    assert (2 * CONV5.macs, CONV5.activations, CONV5.weights) == (149_520_384, 432_640, 1_769_472)
    np.testing.assert_allclose(CONV5.useful(XEON), [0.01974, 0.3333], rtol=1e-3)
    np.testing.assert_allclose(CONV5.useful(ATOM), [0.01085, 0.8333], rtol=1e-3)
    for machine, at, speed in (
        (XEON, 0.09, 3.704), (ATOM, 0.09, 9.259), (XEON, 1.0, 0.333), (ATOM, 1.0, 0.833),
        (XEON, 0.01, 18.13),
    ):  # fmt: skip
        assert CONV5.speedup(machine, at) == pytest.approx(speed, rel=5e-4, abs=6e-4)
    assert CONV5.pays(XEON)


def test_inside_the_range_speed_is_that_of_arithmetic_and_grows_as_weights_go():
    for machine in (XEON, ATOM):
        low, high = CONV5.useful(machine)
        assert CONV5.speedup(machine, high) == pytest.approx(1.0)
        for x in np.linspace(low * 1.001, high, 7):
            assert CONV5.speedup(machine, x) == pytest.approx(1 / (machine.alpha * x))
        at = [CONV5.speedup(machine, x) for x in (low, low / 2, low / 10, low / 1e6)]
        limit = 2 * CONV5.macs / machine.flops / (CONV5.activations / machine.bandwidth)
        assert all(one < two <= limit * (1 + 1e-9) for one, two in itertools.pairwise(at))


def test_a_layer_that_moves_more_than_it_computes_never_pays():
    dense_layer = Work(macs=1e6, activations=4e3, weights=4e6)
    assert dense_layer.useful(XEON)[0] == np.inf
    assert not dense_layer.pays(XEON)
    with pytest.raises(errors.ArgumentError, match="above 0"):
        Machine(1e9, 0.0, 1.0)
    with pytest.raises(errors.ArgumentError, match="density"):
        dense_layer.speedup(XEON, 0.0)
