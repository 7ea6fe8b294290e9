"""SSL's cut keeps the net's outputs: what a filter of zeros still says goes into its readers."""

import jax
import numpy as np
import pytest

from jprune.base import Budget, Pruned
from jprune.stages.group_lasso import Penalty, ReadOff
from tests.contracts import own

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus, "relu": jax.nn.relu}


def net(activation, padding="VALID", pooled=True):
    """Two convolutions and a dense layer, biases, and a few filters of zeros in both."""
    shapes = {"a": (3, 3, 1, 6), "b": (3, 3, 6, 5), "c": (5, 3)}
    params = own.kernels(shapes, bias=True)
    params["a"]["kernel"][..., 1::2] = 0
    params["b"]["kernel"][..., [0, 3]] = 0
    convolve = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

    def fn(v, x):
        a, b, c = (v["params"][name] for name in "abc")
        x = activation(convolve(x, a["kernel"]) + a["bias"])
        x = activation(convolve(x, b["kernel"]) + b["bias"])
        return x.mean((1, 2)) @ c["kernel"] + c["bias"]

    return own.task_of(fn, params, (8, 7, 1))


def cut(task, families):
    stage = ReadOff(Budget(macs=1.0), Penalty(families))
    before = Pruned(task.init(own.KEY), None)
    after, (record,) = stage(before, task, own.KEY)
    x = np.random.default_rng(1).normal(size=(4, *task.example.shape[1:])).astype(np.float32)
    np.testing.assert_allclose(
        task.fn(after.variables, x), task.fn(before.variables, x), atol=1e-5, rtol=1e-5
    )
    return after.masks, record["metrics"]


@pytest.mark.parametrize("families", [("filter",), ("filter", "channel")], ids="+".join)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_constants_are_folded_and_the_filters_go(activation, families):
    masks, metrics = cut(net(ACTIVATIONS[activation]), families)
    assert np.flatnonzero(masks["params/a/kernel"]).tolist() == [0, 2, 4]
    assert np.flatnonzero(masks["params/b/kernel"]).tolist() == [1, 2, 4]
    assert metrics["macs"] < 0.8


def test_filters_whose_constant_shows_at_a_padded_border_stay():
    masks, metrics = cut(net(jax.nn.sigmoid, "SAME"), ("filter",))
    assert masks["params/a/kernel"].all()
    assert np.flatnonzero(masks["params/b/kernel"]).tolist() == [1, 2, 4]
    assert metrics["zeros"] == pytest.approx(5 / 11)


def test_filters_that_say_nothing_go_without_moving_anything():
    """A ReLU and no bias: f(0) = 0."""
    task = net(jax.nn.relu, "SAME")
    start = task.init(own.KEY)
    for name in "ab":
        start["params"][name]["bias"] = start["params"][name]["bias"] * 0
    still = task._replace(init=lambda key: start)
    masks, _ = cut(still, ("filter",))
    assert np.flatnonzero(masks["params/a/kernel"]).tolist() == [0, 2, 4]
