"""A net of one's own, a loss and metrics of one's own: what `train.task` makes of them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import errors, train
from jprune.base import Pruned
from jprune.recipes import Train
from jprune.train.evaluate import mean_quality
from tests.toys import SHAPE, equal, toy_data

KEY = jax.random.key(0)


def own_net(**others):
    """A linear map of the pixels to one number, as plain functions."""

    def fn(variables, x):
        return x.reshape(len(x), -1) @ variables["params"]["w"]

    parts = {
        "name": "own",
        "init": lambda key: {"params": {"w": jnp.zeros((64, 1))}, "stats": {}},
        "fn": fn,
        "train_fn": lambda variables, x, key: (fn(variables, x), variables["stats"]),
        "example": jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32),
    }
    return SimpleNamespace(**{**parts, **others})


def squares(out, batch):
    """Of the distance to the number of the label."""
    return (out[:, 0] - batch["label"]) ** 2


def test_any_object_with_five_parts_is_a_net_and_its_loss_is_minimised():
    task = train.task(own_net(), toy_data(), loss=squares)
    start = Pruned(task.init(KEY), None)
    before = train.evaluate(task, start.variables, "validation")
    assert before == {"loss": pytest.approx(np.mean([0, 1, 4] * 3 + [0]), rel=1e-5)}
    after, records = Train(20, 0.005, 16)(start, task, KEY)
    assert {*records[0]["metrics"]} == {"loss"}
    assert train.evaluate(task, after.variables, "validation")["loss"] < 0.5 * before["loss"]


def test_metrics_of_ones_own_stand_in_the_place_of_the_others():
    error = lambda out, batch: {"error": abs(out[:, 0] - batch["label"])}
    task = train.task(own_net(), toy_data(), loss=squares, metrics=error)
    start = task.init(KEY)
    assert {*train.evaluate(task, start, "test")} == {"error"}
    assert mean_quality(task, start, "test") == pytest.approx(-5 / 3)  # minus the loss
    right = lambda out, batch: {"accuracy": jnp.ones(len(out))}
    task = train.task(own_net(), toy_data(), loss=squares, metrics=right)
    assert mean_quality(task, start, "test") == 1


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (SimpleNamespace(name="own"), {}, "without init, fn, train_fn, example"),
        (own_net(), {}, "own has 1 outputs for the 3 classes of toy.*loss=..."),
        (own_net(init=lambda key: jnp.zeros((64, 1))), {}, "'params': what is trained"),
        (own_net(init=lambda key: {"w": 0.0}), {}, r"are \['w'\]; train.task takes"),
        (own_net(), {"loss": lambda out, batch: out.mean()}, "number an example"),
        (own_net(), {"loss": squares, "metrics": lambda out, batch: out}, "{name: .batch.}"),
        (
            own_net(example=jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)),
            {"loss": squares},
            "or give the net another example",
        ),
    ],
)
def test_what_cannot_be_a_task_is_refused(net, options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        train.task(net, toy_data(), **options)


def test_weights_with_one_axis_do_not_decay():
    init = lambda key: {"params": {"w": jnp.ones((64, 1)), "b": jnp.ones(1)}, "stats": {}}
    task = train.task(own_net(init=init), toy_data(), loss=lambda out, batch: 0 * out[:, 0])
    stage = Train(1, 0.1, 16, schedule="constant", weight_decay=0.5, momentum=0.0)
    params = stage(Pruned(task.init(KEY), None), task, KEY)[0].variables["params"]
    np.testing.assert_allclose(params["w"], (1 - 0.1 * 0.5) ** 3, rtol=1e-6)
    assert equal(params["b"], jnp.ones(1))
