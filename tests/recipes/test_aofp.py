"""AOFP [23]: damage to the next layer alone, random halves, a search that ends by itself."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.learners import halving, isolated_damages, readers, to_the_end
from jprune.masks import apply_masks
from jprune.stages import Halve, Train, check
from jprune.train.net import Net
from jprune.units import expand, ones
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = own.KEY
LONG = Train(100, 0.05, 16, schedule="constant", max_steps=60, name="finetune")
ANY = Budget(density=0.01)


def test_means_over_all_halves_are_those_of_additive_damages(float64):
    """T_j = c_j + (g - 1) / (n - 1) * sum of the others' c."""
    c = np.array([0.1, 0.2, 0.3, 0.4])
    search = halving({"a": 4}, {"a": range(1, 5)}, theta=0.0, period=100)
    state = search.init({"a": np.ones(4, bool)})
    for pair in itertools.combinations(range(4), 2):
        closed = jnp.isin(jnp.arange(4), jnp.array(pair))[None]
        state = search.charged(state, closed, jnp.array([c[list(pair)].sum()]))
    found = np.asarray(state.total / state.times)[0]
    np.testing.assert_allclose(found, [0.4, 0.4666667, 0.5333333, 0.6], rtol=1e-6)
    np.testing.assert_allclose(found, c + (c.sum() - c) / 3, rtol=1e-6)


SIZES = {"a": 9, "b": 4, "c": 1}
SEARCH = halving(SIZES, {n: range(1, size + 1) for n, size in SIZES.items()}, 0.1, 5)
CLOSED = jax.jit(SEARCH.closed)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**30), st.floats(0.1, 1), st.floats(0.1, 1))
def test_a_score_mask_closes_half_of_the_space_and_nothing_else(seed, alive, part):
    rng = np.random.default_rng(seed)
    base = {name: rng.random(size) < alive for name, size in SIZES.items()}
    state = SEARCH.init(base)
    space = np.asarray(state.space) & (rng.random(state.space.shape) < part)
    state = state._replace(space=jnp.asarray(space), step=jnp.array(9))
    closed = np.asarray(CLOSED(state, jax.random.key(seed)))
    assert not (closed & ~space).any()
    np.testing.assert_array_equal(closed.sum(1), space.sum(1) // 2)
    for name, mask in SEARCH.units(np.asarray(state.alive) & ~closed).items():
        assert not (np.asarray(mask) & ~base[name]).any()  # score mask <= base mask


@pytest.fixture(scope="module")
def net():
    task = toy_task(train_size=96)
    return task, Train(100, 0.1, 16, max_steps=60)(Pruned(drawn(task), None), task, KEY)[0]


def by_hand(task, variables, closed, x, site):
    """What a layer says with the input of the dense net, some units of it closed."""
    groups = Net(task).groups
    taps = jax.jit(jprune.taps(task.fn, groups, ("act", "norm")))
    masked = apply_masks(variables, expand(groups, closed, ("in",)))
    return [taps(net, x)[1][site] for net in (variables, masked)]


def test_damage_is_the_change_of_the_next_layer_and_of_no_other(net):
    """Against the masked net itself, where one group is closed; and isolated where two are."""
    task, start = net
    groups = Net(task).groups
    stream, inner = groups.names
    assert readers(groups)[inner] == ("params/conv3/kernel",)
    x = jnp.asarray(next(task.data.batches("train", 32))["image"])
    damages = jax.jit(isolated_damages(task.fn, groups, (stream, inner)))
    rng, dense = np.random.default_rng(0), ones(groups)
    for _ in range(3):
        closed = {name: rng.random(size) < 0.6 for name, size in groups.sizes.items()}
        found = damages(start.variables, closed, x)
        whole, side = by_hand(
            task, start.variables, {inner: closed[inner]}, x, ("params/conv3/kernel", "norm")
        )
        ratio = float(((whole - side) ** 2).sum() / (whole**2).sum())
        assert found[inner] == pytest.approx(ratio, rel=1e-4)
        alone = damages(start.variables, {**dense, inner: closed[inner]}, x)
        assert float(found[inner]) == float(alone[inner])
        assert float(alone[stream]) == 0
    assert all(float(t) == 0 for t in damages(start.variables, dense, x).values())


def test_scoring_changes_neither_loss_nor_weights(net):
    """Theta 0: the search runs and nothing goes, so training is plain training, bit for bit."""
    task, start = net
    train = dataclasses.replace(LONG, max_steps=8)
    stage = Halve(train, ANY, theta=0.0, period=2, warmup=0, streams=True)
    found, _ = stage(start, task, KEY)
    whole = start._replace(masks=ones(Net(task).groups))
    expected, _ = train(whole, task, KEY)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    assert all(mask.all() for mask in found.masks.values())


def test_the_search_finds_the_units_that_cost_nothing():
    """Ten of 16 units have damage: the other six go, in moves of halves, and no more."""
    c = jnp.where(jnp.arange(16) < 6, 0.0, 1.0)
    search = halving({"a": 16}, {"a": range(1, 17)}, theta=0.05, period=40)

    @jax.jit
    def step(state, key):
        closed = search.closed(state, key)
        damage = (closed[0] * c).sum() / 10
        return search.moved(search.charged(state, closed, damage[None]))

    state, widths = search.init({"a": np.ones(16, bool)}), []
    for number in range(40 * 30):
        state = step(state, jax.random.fold_in(KEY, number))
        widths.append(int(state.alive.sum()))
    assert np.flatnonzero(~np.asarray(state.alive[0])).tolist() == [0, 1, 2, 3, 4, 5]
    assert all(before >= after for before, after in itertools.pairwise(widths))
    assert int(state.moves[0]) >= 2
    assert {n + 1 for n, pair in enumerate(itertools.pairwise(widths)) if pair[0] > pair[1]} <= {
        *range(39, 40 * 30, 40)
    }


def test_a_group_of_one_rests_and_widths_are_multiples():
    allowed = {"a": (4, 8), "b": (1,)}
    search = halving({"a": 8, "b": 1}, allowed, theta=1.0, period=1)
    state = search.init({"a": np.ones(8, bool), "b": np.ones(1, bool)})
    for number in range(6):
        closed = search.closed(state, jax.random.fold_in(KEY, number))
        assert not closed[1].any()
        state = search.moved(search.charged(state, closed, jnp.zeros(2)))
        assert int(state.alive[0].sum()) in (4, 8)
    assert state.alive.sum(1).tolist() == [4, 1]


def test_moves_are_cut_short_where_they_would_pass_by_the_budget():
    fits = lambda units: units["a"].sum() + units["b"].sum() <= 13
    sizes = {"a": 8, "b": 8}
    search = halving(sizes, {n: range(1, 9) for n in sizes}, 1.0, 1, 0, fits)
    state = search.init({name: np.ones(8, bool) for name in sizes})
    for number in range(4):
        closed = search.closed(state, jax.random.fold_in(KEY, number))
        state = search.moved(search.charged(state, closed, jnp.zeros(2)))
    assert int(state.alive.sum()) == 13


def test_training_ends_by_itself_once_the_budget_is_met(net):
    task, start = net
    budget = Budget(macs=0.6)
    stage = Halve(LONG, budget, theta=10.0, period=1, warmup=0, streams=True)
    learner = stage.learner(start, task, KEY)
    taken = []
    counted = learner._replace(step=lambda *args: taken.append(0) or learner.step(*args))
    done, metrics = to_the_end(counted)
    assert len(taken) % learner.epoch == 0
    assert 0 < len(taken) < learner.steps
    dense = float(Net(task).cost({}).macs)
    price = lambda widths: float(Net(task).cost(widths).macs) / dense
    widths = {name: int(mask.sum()) for name, mask in done.masks.items()}
    assert price(widths) <= 0.6 < max(price({**widths, n: w + 1}) for n, w in widths.items())
    assert metrics["moves"] > 0
    for path, mask in Net(task).leaves(Net(task).weight_masks(done.masks)).items():
        assert not np.asarray(Net(task).leaves(done.variables)[path])[~np.asarray(mask)].any()
    alone = dataclasses.replace(stage, stop="theta", theta=0.0).learner(start, task, KEY)
    assert not alone.over(alone.init())


def widths_at(net, theta):
    task, start = net
    train = dataclasses.replace(LONG, learning_rate=1e-3, max_steps=48)
    stage = Halve(train, ANY, theta=theta, period=4, warmup=0, streams=True, stop="theta")
    after, _ = stage(start, task, KEY)
    return sum(int(mask.sum()) for mask in after.masks.values())


def test_theta_alone_decides_the_widths(net):
    found = [widths_at(net, theta) for theta in (0.05, 1.0)]
    assert 20 > found[0] > found[1] >= 2


def test_streams_stay_whole_unless_asked_and_what_is_left_is_corrected(net):
    task, start = net
    stream, inner = Net(task).groups.names
    for theta, correct, least in ((10.0, True, 0.5), (0.0, True, 0.5), (0.0, False, 1.0)):
        recipe = recipes.find("aofp")(
            Budget(macs=0.6), None, LONG, theta=theta, correct=correct, period=2, warmup=0
        )
        done, records = recipes.run(recipe, start, task, KEY)
        (cut,) = (r["metrics"] for r in records if r["stage"] == "prune")
        assert least <= cut["macs"] <= max(least, 0.6)
        assert done.masks[stream].all()
        assert done.masks[inner].all() == (not correct)
        assert (cut["forced"] > 0) == (theta == 0 and correct)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"theta": -1.0}, "theta is 0 or more"),
        ({"period": 0}, "period is 1 or more"),
        ({"warmup": -1}, "warmup is 0 or more"),
        ({"stop": "bugdet"}, "did you mean budget"),
        ({"search": 1.0}, "search is in"),
        ({"rate": 0.0}, "rate is above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(errors.ArgumentError, match=says):
        recipes.find("aofp")(Budget(macs=0.5), None, LONG, **options)


def test_nets_in_which_nothing_may_go_are_refused(net):
    task, _ = net
    _, inner = Net(task).groups.names
    whole = Budget(macs=0.9, floors={inner: 12})
    with pytest.raises(errors.ArgumentError, match="Write streams=true"):
        check((Halve(LONG, whole),), task)
    with pytest.raises(errors.BudgetError):
        check((Halve(LONG, Budget(macs=0.05)),), task)
    check((Halve(LONG, Budget(macs=0.05), streams=True),), task)
