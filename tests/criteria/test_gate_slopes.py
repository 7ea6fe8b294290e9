"""Slopes of gates against hand numbers and taps, and rankings against an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import jprune
from jprune import allocate, criteria, errors
from jprune.cost import marginal_macs, own_flops
from tests.contracts.own import conv, cross_entropy, draw


def maps_times(gradients):
    """A net whose maps are the images, and a loss whose gradients by them are these numbers."""
    fn = lambda v, x: conv(x, v["maps"]) @ v["out"]
    loss = lambda out, batch: (out[..., 0] * batch["g"]).sum((1, 2))
    variables = {"maps": jnp.ones((1, 1, 1, 1)), "out": jnp.ones((1, 1))}
    return fn, loss, variables, {"g": jnp.asarray(gradients, float)}


def score(form, images, gradients, number=1.0):
    fn, loss, variables, batch = maps_times(gradients)
    batch["image"] = jnp.asarray(images, float)[..., None]
    groups = jprune.trace(fn, variables, batch["image"])
    times = lambda out, batch: number * loss(out, batch)
    criterion = criteria.gate_slopes(fn, times, groups, form)
    return float(jprune.run_criterion(criterion, variables, [batch])["maps"][0])


def test_signs_cancel_within_a_map():
    """Checks [17] P1: |mean(z g)| = 0.875, and 1.125 where absolute values come first."""
    z, g = [[[1, -2], [3, 0]]], [[[0.5, 0.5], [-1, 2]]]
    assert score("absolute", z, g) == pytest.approx(0.875)
    assert score("signed", z, g) == pytest.approx(0.875)
    assert score("entries", z, g) == pytest.approx(1.125)


def test_examples_do_not_cancel():
    """Checks [17] P2: means of +0.5 and -0.5 score 0.5; a signed mean 0."""
    z, g = np.ones((2, 2, 2)), np.array([[[0.5] * 2] * 2, [[-0.5] * 2] * 2])
    assert score("absolute", z, g) == pytest.approx(0.5)
    assert score("signed", z, g) == pytest.approx(0)


def test_sums_of_a_map_are_squared():
    """Checks [50] P1: sums of a g of [[.5, -2], [0, 2]] give (.0625, 2)."""
    a, g = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[0.5, -1.0], [1.0, 2.0]])
    for unit, right in enumerate((0.0625, 2.0)):
        assert score("square", a[:, unit, None, None], g[:, unit, None, None]) == right


SHAPES = {
    "a": (3, 3, 2, 5),
    "b": (3, 3, 5, 4),
    "scale": (4,),
    "shift": (4,),
    "c": (3, 3, 4, 6),
    "out": (6, 3),
}


def train_fn(v, x):
    """Batch norms in training mode: examples see each other."""
    x = jax.nn.relu(conv(x, v["a"]))
    x = conv(x, v["b"], 2)
    x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-3) * v["scale"] + v["shift"]
    x = jax.nn.relu(conv(jax.nn.relu(x), v["c"]))
    return x.mean((1, 2)) @ v["out"]


@pytest.fixture
def net(float64):
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), draw(SHAPES))
    rng = np.random.default_rng(1)
    batch = {"image": jnp.asarray(rng.normal(size=(6, 5, 5, 2))), "label": np.arange(6) % 3}
    return variables, jprune.trace(train_fn, variables, batch["image"]), batch


def products(net, at):
    """{group: [batch, entries, units] a dC/da}, C the sum of all losses."""
    variables, groups, batch = net
    values = jprune.taps(train_fn, groups, (at,))(variables, batch["image"])[1]
    perturbed = jprune.graph.perturbed(train_fn, groups, (at,))
    total = lambda d: cross_entropy(perturbed(variables, d, batch["image"]), batch).sum()
    slopes = jax.grad(total)(jax.tree.map(jnp.zeros_like, values))
    return {layer: np.asarray(values[layer, at] * slopes[layer, at]).reshape(6, -1, s)
            for (layer, _), s in zip(values, groups.sizes.values())}  # fmt: skip


def test_slopes_are_those_of_the_sum_of_losses_at_the_maps(net):
    """Checks [17] P4, [50] P2, with statistics of the batch; before and behind the ReLU alike."""
    variables, groups, batch = net
    scores = lambda form, at: jprune.run_criterion(
        criteria.gate_slopes(train_fn, cross_entropy, groups, form, at), variables, [batch]
    )
    for at in ("norm", "act"):
        for name, product in products(net, at).items():
            slope, entries = product.sum(1), product.shape[1]
            right = {
                "absolute": np.abs(slope).mean(0) / entries,
                "signed": np.abs(slope.mean(0)) / entries,
                "entries": np.abs(product).mean((0, 1)),
                "square": (slope**2).mean(0) / 2,
            }
            for form, wanted in right.items():
                np.testing.assert_allclose(scores(form, at)[name], wanted, rtol=1e-9, err_msg=form)
    # A `vmap` over examples would normalise each alone.
    singles = [jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], batch) for n in range(6)]
    criterion = criteria.gate_slopes(train_fn, cross_entropy, groups)
    alone = jprune.run_criterion(criterion, variables, singles)
    assert not np.allclose(alone["b"], scores("absolute", "norm")["b"], rtol=1e-2)


def test_slopes_that_a_step_has_made_are_taken(net):
    variables, groups, batch = net
    gated = jprune.gated(train_fn, groups, "norm")
    total = lambda gates: cross_entropy(gated(variables, gates, batch["image"]), batch).sum()
    slopes = jax.grad(total)({name: jnp.ones((6, size)) for name, size in groups.sizes.items()})
    for form in ("absolute", "signed", "square"):
        criterion = criteria.gate_slopes(train_fn, cross_entropy, groups, form)
        own = jprune.run_criterion(criterion, variables, [batch])
        taken = jprune.run_criterion(criterion, {}, [{**batch, "slopes": slopes}])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), own, taken)


def test_layer_norms_of_scores_are_1_and_the_size_of_the_loss_does_not_matter(net):
    """Checks [17] P3."""
    variables, groups, batch = net
    scores = [
        allocate.normalized(jprune.run_criterion(
            criteria.gate_slopes(train_fn, lambda o, b, f=f: f * cross_entropy(o, b), groups),
            variables, [batch]))
        for f in (1.0, 7.0)
    ]  # fmt: skip
    for name in groups.names:
        assert (scores[0][name] ** 2).sum() == pytest.approx(1)
        np.testing.assert_allclose(scores[0][name], scores[1][name], rtol=1e-9)


def test_removal_is_the_loss_of_the_smaller_net_less_that_of_the_whole(net):
    variables, groups, batch = net
    fn = lambda v, x: jax.nn.relu(jax.nn.relu(x.mean((1, 2)) @ v["a"][0, 0]) @ v["b"][0, 0])
    full = lambda v, x: fn(v, x) @ v["out"][:4]
    groups = jprune.trace(full, variables, batch["image"])
    mean = lambda f, v: float(cross_entropy(f(v, batch["image"]), batch).mean())
    raw = jprune.run_criterion(
        criteria.removal(full, cross_entropy, groups, signed=True), variables, [batch]
    )
    absolute = jprune.run_criterion(
        criteria.removal(full, cross_entropy, groups), variables, [batch]
    )
    for name, size in groups.sizes.items():
        for unit in range(size):
            masks = {name: np.arange(size) != unit}
            small = jprune.slim_params(groups, masks, variables)
            change = mean(jprune.slim(full, groups, masks), small) - mean(full, variables)
            assert float(raw[name][unit]) == pytest.approx(change, rel=1e-6, abs=1e-12)
            assert float(absolute[name][unit]) == pytest.approx(abs(change), rel=1e-6, abs=1e-12)


@pytest.mark.filterwarnings("ignore:An input array is constant")
@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 9), st.integers(-3, 9)), min_size=3, max_size=12))
def test_rank_correlation_is_that_of_scipy_with_equal_values_too(pairs):
    one, two = np.array(pairs, float).T
    found, right = criteria.spearman(one, two), spearmanr(one, two).statistic
    np.testing.assert_allclose(found, right, atol=1e-9)


def test_rank_correlation_of_the_paper_without_ties():
    rng = np.random.default_rng(3)
    one, two = rng.permutation(9), rng.permutation(9)
    distance = one.argsort().argsort() - two.argsort().argsort()
    assert criteria.spearman(one, two) == pytest.approx(1 - 6 * (distance**2).sum() / (9 * 80))


def test_agreement_is_by_group_and_over_all_of_those_in_both():
    one = {"a": [1, 2, 3], "b": [10, 30], "c": [1.0]}
    two = {"a": [3, 2, 1], "b": [10, 30]}
    found = criteria.rank_agreement(one, two)
    assert found.groups == {"a": -1.0, "b": 1.0}
    assert found.mean == 0
    assert found.all == pytest.approx(0.6)
    for wrong, says in (({"x": [1]}, "score the same net"), ({"a": [1, 2]}, r"shapes \(3,\)")):
        with pytest.raises(errors.ArgumentError, match=says):
            criteria.rank_agreement(one, wrong)
    with pytest.raises(errors.ArgumentError, match="before units are masked"):
        criteria.rank_agreement(one, {"a": [1, 2, -np.inf]})


def test_flops_of_a_map():
    """2 H W (C_in K^2 + 1) of a convolution's map, 2 I - 1 of a dense unit."""
    fn = lambda v, x: jax.nn.relu(jax.nn.relu(conv(x, v["a"])).mean((1, 2)) @ v["b"]) @ v["c"]
    variables = draw({"a": (3, 3, 2, 5), "b": (5, 7), "c": (7, 3)})
    groups = jprune.trace(fn, variables, jnp.ones((1, 4, 6, 2)))
    assert own_flops(groups) == {"a": 2 * 24 * (2 * 9 + 1), "b": 2 * 5 - 1}
    model = jprune.cost_model(fn, variables, jnp.ones((1, 4, 6, 2)), groups=groups)
    alive = {"a": np.arange(5) < 4, "b": np.arange(7) < 3}
    found = marginal_macs(model, alive)
    for name, size in groups.sizes.items():
        for unit in np.flatnonzero(alive[name]):
            without = {**alive, name: alive[name] & (np.arange(size) != unit)}
            assert float(found[name][unit]) == float(model(alive).macs - model(without).macs)


def test_bad_words():
    fn, loss, variables, _ = maps_times(np.ones((1, 2, 2)))
    groups = jprune.trace(fn, variables, jnp.ones((1, 2, 2, 1)))
    with pytest.raises(errors.ArgumentError, match="absolute, signed, entries, square"):
        criteria.gate_slopes(fn, loss, groups, "mean")
    with pytest.raises(errors.ArgumentError, match="no group of this net has a site 'join'"):
        criteria.gate_slopes(fn, loss, groups, at="join")
