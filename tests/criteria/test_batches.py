"""What a criterion's batches are: how they are grouped, and what is none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import criteria, errors

SHAPES = {"first": (3, 3, 2, 6), "second": (3, 3, 6, 5), "out": (5, 4)}


def net(v, x):
    layout = ("NHWC", "HWIO", "NHWC")
    for name in ("first", "second"):
        x = jax.lax.conv_general_dilated(x, v[name], (1, 1), "SAME", dimension_numbers=layout)
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ v["out"]


def cross_entropy(out, batch):
    return optax.softmax_cross_entropy_with_integer_labels(out, batch["label"])


@pytest.fixture(scope="module")
def ten():
    rng = np.random.default_rng(0)
    variables = {n: jnp.asarray(rng.normal(size=s) * 0.4, jnp.float32) for n, s in SHAPES.items()}
    images = jnp.asarray(rng.normal(size=(10, 8, 7, 2)), jnp.float32)
    return variables, {"image": images, "label": jnp.arange(10) % 4}


def part(batch, *numbers):
    return {name: leaf[jnp.array(numbers)] for name, leaf in batch.items()}


WAYS = {
    "one by one": lambda b: [part(b, number) for number in range(10)],
    "7 + 3": lambda b: [part(b, *range(7)), part(b, 7, 8, 9)],
    "6 + 4 and two of padding": lambda b: [
        {**part(b, *range(6)), "weight": jnp.ones(6)},
        {**part(b, 6, 7, 8, 9, 9, 9), "weight": jnp.array([1.0, 1, 1, 1, 0, 0])},
    ],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "every": 10}])
def test_a_mean_over_examples_does_not_depend_on_their_batches(ten, way, settings):
    variables, batch = ten
    groups = jprune.trace(net, variables, batch["image"])
    given = {"form": "gate", "at": "in", "per_example": True, **settings}
    run = lambda batches: jprune.run_criterion(
        criteria.taylor(net, cross_entropy, groups, **given), variables, batches
    )
    right, came = run([batch]), run(WAYS[way](batch))
    for name, score in right.items():
        np.testing.assert_allclose(came[name], score, rtol=1e-4)


def test_batches_count_alike_where_their_gradients_are_squared(ten):
    variables, batch = ten
    run = lambda batches: jprune.run_criterion(
        criteria.taylor(net, cross_entropy), variables, batches
    )["out"]
    first, second = part(batch, *range(7)), part(batch, 7, 8, 9)
    np.testing.assert_allclose(run([first, second]), (run([first]) + run([second])) / 2, rtol=1e-5)


FORMS = {
    "tuples": (lambda b: [(b["image"], b["label"])], "came as a tuple"),
    "other keys": (lambda b: [{"x": b["image"], "y": b["label"]}], "with x, y in it"),
    "arrays": (lambda b: [b["image"]], "as a ArrayImpl"),
    "one batch": (lambda b: b, "got one batch, with image, label"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("criterion", [criteria.taylor, criteria.obd])
def test_what_is_no_batch_is_refused_in_words(ten, form, criterion):
    variables, batch = ten
    make, says = FORMS[form]
    with pytest.raises(errors.ArgumentError, match=says) as caught:
        jprune.run_criterion(criterion(net, cross_entropy), variables, make(batch))
    assert '"image"' in str(caught.value)
