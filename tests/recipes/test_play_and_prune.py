"""Play and prune [40]: the controller, the penalty on candidates, and a tolerance that is kept."""

import dataclasses
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import blocks, errors, recipes
from jprune.base import Budget, Pruned
from jprune.sparsify import candidate_decay, candidates
from jprune.stages import CutBelow, Game, Press, Train, Watch
from jprune.stages.tolerance import controlled
from jprune.train.evaluate import mean_quality
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = own.KEY
SHORT = Train(100, 0.05, 16, max_steps=10, name="finetune")
BUDGET = Budget(density=0.25)


@pytest.mark.parametrize(
    ("accuracy", "margin", "strength", "threshold"),
    [
        (0.99, 0.01, 5e-6, 0.1),
        (0.985, 0.005, 2.5e-6, 0.05),
        (0.98, 0, 0, 0),
        (0.975, 0, 0, 0),
        (0.995, 0.015, 7.5e-6, 0.1),  # W_A is never above W_gamma
    ],
)
def test_penalty_and_threshold_follow_the_margin(accuracy, margin, strength, threshold):
    move = controlled(accuracy, 0.99, 0.01, 5e-4, 100)
    np.testing.assert_allclose(move[:2], (margin, strength), atol=1e-12)
    assert move.scale * 0.1 == pytest.approx(threshold)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-3, 0.5))
def test_the_controller_is_monotone_and_stops_at_the_tolerance(base, now, tolerance):
    move = controlled(now, base, tolerance, 1.0, 1 / tolerance)
    better = controlled(now + 0.01, base, tolerance, 1.0, 1 / tolerance)
    assert 0 <= move.scale <= better.scale <= 1
    assert move.strength <= better.strength
    if now <= base - tolerance:
        assert move == (0, 0, 0)


@pytest.fixture(scope="module")
def net():
    task = toy_task(train_size=96, validation_size=60)
    train = Train(100, 0.1, 16, max_steps=100)
    return task, train(Pruned(drawn(task), None), task, KEY)[0]


def test_candidates_alone_move_by_rate_times_strength(net):
    """Zero task loss, SGD at 0.1, lambda_A 0.01: 0.001 towards 0, and nothing else moves."""
    task, start = net
    of = blocks.filters(Net(task).groups, scales=False)
    params = task.split(start.variables)[0]
    tx = optax.chain(optax.sgd(0.1), candidate_decay(of, 0.25, 0.01, 0.1))
    still = jax.tree.map(jnp.zeros_like, params)
    after = optax.apply_updates(params, tx.update(still, tx.init(params), params)[0])
    sizes = {
        "params/conv1/kernel": np.abs(params["conv1"]["kernel"]).sum((0, 1, 2))
        + np.abs(params["conv3"]["kernel"]).sum((0, 1, 2)),
        "params/conv2/kernel": np.abs(params["conv2"]["kernel"]).sum((0, 1, 2)),
    }
    layers = {"params/conv1/kernel": ("conv1", "conv3"), "params/conv2/kernel": ("conv2",)}
    for name, size in sizes.items():
        inside = np.isin(np.arange(size.size), np.argsort(size)[: round(0.25 * size.size)])
        for layer in layers[name]:
            before, now = (np.asarray(tree[layer]["kernel"]) for tree in (params, after))
            large = np.abs(before) > 0.001
            moved = before - now
            np.testing.assert_allclose(
                moved[large & inside], 0.001 * np.sign(before)[large & inside], atol=1e-7
            )
            assert not now[~large & inside].any()
            assert not moved[..., ~inside].any()
    for layer in ("norm1", "norm2", "norm3", "fc"):
        for leaf in params[layer]:
            np.testing.assert_array_equal(after[layer][leaf], params[layer][leaf])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.floats(0.05, 0.95))
def test_candidates_are_the_smallest_that_are_alive_and_never_all(sizes, fraction):
    member = blocks.Member("w", (1, None))
    of = blocks.Blocks("row", "weight", {"w": blocks.Block(len(sizes), (member,))})
    values = np.array(sizes, np.float32)[:, None]
    chosen = np.asarray(candidates(of, {"w": values}, fraction)["w"])
    alive = np.flatnonzero(values[:, 0])
    expected = sorted(alive, key=lambda row: (values[row, 0], row))
    count = min(max(1, round(float(np.float32(fraction) * alive.size))), alive.size - 1)
    assert {*np.flatnonzero(chosen)} == {*expected[: max(count, 0)]}


def watched(start, task, **changes):
    pruned, _ = Watch(Game(0.1))(start, task, KEY)
    return pruned._replace(extra={**pruned.extra, **changes})


def test_no_margin_prunes_nothing_and_presses_nothing(net):
    task, start = net
    begun = watched(start, task, base=np.asarray(2.0), quality=np.asarray(1.0))
    after, (record,) = CutBelow(BUDGET, Game(0.1))(begun, task, KEY)
    assert record["metrics"]["removed"] == 0
    assert record["metrics"]["margin"] == record["metrics"]["strength"] == 0
    assert all(mask.all() for mask in after.masks.values())
    press = Press(SHORT, BUDGET, Game(0.1, strength=1.0))
    assert set(press.strengths(begun, task).values()) == {0.0}
    assert min(press.strengths(watched(start, task), task).values()) == pytest.approx(0.1)


def test_the_threshold_is_the_largest_that_costs_nothing(net):
    """Against all numbers of units, one by one."""
    task, start = net
    begun, stage = watched(start, task), CutBelow(BUDGET, Game(0.1))
    for name in Net(task).groups.names:
        size = np.random.default_rng(0).permutation(Net(task).groups.sizes[name]) + 1.0
        alive = Net(task).unit_masks(begun)
        now = mean_quality(task, start.variables, "validation")
        highest = stage.threshold(begun, task, now, alive, name, size)
        fine = []
        for count in range(size.size):
            keep = {**alive, name: size > count}
            masked, _ = CutBelow(BUDGET)(begun._replace(
                extra={**begun.extra, "base": np.asarray(9.0)}, masks=keep,
            ), task, KEY)  # fmt: skip
            fine.append(mean_quality(task, masked.variables, "validation") >= now)
        below = int(highest) - 1  # sizes are 1, 2, ...: so many are below the threshold
        assert fine[below]
        assert below == size.size - 1 or not fine[below + 1]


def play(net, tolerance, rounds=3, budget=BUDGET, train=SHORT, **options):
    task, start = net
    recipe = recipes.find("play_and_prune")(
        budget, None, train, tolerance=tolerance, rounds=rounds, **options
    )
    done, records = recipes.run(recipe, start, task, KEY)
    return task, done, records


@pytest.mark.parametrize("tolerance", [0.02, 0.1])
def test_the_tolerance_is_kept_and_filters_never_come_back(net, tolerance):
    task, done, records = play(net, tolerance)
    base = mean_quality(task, net[1].variables, "validation")
    assert mean_quality(task, done.variables, "validation") >= base - tolerance - 1e-9
    watches = [r["metrics"] for r in records if r["stage"] == "watch"]
    cuts = [r["metrics"] for r in records if r["stage"] == "cut"]
    assert all(mask.any() for mask in done.masks.values())
    assert sum(cut["removed"] for cut in cuts) > 0
    for before, after in itertools.pairwise(watches):
        assert after["density"] <= before["density"]
    for path, mask in Net(task).leaves(Net(task).weight_masks(done.masks)).items():
        assert not np.asarray(Net(task).leaves(done.variables)[path])[~np.asarray(mask)].any()
    assert done.extra is None
    assert "within" not in done.saved


def test_the_tolerance_is_kept_where_it_binds(net):
    """Cuts that ask no layer for its quality, and training that mends nothing."""
    idle = dataclasses.replace(SHORT, learning_rate=1e-6, max_steps=1)
    base = mean_quality(net[0], net[1].variables, "validation")
    deep = Budget(density=0.1)
    sizes = []
    for tolerance in (0.02, 0.3):
        task, done, records = play(net, tolerance, 4, deep, idle, slack=1.0)
        watches = [r["metrics"] for r in records if r["stage"] == "watch"]
        assert mean_quality(task, done.variables, "validation") >= base - tolerance - 1e-9
        assert watches[0]["taken_back"] == 1
        assert watches[0]["quality"] < base - tolerance
        sizes.append(watches[-1]["density"])
    assert sizes[0] >= sizes[1]
    assert sizes[1] < 1


def test_a_cut_that_is_not_mended_is_taken_back_and_the_next_is_half_as_deep(net):
    task, start = net
    game = Game(0.01)
    begun, _ = Watch(game)(start, task, KEY)
    broken = jax.tree.map(jnp.zeros_like, start.variables)
    masks = {name: np.arange(size) < 1 for name, size in Net(task).groups.sizes.items()}
    after, (record,) = Watch(game)(begun._replace(variables=broken, masks=masks), task, KEY)
    assert record["metrics"]["taken_back"] == 1
    assert all(mask.all() for mask in after.masks.values())
    jax.tree.map(np.testing.assert_array_equal, after.variables, start.variables)
    assert game.move(after.extra).scale == game.move(begun.extra).scale / 2 == 0.5


def test_no_cut_goes_deeper_than_the_budget_asks(net):
    budget = Budget(macs=0.7)
    _, done, records = play(net, 0.5, budget=budget, slack=1.0)
    *_, last = (r["metrics"]["macs"] for r in records if r["stage"] == "cut")
    assert 0.5 < last <= 0.7
    by_eight = Budget(macs=0.7, multiple_of=4)
    _, done, _ = play(net, 0.5, budget=by_eight, slack=1.0)
    assert all(mask.sum() % 4 == 0 for mask in done.masks.values())


def test_candidates_come_to_0_in_a_press_that_nothing_holds():
    task = own.channels_first(False)._replace(loss=own.no_loss)
    start = Pruned(task.init(KEY), None)
    begun = watched(start, task)
    train = dataclasses.replace(SHORT, schedule="constant", weight_decay=0.0)
    after, _ = Press(train, BUDGET, Game(0.1, 0.3))(begun, task, KEY)
    of = blocks.filters(Net(task).groups, scales=False)
    chosen = candidates(of, start.variables, 0.3)
    before, now = (blocks.pool(of, jax.tree.map(np.abs, p.variables)) for p in (start, after))
    for name, inside in chosen.items():
        inside = np.asarray(inside)
        assert now[name][inside].max() < 0.5 * before[name][inside].min()
        np.testing.assert_allclose(now[name][~inside], before[name][~inside])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tolerance": 0.0}, "tolerance is above 0"),
        ({"fraction": 1.0}, "fraction is in"),
        ({"strength": -1.0}, "strength is 0 or more"),
        ({"gain": 0.0}, "gain is above 0"),
        ({"slack": -0.1}, "slack is 0 or more"),
        ({"press": 1.0}, "press is in"),
        ({"rounds": 0}, "rounds is 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(errors.ArgumentError, match=says):
        recipes.find("play_and_prune")(BUDGET, None, SHORT, **options)


def test_a_game_without_a_baseline_is_refused(net):
    task, start = net
    for stage in (Press(SHORT, BUDGET), CutBelow(BUDGET)):
        with pytest.raises(errors.ArgumentError, match=r"Put Watch\(\) before"):
            stage(start, task, KEY)
    nan = jax.tree.map(lambda leaf: leaf * np.nan, start.variables)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruned, _ = Watch()(start, task, KEY)
        with pytest.raises(errors.ArgumentError, match="hold NaN"):
            CutBelow(BUDGET)(pruned._replace(variables=nan), task, KEY)
