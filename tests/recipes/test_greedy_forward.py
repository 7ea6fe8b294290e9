"""Greedy forward selection: numbers of checks.md [8], its rate, the factor that is folded in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jprune
from jprune import errors, recipes, stages
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.recipes.greedy_forward import greedy_forward
from jprune.search import forward
from jprune.stages.forward import SelectForward, _losses, scaled
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
FINE = Train(1, 0.01, batch_size=16, max_steps=2, name="finetune")
HALF = Budget(macs=0.5)


def to(wanted, outputs):
    """Squared distance of the mean of chosen outputs to the wanted one."""
    return lambda gates, n: ((gates @ outputs / len(outputs) - wanted) ** 2).sum(axis=1)


def test_four_neurons():
    """P1, with repetition and without."""
    outputs = np.array([(2.0, 0), (0, 2), (-1, -1), (3, 1)])
    wanted = np.array([1, 0.5])
    again = forward(to(wanted, outputs), 4, 5, repeat=True)
    assert again.order.tolist() == [0, 1, 0, 2, 3]
    np.testing.assert_allclose(again.losses, [1.25, 0.25, 0.138889, 0.125, 0.05], rtol=1e-5)
    assert again.gates.tolist() == [1.6, 0.8, 0.8, 0.8]
    once = forward(to(wanted, outputs), 4, 4)
    assert once.order.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(once.losses, [1.25, 0.25, 0.472222, 0], rtol=1e-5, atol=1e-12)
    assert once.gates.tolist() == [1, 1, 1, 1]


@given(st.integers(0, 10**6), st.booleans())
def test_every_choice_is_that_of_a_loop(seed, repeat):
    """P2's loop, on cross-entropy of a layer of 6 neurons, in float64."""
    rng = np.random.default_rng(seed)
    hidden, second = np.maximum(rng.normal(size=(20, 6)), 0), rng.normal(size=(6, 3))
    labels = rng.integers(0, 3, 20)

    def loss(gates):
        logits = (hidden * gates) @ second
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(20), labels])

    found = forward(lambda sets, n: [loss(gates) for gates in sets], 6, 4, repeat=repeat)
    counts = np.zeros(6, int)
    for n, unit in enumerate(found.order):
        best = {}
        for i in range(6):
            if repeat or not counts[i]:
                a = np.array([counts[j] + (i == j) for j in range(6)]) / (n + 1)
                best[i] = loss(6 * a)
        assert unit == min(best, key=best.get)
        assert found.losses[n] == pytest.approx(best[unit], rel=1e-12)
        counts[unit] += 1
    np.testing.assert_array_equal(found.counts, counts)


def test_all_units_once_are_the_dense_layer():
    """P3: a = 1 / N and D a = 1, to the last bit."""
    outputs = np.random.default_rng(0).normal(size=(9, 3))
    found = forward(to(outputs.mean(axis=0), outputs), 9, 9)
    assert (found.gates == 1).all()
    assert found.losses[-1] < 1e-24


def slope(distances):
    n = np.arange(1, len(distances) + 1)
    return np.polyfit(np.log(n), np.log(distances), 1)[0]


def test_the_rate_on_isotropic_neurons():
    """Squared distances fall as n^-2 where the mean is inside of the hull; those of random sets
    as n^-1."""
    greedy, random = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        outputs = rng.normal(size=(1000, 4))
        wanted = outputs.mean(axis=0)
        greedy.append(np.log(forward(to(wanted, outputs), 1000, 30, repeat=True).losses))
        sets = np.stack([outputs[rng.integers(0, 1000, 30)] for _ in range(20)])
        means = sets.cumsum(axis=1) / np.arange(1, 31)[:, None]
        random.append(np.log(((means - wanted) ** 2).sum(axis=-1).mean(axis=0)))
    greedy, random = (np.exp(np.mean(each, axis=0)) for each in (greedy, random))
    assert slope(greedy) == pytest.approx(-2, abs=0.2)
    assert slope(random) == pytest.approx(-1, abs=0.25)
    assert greedy[-1] < 0.02 * random[-1]


def test_some_candidates_are_drawn_and_rows_keep_their_number():
    rows = []

    def losses(gates, n):
        rows.append(len(gates))
        return np.zeros(len(gates))

    found = forward(losses, np.arange(8) > 1, 6, candidates=4, seed=1)
    assert rows == [4] * 6
    assert sorted(found.order.tolist()) == [2, 3, 4, 5, 6, 7]
    assert found.gates.tolist() == [0, 0, *[1.0] * 6]  # D counts the units that may be chosen
    same = forward(losses, np.arange(8) > 1, 6, candidates=4, seed=1)
    assert same.order.tolist() == found.order.tolist()
    other = forward(losses, np.arange(8) > 1, 6, candidates=4, seed=2)
    assert other.order.tolist() != found.order.tolist()


def test_a_selection_ends_where_it_is_enough():
    found = forward(
        lambda gates, n: np.arange(len(gates)), 5, 4, enough=lambda g: (g > 0).sum() > 1
    )
    assert found.order.tolist() == [0, 1]


def test_bad_selections():
    flat = lambda gates, n: np.zeros(len(gates))
    assert forward(flat, 3, 2).order.tolist() == [0, 1]  # ties by lowest unit
    for count, options in ((0, {}), (4, {}), (1, {"candidates": 0})):
        with pytest.raises(errors.ArgumentError, match="1 or more"):
            forward(flat, 3, count, **options)
    with pytest.raises(errors.ArgumentError, match="finite loss"):
        forward(lambda gates, n: np.full(len(gates), np.nan), 3, 1)
    odd = lambda gates, n: np.where(np.arange(len(gates)) == 0, np.nan, 1.0)
    assert forward(odd, 3, 1).order.tolist() == [1]


@pytest.fixture(scope="module")
def task():
    return toy_task("tiny")


@pytest.fixture(scope="module")
def start(task):
    return Pruned(drawn(task), None)


def stage_of(budget=HALF, **settings):
    return SelectForward(budget, **{"batches": 1, "batch_size": 48, "candidates": 0, **settings})


def test_the_factor_is_folded_into_the_readers_without_loss(task, start):
    """The net under gates at every reader is the folded net, and the small one."""
    pruned, (line,) = stage_of(stream="joint")(start, task, KEY)
    net = Net(task)
    gates = {
        n: np.where(m, len(m) / m.sum(), 0).astype(np.float32) for n, m in pruned.masks.items()
    }
    assert max(gate.max() for gate in gates.values()) > 1.2
    x = next(task.data.batches("test", 12))["image"]
    gated = jax.jit(jprune.gated(task.fn, net.groups))(start.variables, gates, x)
    folded = jax.jit(task.fn)(pruned.variables, x)
    np.testing.assert_allclose(folded, gated, rtol=1e-4, atol=1e-5)
    fn, small = net.slim(pruned)
    np.testing.assert_allclose(jax.jit(fn)(small, x), gated, rtol=1e-4, atol=1e-5)
    assert line["metrics"]["macs"] <= 0.5
    assert line["metrics"]["layers"] == len(gates)


@pytest.mark.parametrize("imitate", ["loss", "outputs", "layer"])
def test_choices_of_the_stage_are_those_of_a_loop_over_nets(task, start, imitate):
    """One layer; every candidate is a net of its own, run by itself."""
    pruned, _ = stage_of(imitate=imitate)(start, task, KEY)
    net = Net(task)
    (name,) = [n for n, m in pruned.masks.items() if not m.all()]
    reader = {"params/conv2/kernel": "params/conv3/kernel"}[name]
    size, count = len(pruned.masks[name]), int(pruned.masks[name].sum())
    (batch,) = [b for b in task.data.batches("train", 48)]
    run = jax.jit(jprune.taps(task.fn, net.groups, ("out",)))
    whole = run(start.variables, batch["image"])

    def loss(gates):
        out, seen = run(scaled(net, start.variables, {name: gates}), batch["image"])
        if imitate == "loss":
            return float(task.loss(out, batch).mean())
        if imitate == "outputs":
            return float(((out - whole[0]) ** 2).mean())
        return float(((seen[reader, "out"] - whole[1][reader, "out"]) ** 2).mean())

    chosen = []
    for n in range(count):
        left = [unit for unit in range(size) if unit not in chosen]
        sets = [np.isin(np.arange(size), [*chosen, unit]) * size / (n + 1) for unit in left]
        chosen.append(left[int(np.argmin([loss(gates) for gates in sets]))])
    assert np.flatnonzero(pruned.masks[name]).tolist() == sorted(chosen)


def test_greedy_is_better_than_random_and_than_large_weights(task):
    """Few units of many: then it matters which."""
    trained, _ = Train(12, 0.1, 16)(Pruned(drawn(task), None), task, KEY)
    net, stage = Net(task), stage_of(Budget(macs=0.1), stream="joint")
    pruned, _ = stage(trained, task, KEY)
    (batch,) = [b for b in task.data.batches("train", 48)]
    fn = jax.jit(lambda v: task.loss(task.fn(v, batch["image"]), batch).mean())

    def loss(masks):
        gates = {n: np.where(m, len(m) / m.sum(), 0).astype(np.float32) for n, m in masks.items()}
        return float(fn(scaled(net, trained.variables, gates)))

    rng = np.random.default_rng(0)
    random = [loss({n: rng.permutation(m) for n, m in pruned.masks.items()}) for _ in range(20)]
    sizes = jprune.to_units(net.groups, jax.tree.map(jnp.abs, trained.variables))
    rank = lambda name: np.argsort(np.argsort(-np.asarray(sizes[name])))
    greedy = loss(pruned.masks)
    assert greedy < min(random)
    assert greedy < np.median(random) / 4
    assert greedy < loss({n: rank(n) < m.sum() for n, m in pruned.masks.items()})
    # Without the factor D / n, sums of few units are far too small.
    unscaled = float(fn(jprune.apply_masks(trained.variables, net.weight_masks(pruned.masks))))
    assert greedy < unscaled


def test_one_program_serves_all_layers_and_choices(task, start):
    stage = stage_of(stream="joint", imitate="layer", batches=2, batch_size=16)
    stage(start, task, KEY)
    before = [key for key in Net(task)._facts.made if key[0] is _losses]
    stage(start, task, jax.random.key(1))
    programs = [Net(task)._facts.made[key] for key in before if key[3] == "layer"]
    assert [program._cache_size() for program in programs][-1] == 1


def test_a_tolerance_ends_a_layer_early(task):
    trained, _ = Train(12, 0.1, 16)(Pruned(drawn(task), None), task, KEY)
    (loose, (few,)), (tight, (all_,)) = (
        stage_of(tolerance=t)(trained, task, KEY) for t in (0.99, 0.0)
    )
    kept = lambda pruned: sum(int(mask.sum()) for mask in pruned.masks.values())
    assert kept(loose) <= kept(tight)
    assert few["metrics"]["macs"] <= all_["metrics"]["macs"] <= 0.5
    assert loose.masks["params/conv2/kernel"].sum() == 1


def test_rounds_take_layers_in_order_and_nothing_twice(task, start):
    recipe = greedy_forward(HALF, None, FINE, rounds=2, stream="joint", batches=1, batch_size=16)
    pruned, records = recipes.run(recipe, start, task, KEY)
    lines = [line["metrics"] for line in records if line["stage"] == "prune"]
    assert [line["layers"] for line in lines] == [1, 1]
    assert lines[0]["macs"] > lines[1]["macs"] <= 0.5
    masks = Net(task).leaves(Net(task).weight_masks(pruned.masks))
    for path, leaf in Net(task).leaves(pruned.variables).items():
        assert not np.asarray(leaf)[~np.asarray(masks[path])].any()


def test_what_does_not_fit_is_refused_before_training(task):
    refused = lambda recipe, task=task: stages.check(recipe, task)
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        refused(greedy_forward(Budget(macs=0.001), FINE, FINE))
    with pytest.raises(errors.ArgumentError, match="ratios has 2 numbers"):
        refused(greedy_forward(HALF, FINE, FINE, ratios=(1.0, 2.0)))
    lonely = own.task_of(
        lambda v, x: x.mean((1, 2)) @ v["params"]["w"], own.draw({"w": (3, 2)}), (4, 4, 3)
    )
    with pytest.raises(errors.ArgumentError, match="nothing of made is prunable"):
        refused(greedy_forward(HALF, FINE, FINE), lonely)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"imitate": "logits"}, "loss, outputs, layer"),
        ({"stream": "sampler"}, "whole, joint"),
        ({"candidates": -1}, "0 (all) or more"),
        ({"batches": 0}, "1 or more"),
        ({"tolerance": 1.0}, "in [0, 1)"),
        ({"rounds": 0}, "rounds are 1 or more"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(errors.ArgumentError) as raised:
        greedy_forward(HALF, None, FINE, **options)
    assert says in str(raised.value)
