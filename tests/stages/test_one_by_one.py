"""Units that go one after another while the net trains."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import allocate, criteria, errors, recipes
from jprune.base import Budget, Pruned
from jprune.cost import own_flops
from jprune.stages import Adjust, ByMagnitude, BySlopes, RemoveOneByOne, Train
from jprune.train.net import Net
from tests.contracts.own import by_path
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
FINE = Train(6, 0.02, 16, schedule="constant", name="remove")


@functools.cache
def task_of():
    return toy_task()


def states(stage, task):
    """The states before and after every step."""
    learner = stage.learner(Pruned(drawn(task), None), task, KEY)
    state, batches = learner.init(), learner.batches(0)
    seen = [jax.tree.map(np.asarray, state)]
    for _ in range(learner.steps):
        state, _ = learner.step(state, next(batches))
        seen.append(jax.tree.map(np.asarray, state))
    return seen, learner.finish(state)


def counts(state):
    return sum(int(mask.sum()) for mask in state.opt_state[1].alive.values())


def test_one_unit_goes_at_a_time_and_stays_0():
    task = task_of()
    stage = RemoveOneByOne(FINE, Budget(density=0.7), BySlopes(), every=3)
    seen, done = states(stage, task)
    # 20 units, of which 6 go in 18 steps, one every three.
    assert [counts(state) for state in seen] == [20 - step // 3 for step in range(19)]
    for before, after in itertools.pairwise(seen):
        masks = Net(task).weight_masks(after.opt_state[1].alive)
        for path, mask in Net(task).leaves(masks).items():
            if path.startswith("params/"):
                now = by_path({"params": after.params})[path]
                assert not now[~np.asarray(mask)].any(), path
        moved = by_path(after.params)["conv2/kernel"] != by_path(before.params)["conv2/kernel"]
        alive = by_path(after.params)["conv2/kernel"] != 0
        assert moved[alive].mean() > 0.9
    assert sum(int(mask.sum()) for mask in done.masks.values()) == 14


def test_what_goes_has_the_lowest_score_of_the_batches_since_the_last_one():
    """Every removal, against scores made by the criterion alone in the net of that step."""
    task = task_of()
    net, every = Net(task), 2
    short = dataclasses.replace(FINE, epochs=3)
    stage = RemoveOneByOne(short, Budget(density=0.8), BySlopes(), Adjust("l2", 1.0), every)
    seen, _ = states(stage, task)
    learner = stage.learner(Pruned(drawn(task), None), task, KEY)
    batches = learner.batches(0)
    seeing = lambda v, x: task.train_fn(v, x, KEY)
    flops = own_flops(net.groups)
    criterion = criteria.gate_slopes(seeing, task.loss, net.groups, has_aux=True)
    gathered = None
    for number, state in enumerate(seen[:-1]):
        variables = task.merge(state.params, state.rest)
        gathered = criterion.init(variables) if gathered is None else gathered
        gathered = criterion.update(gathered, variables, next(batches))
        if (number + 1) % every:
            continue
        scores = allocate.normalized(criterion.score(gathered, variables))
        before, after = state.opt_state[1].alive, seen[number + 1].opt_state[1].alive
        price = lambda name: flops[name] / 1e6
        left = {
            (name, unit): float(score[unit]) - price(name)
            for name, score in scores.items()
            for unit in np.flatnonzero(before[name])
        }
        gone = [(n, u) for n in before for u in np.flatnonzero(before[n] & ~after[n])]
        assert gone == [min(left, key=left.__getitem__)]
        gathered = None


@pytest.mark.parametrize(
    "budget", [Budget(macs=0.5), Budget(params=0.6), Budget(macs=0.5, multiple_of=4)], ids=str
)
def test_the_budget_is_met_in_few_steps(budget):
    task = task_of()
    short = dataclasses.replace(FINE, epochs=1)
    _, done = states(RemoveOneByOne(short, budget, ByMagnitude()), task)
    cost, dense = Net(task).cost(done.masks), Net(task).cost({})
    kept = float(getattr(cost, budget.kind)) / float(getattr(dense, budget.kind))
    assert budget.value - (0.15 if budget.multiple_of > 1 else 0.08) < kept <= budget.value + 1e-6
    widths = {int(mask.sum()) for mask in done.masks.values()}
    assert all(width % budget.multiple_of == 0 for width in widths)


def test_a_stream_stays_whole_where_that_is_asked_for():
    task = task_of()
    _, done = states(RemoveOneByOne(FINE, Budget(macs=0.7), BySlopes(), stream="whole"), task)
    kept = {name: int(mask.sum()) for name, mask in done.masks.items()}
    assert kept["params/conv1/kernel"] == 8
    assert kept["params/conv2/kernel"] < 12


def test_removal_ends_with_the_best_score_in_all_groups_together():
    """`lowest_first` by itself: order, floors, what is gone, NaN, groups without scores."""
    sizes = {"a": 3, "b": 2, "c": 2}
    alive = {name: jnp.ones(size, bool) for name, size in sizes.items()}
    scores = {"a": jnp.array([5.0, jnp.nan, 0.5]), "b": jnp.array([1.0, 0.1])}
    remove = allocate.lowest_first(sizes, Budget(density=0.1))
    order = []
    for _ in range(6):
        now = remove(scores, alive)
        order += [(n, int(u)) for n in now for u in np.flatnonzero(alive[n] & ~now[n])]
        alive = now
    assert order == [("b", 1), ("a", 2), ("a", 0)]
    assert {name: int(mask.sum()) for name, mask in alive.items()} == {"a": 1, "b": 1, "c": 2}


def test_a_price_divides_or_is_subtracted_by_what_goes_with_a_unit():
    task = task_of()
    net = Net(task)
    ones = {name: jnp.ones(size) for name, size in net.groups.sizes.items()}
    subtracted = Adjust(strength=2.0).of(net)(ones, ones)
    divided = Adjust(divided=True, count="all").of(net)(ones, ones)
    dense = float(net.cost({}).macs)
    for name, size in net.groups.sizes.items():
        own = 1 - 2.0 * own_flops(net.groups)[name] / 1e6
        np.testing.assert_allclose(subtracted[name], own, rtol=1e-6)
        without = float(net.cost({name: np.arange(size) > 0}).macs)
        np.testing.assert_allclose(divided[name], 0.5 / (dense - without), rtol=1e-5)


def test_a_price_leaves_more_units_at_equal_macs():
    """The FLOPs term prefers maps that cost much, so that more of them stay."""
    task = task_of()
    short = dataclasses.replace(FINE, epochs=2)
    kept = []
    for strength in (0.0, 1000.0):
        adjust = Adjust("l2", strength, count="all")
        _, done = states(RemoveOneByOne(short, Budget(macs=0.5), BySlopes(), adjust), task)
        kept.append(sum(int(mask.sum()) for mask in done.masks.values()))
    assert kept[1] > kept[0]


def test_the_recipe_runs_and_bad_words_are_refused():
    task = task_of()
    fine = dataclasses.replace(FINE, epochs=2, name="finetune")
    recipe = recipes.find("taylor2016")(Budget(macs=0.6), None, fine, form="signed", count="all")
    done, seen = recipes.run(recipe, Pruned(drawn(task), None), task, KEY)
    stages = [row["stage"] for row in seen]
    assert stages == ["dense", "remove", "before_finetune", "finetune"]
    share = float(Net(task).cost(done.masks).macs) / float(Net(task).cost({}).macs)
    assert 0.5 < share <= 0.6 + 1e-6
    for options, says in (
        ({"form": "entries"}, "absolute, signed or square"),
        ({"count": "both"}, "own, all"),
        ({"flops": -1.0}, "0 or more"),
        ({"stream": "sampler"}, "joint, whole"),
        ({"every": 0}, "1 or more"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            recipes.find("taylor2016")(Budget(macs=0.6), None, fine, **options)
    with pytest.raises(errors.ArgumentError, match="no group of this net has a site 'x'"):
        RemoveOneByOne(fine, Budget(macs=0.6), BySlopes(gates="x")).check(task)
    with pytest.raises(errors.ArgumentError, match="cannot train with ema"):
        RemoveOneByOne(dataclasses.replace(fine, ema=0.9), Budget(macs=0.6), BySlopes()).check(task)
    with pytest.raises(errors.ArgumentError, match="every=5, units=1"):
        jprune.sparsify.one_by_one(
            criteria.magnitude(), Net(task).groups, lambda *_: {}, 5, steps=4
        )
