"""DepGraph's group sparsity: coupled norms, units that fade, factors that grow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import blocks, criteria, errors, recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.sparsify import decay_factors, relative_decay
from jprune.sparsify.relative_decay import lightness
from jprune.stages.frame import check
from jprune.stages.prune import Prune
from jprune.stages.relative_decay import Fade, FadeUnits
from jprune.train.net import Net
from jprune.units import leaves_by_path
from tests.contracts import own
from tests.nets import FIRST_CUT, draw
from tests.stages.test_time_to_act import learnable

KEY = jax.random.key(5)


def traced(name):
    net = next(net for net in FIRST_CUT if net.name == name)
    variables, (x,) = draw(net)
    return variables, jprune.trace(net.fn, variables, x)


def test_factors_lie_between_1_and_16(float64):
    np.testing.assert_allclose(decay_factors(jnp.array([1.0, 2, 4])), [16, 6.349604, 1], rtol=1e-6)
    np.testing.assert_array_equal(decay_factors(jnp.full(3, 2.0)), 1)  # not 0 / 0
    assert decay_factors(jnp.array([1.0, 2]), alpha=2.0).tolist() == [4, 1]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6), st.floats(0.01, 100))
def test_lightness_is_of_the_order_alone_and_not_of_the_unit_of_measure(norms, by):
    with jax.enable_x64(True):
        found = np.asarray(lightness(jnp.array(norms)))
        np.testing.assert_allclose(lightness(by * jnp.array(norms)), found, atol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12
    order = np.argsort(norms)
    assert (np.diff(found[order]) <= 1e-12).all()


@pytest.mark.parametrize(("order", "normalize"), [(2, "mean"), (2, "max"), (1, "none")])
def test_scores_are_means_over_all_slices_of_a_residual_stream(order, normalize):
    """By hand, from the places of a stream: three producers, and whoever reads it."""
    variables, groups = traced("resnet_identity")
    leaves = leaves_by_path(groups, variables)
    scores = jprune.run_criterion(criteria.coupled_norm(groups, order, normalize), variables, ())
    for name, size in groups.sizes.items():
        slices = []
        for place in groups.places[name]:
            if {"kernel", "scale", "in"} & {*place.roles}:
                leaf = np.abs(np.asarray(leaves[place.leaf], float)) ** order
                others = tuple(axis for axis in range(leaf.ndim) if axis != place.axis)
                along = leaf.sum(others)
                slices.append([along[place.units == unit].sum() for unit in range(size)])
        expected = np.mean(slices, axis=0)
        expected = expected / {"mean": expected.mean(), "max": expected.max(), "none": 1}[normalize]
        np.testing.assert_allclose(scores[name], expected, rtol=1e-5)
    stream = [place.leaf for place in groups.places["stem"] if "kernel" in place.roles]
    assert len(stream) == 3


def test_units_that_are_gone_do_not_count():
    v = {"a": jnp.array([[3.0, 1, 0]]), "b": jnp.array([[1.0], [1], [0]])}
    groups = jprune.trace(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], v, jnp.ones(1))
    scores = jprune.run_criterion(criteria.coupled_norm(groups), v, ())["a"]
    np.testing.assert_allclose(scores, [5 / 3, 1 / 3, 0])
    with pytest.raises(errors.ArgumentError, match="order=3"):
        criteria.coupled_norm(groups, order=3)
    with pytest.raises(errors.ArgumentError, match="normalize='sum'"):
        criteria.coupled_norm(groups, normalize="sum")


def test_the_pull_is_the_gradient_of_half_the_weighted_squares(float64):
    """With the factors held, g is that of sum_k lambda_k / 2 ||unit k||^2, by autodiff."""
    variables, groups = traced("resnet_identity")
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), variables)
    units = blocks.coupled(groups)
    norms = {name: np.sqrt(square) for name, square in blocks.squares(units, variables).items()}
    factors = {name: 0.1 * decay_factors(jnp.asarray(norm)) for name, norm in norms.items()}

    def half(variables):
        sums = blocks.squares(units, variables)
        return sum((factors[name] @ square) / 2 for name, square in sums.items())

    tx = relative_decay(units, 0.1)
    still = jax.tree.map(np.zeros_like, variables)
    pulls = jax.jit(lambda v: (tx.update(still, tx.init(v), v)[0], jax.grad(half)(v)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), *pulls(variables))


def test_factors_grow_in_steps_from_a_common_beginning(float64):
    v = {"a": jnp.array([[3.0, 1.0, 2.0]]), "b": jnp.zeros((3, 1))}
    groups = jprune.trace(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], v, jnp.ones(1))
    tx = relative_decay(blocks.coupled(groups), 0.1, growth=0.02, every=2)
    still, state = jax.tree.map(jnp.zeros_like, v), None
    state = tx.init(v)
    for step in range(4):
        pull, state = jax.jit(tx.update)(still, state, v)
        grown = 0.02 * (step // 2 + 1)
        expected = [0.1, 0.1 + grown, 0.1 + grown / 2]
        np.testing.assert_allclose(state.factors["a"], expected, rtol=1e-6)
        np.testing.assert_allclose(pull["a"][0], np.array(expected) * [3, 1, 2], rtol=1e-6)


def fades(fade, epochs=40):
    """Coupled norms of the light half over those of the heavy half, before and after."""
    task = learnable()
    start = Pruned(task.init(KEY), None)
    train = Train(epochs, 0.02, 32, weight_decay=0.0)
    after, _ = FadeUnits(train, fade)(start, task, KEY)
    units = blocks.coupled(Net(task).groups)
    found = []
    for variables in (start.variables, after.variables):
        norms = blocks.norms(units, variables)
        halves = [np.sort(norm) for norm in norms.values()]
        found.append(max(half[: half.size // 2].max() / half.max() for half in halves))
    return found


@pytest.mark.parametrize("growing", [False, True])
def test_light_units_fade_and_heavy_ones_stay(growing):
    strength = 0.3 if growing else None  # the growing one pulls at all units alike in the beginning
    before, after = fades(Fade(strength, growing=growing))
    assert before > 0.7
    assert after < (0.6 if growing else 0.1)


def test_what_the_authors_decay_is_what_shorter_trainings_decay():
    task = learnable()
    for epochs, rate in ((40, 0.02), (400, 0.01)):
        train = Train(epochs, rate, 32)
        fade = Fade(None).settled(train, task)
        assert fade.strength * train.rates(task).sum() == pytest.approx(1.2)
    fade = Fade(None).settled(Train(1, 0.5, 32, max_steps=2), task)
    assert 16 * fade.strength * 5 <= 0.5 + 1e-9  # a step is no leap past 0
    growing = Fade(0.1, growing=True).settled(Train(10, 0.02, 32), task)
    assert growing.growth * 10 == pytest.approx(0.2)


def test_the_recipe_cuts_light_units_in_rounds():
    task = learnable()
    finetune = Train(40, 0.02, 32, name="finetune")
    recipe = recipes.find("depgraph")(Budget(macs=0.4), None, finetune, rounds=3)
    before, done = own.up_to(recipe, task, "fade")
    pruned = done
    macs = []
    for stage in recipe:
        if isinstance(stage, Prune):
            pruned, (record,) = stage(pruned, task, KEY)
            macs.append(record["metrics"]["macs"])
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] <= 0.4 < macs[0]
    norms = blocks.norms(blocks.coupled(Net(task).groups), done.variables)
    for name, mask in pruned.masks.items():
        assert norms[name][~mask].max() <= norms[name][mask].min()
    image = next(task.data.batches("test", 64))["image"]
    outputs = lambda variables: np.asarray(task.fn(variables, image))
    change = np.abs(outputs(pruned.variables) - outputs(done.variables)).mean()
    assert change < 0.2 * np.abs(outputs(done.variables)).mean()
    assert before.masks is None


@pytest.mark.parametrize(("options", "message"), [
    ({"regularizer": "l2"}, "regularizer='l2'.*group, growing, none"),
    ({"allocator": "best"}, "allocator='best'"),
    ({"stop": 0.0}, "stop is in"),
    ({"rounds": 0}, "rounds is 1 or more"),
    ({"growth": 0.1}, "nothing grows"),
    ({"reg": -1.0}, "0 or more"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        recipes.find("depgraph")(Budget(macs=0.5), None, Train(1, 0.1), **options)


def test_what_does_not_fit_is_refused():
    recipe = recipes.find("depgraph")(Budget(macs=0.5), None, Train(1, 0.1), order=3)
    with pytest.raises(errors.ArgumentError, match="order=3"):
        check(recipe, learnable())
    units = blocks.coupled(Net(learnable()).groups)
    with pytest.raises(errors.ArgumentError, match="every is 1 or more"):
        relative_decay(units, 0.1, every=0)
    with pytest.raises(errors.ArgumentError, match="no units"):
        relative_decay(units.where(()), 0.1)
    with pytest.raises(errors.ArgumentError, match="FadeUnits"):
        dataclasses.replace(Fade(), strength=None)(
            Net(learnable()), optax.constant_schedule(0), KEY
        )
