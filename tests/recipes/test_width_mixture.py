"""TAS [42]: candidates, interpolation of channels, temperatures, mixed widths and their cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import errors
from jprune.learners.width_mixture import (
    Mixture,
    candidate_depths,
    candidate_widths,
    cost_loss,
    resizing,
    temperature,
    two_of,
)
from jprune.masks import apply_masks
from jprune.train.net import Net
from jprune.train.task import distilled
from jprune.units import expand
from tests.contracts import own

KEY = own.KEY


@pytest.mark.parametrize(
    ("values", "after", "expected"),
    [
        ([1, 2, 3, 4, 5], 3, [1.5, 3, 4.5]),
        ([1, 2, 3], 5, [1, 1.5, 2, 2.5, 3]),
        (range(1, 9), 4, [1.5, 3.5, 5.5, 7.5]),
        (range(1, 8), 7, range(1, 8)),
    ],
)
def test_channels_are_resized_by_averages_of_neighbours(values, after, expected):
    values = np.array([*values], float)
    np.testing.assert_allclose(resizing(values.size, after) @ values, [*expected])


def test_a_constant_stays_that_constant_and_padding_is_0():
    for before in range(1, 12):
        for after in range(1, 12):
            np.testing.assert_allclose(resizing(before, after).sum(1), 1)
            padded = resizing(before, after, 12)
            np.testing.assert_array_equal(padded[:after, :before], resizing(before, after))
            assert not padded[after:].any()
            assert not padded[:, before:].any()


def test_candidates_are_those_of_the_authors():
    assert candidate_widths(16) == (4, 6, 8, 9, 11, 12, 14, 16)
    assert candidate_widths(32) == (9, 12, 16, 19, 22, 25, 28, 32)
    assert candidate_widths(64) == (19, 25, 32, 38, 44, 51, 57, 64)
    assert candidate_depths(9) == (1, 3, 5, 7, 9)


def test_temperatures_fall_on_a_cosine():
    found = temperature(jnp.array([0, 0.25, 0.5, 0.75, 1]))
    np.testing.assert_allclose(found, [5, 4.282412, 2.55, 0.817588, 0.1], rtol=1e-5)


def logits_of(student, teacher):
    """What distillation of weight 0.9 at temperature 4 costs, label 0."""
    task = own.channels_first(False)
    fn = lambda variables, x: jnp.broadcast_to(variables["params"]["out"], (len(x), 3))
    taught = distilled(
        task._replace(
            fn=fn,
            train_fn=lambda v, x, key: (fn(v, x), v["stats"]),
            loss=lambda out, batch: optax.softmax_cross_entropy_with_integer_labels(
                out, batch["label"]
            ),
        ),
        {"params": {"out": jnp.array(teacher)}, "stats": {}},
        0.9,
        4.0,
    )
    variables = {"params": {"out": jnp.array(student)}, "stats": {}}
    x = jnp.zeros((1, 5, 5, 2))
    batch = {"image": x, "label": jnp.array([0]), "weight": jnp.ones(1)}
    out, _ = taught.train_fn(variables, x, KEY)
    return float(taught.loss(out, batch)[0])


@pytest.mark.parametrize(
    ("teacher", "loss"), [([3.0, 2.0, 1.0], 1.428428), ([1.0, 2.0, 3.0], 0.240761)]
)
def test_distillation_is_that_of_training(teacher, loss):
    assert logits_of([1.0, 2.0, 3.0], teacher) == pytest.approx(loss, abs=1e-5)


def test_two_are_drawn_without_replacement_as_often_as_they_are_likely():
    """First choices follow softmax of the logits at temperature 1, whatever the second draw is."""
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    keys = jax.random.split(KEY, 4000)
    which, weights = jax.vmap(lambda key: two_of(key, logits, 1.0))(keys)
    assert (which[:, 0] != which[:, 1]).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    # The draw adds noise to noise, so it is flatter than softmax; the order of candidates stays.
    often = np.bincount(np.ravel(which), minlength=3)
    assert often[0] < often[1] < often[2]


@pytest.fixture(scope="module")
def net():
    task = own.channels_first(False)
    groups = Net(task).groups
    widths = {name: (2, size // 2, size) for name, size in groups.sizes.items()}
    return task, Mixture(groups, widths)


def test_a_sure_choice_of_the_widest_pair_is_plain_truncation(net):
    """One weight 1, that of the wider of two: the net with the leading units alone."""
    task, mixture = net
    variables, x = task.init(KEY), jnp.asarray(next(task.data.batches("train", 8))["image"])
    run = jax.jit(mixture.run(task.fn))
    logits = {name: jnp.array([0.0, 400.0, -jnp.inf]) for name in mixture.names}
    sizes = Net(task).groups.sizes
    masks = {name: np.arange(size) < size // 2 for name, size in sizes.items()}
    masked = apply_masks(variables, expand(Net(task).groups, masks))
    np.testing.assert_allclose(
        run(variables, logits, KEY, 0.1, x), task.fn(masked, x), rtol=1e-4, atol=1e-5
    )


def test_gradients_reach_the_logits_through_the_weights(net):
    task, mixture = net
    variables, batch = task.init(KEY), next(task.data.batches("train", 8))
    run = mixture.run(task.fn)
    logits = {name: jnp.zeros(3) for name in mixture.names}

    def loss(logits):
        return task.loss(run(variables, logits, KEY, 1.0, batch["image"]), batch).mean()

    for slope in jax.jit(jax.grad(loss))(logits).values():
        assert (slope != 0).sum() == 2 or (slope != 0).all()
        assert jnp.abs(slope.sum()) < 1e-5  # a softmax does not see a constant


def test_descent_on_the_cost_ends_within_the_tolerance(net):
    task, mixture = net
    model = Net(task).cost
    logits = {name: jnp.zeros(3).at[2].set(0.1) for name in mixture.names}
    tx = optax.adam(0.05)
    slope = lambda logits: jax.grad(lambda of: cost_loss(mixture, of, model, 0.5, 0.3))(logits)

    def step(carry, _):
        logits, state = carry
        updates, state = tx.update(slope(logits), state)
        return (optax.apply_updates(logits, updates), state), None

    whole = float(model({}).macs)
    share = lambda logits: float(model(mixture.likeliest(logits)).macs) / whole
    assert share(logits) == 1
    after = jax.jit(lambda start: jax.lax.scan(step, start, None, 200)[0])(
        (logits, tx.init(logits))
    )
    assert 0.2 <= share(after[0]) <= 0.5


@pytest.mark.parametrize("widths", [(4,), (0, 4), (4, 99)])
def test_widths_that_a_group_cannot_have_are_refused(widths):
    groups = Net(own.channels_first(False)).groups
    with pytest.raises(errors.ArgumentError, match="two or more different ones"):
        Mixture(groups, {groups.names[0]: widths})
