"""A penalty beside the optimizer's step is as strong as it was asked for, whatever the momentum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.stages import L1Penalty
from jprune.train.optimizers import Adam, Chosen, Sgd
from tests.contracts import own

TARGETS = np.array([1.0, 2.0, -1.5, 3.0], np.float32)


def quadratic():
    """The loss is the mean over four examples of (w_i - t_i)^2 / 2."""
    squares = lambda out, batch: 0.5 * (out[:, 0] - batch["label"]) ** 2
    return own.task_of(
        lambda v, x: x @ v["params"]["kernel"],
        {"kernel": np.ones((4, 1), np.float32)},
        (4,),
        images=np.eye(4, dtype=np.float32),
        labels=TARGETS,
        loss=squares,
        metrics=lambda out, batch: {"loss": squares(out, batch)},
    )


def found(stage):
    task = quadratic()
    trained, _ = stage(Pruned(task.init(own.KEY), None), task, own.KEY)
    return np.asarray(trained.variables["params"]["kernel"])[:, 0]


@dataclasses.dataclass(frozen=True)
class OfOnesOwn:
    """|w| loses rate * strength in every step, as in the page on methods of one's own."""

    strength: float

    def __call__(self, net, rate, key):
        def update(updates, step, params):
            def shrunk(change, weight):
                moved = weight + change
                size = jnp.maximum(jnp.abs(moved) - rate(step) * self.strength, 0)
                return jnp.sign(moved) * size - weight

            return jax.tree.map(shrunk, updates, params), step + 1

        shrink = optax.GradientTransformation(lambda params: jnp.zeros((), int), update)
        return lambda inner: optax.chain(inner, shrink)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("wrap", [L1Penalty(0.125), OfOnesOwn(0.125)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_weights_come_to_rest_at_the_minimum_of_loss_and_penalty(momentum, wrap, nesterov):
    """(w_i - t_i) / 4 = -0.125 sign(w_i), so that w_i = t_i - 0.5 sign(t_i)."""
    rate = 0.5 * (1 - momentum)
    stage = Train(
        300, rate, 4, schedule="constant", momentum=momentum, weight_decay=0.0, wrap=wrap,
        settings={"nesterov": nesterov},
    )  # fmt: skip
    np.testing.assert_allclose(found(stage), TARGETS - 0.5 * np.sign(TARGETS), atol=1e-2)


def test_han_trains_the_dense_net_under_the_penalty_that_was_asked_for():
    recipe = recipes.find("han")(
        Budget(density=0.5), Train(400, 0.1, 4, schedule="constant"), own.SHORT, l1=0.125
    )
    np.testing.assert_allclose(found(recipe[0]), TARGETS - 0.5 * np.sign(TARGETS), atol=1e-2)


def test_what_a_step_is_worth_under_each_optimizer():
    step = 3
    sgd = Sgd(0.2, "constant", 10, 0.75, 0.0)
    assert float(sgd.stride(step)) == pytest.approx(0.8)
    for other in (Chosen("adam", 0.2, "constant", 10, 0.0), Adam(0.2, 10, 0.0)):
        assert float(other.stride(step)) == pytest.approx(float(other.rate(step)))
