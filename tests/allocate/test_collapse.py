"""Global top-k: layers that would collapse, and budgets that rounds have to meet."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import allocate, criteria, data, recipes, stages, train, zoo
from jprune.allocate import budgets
from jprune.base import Budget, Pruned
from jprune.train.net import Net

WIDTHS = {"a": 8, "b": 16, "wide": 64}


@pytest.fixture(scope="module")
def falling():
    """Taylor's scores of a net of ReLUs, its cost, and its sizes: the widest layer falls first."""
    rng = np.random.default_rng(0)
    sizes, variables = [1, *WIDTHS.values()], {}
    for name, inputs, outputs in zip(WIDTHS, sizes, sizes[1:]):
        kernel = np.abs(rng.normal(size=(3, 3, inputs, outputs)))
        variables[name] = jnp.asarray(kernel / (9 * inputs), jnp.float32)
    variables["out"] = jnp.asarray(np.abs(rng.normal(size=(64, 1))) / 64, jnp.float32)
    layout = ("NHWC", "HWIO", "NHWC")

    def fn(v, x):
        for name in WIDTHS:
            x = jax.lax.conv_general_dilated(x, v[name], (1, 1), "SAME", dimension_numbers=layout)
            x = jax.nn.relu(x) if name == "wide" else jax.nn.relu(x)[:, ::2, ::2]
        return x.mean((1, 2)) @ v["out"]

    x = jnp.asarray(np.abs(rng.normal(size=(16, 10, 8, 1))), jnp.float32)
    groups = jprune.trace(fn, variables, x)
    model = jprune.cost_model(fn, variables, x, groups=groups)
    taylor = criteria.taylor(fn, lambda out, batch: 0.5 * out[:, 0] ** 2)
    return jprune.to_units(groups, jprune.run_criterion(taylor, variables, [{"image": x}])), model


def test_a_sixteenth_of_every_group_stays_and_the_group_is_named(falling, caplog):
    scores, model = falling
    masks = allocate.global_topk(scores, Budget(macs=0.25), model)
    assert {n: int(m.sum()) for n, m in masks.items()}["wide"] == 4  # one, without a floor
    assert float(model(masks).macs) <= 0.25 * float(model({}).macs)
    assert "keeps 4 of the 64 units of wide" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_a_floor_that_is_written_is_taken_and_nothing_is_said(falling, caplog):
    scores, model = falling
    for floor, kept in ((1, range(1, 4)), (20, range(20, 65))):
        masks = allocate.global_topk(scores, Budget(macs=0.25, floors={"wide": floor}), model)
        assert int(masks["wide"].sum()) in kept
    assert not caplog.records


def test_a_density_is_counted_exactly_and_the_group_is_named_all_the_same(falling, caplog):
    scores, _ = falling
    masks = allocate.global_topk(scores, Budget(density=0.25))
    assert sum(int(mask.sum()) for mask in masks.values()) == 22
    assert int(masks["wide"].sum()) == 1
    assert "of the 64 units of wide" in caplog.text
    caplog.clear()
    even = {name: np.arange(size) / size for name, size in WIDTHS.items()}
    allocate.global_topk(even, Budget(density=0.25))
    assert not caplog.records


def test_floors_alone_never_make_a_budget_impossible(falling):
    scores, model = falling
    masks = allocate.global_topk(scores, Budget(macs=0.02), model)
    assert float(model(masks).macs) <= 0.02 * float(model({}).macs)


@pytest.mark.parametrize("method", ["random", "l1"])
@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
def test_the_last_of_several_rounds_fills_the_budget_up(method, schedule):
    task = train.task(zoo.build("resnet8", shape=(8, 8, 1)), data.load("digits"))
    tune = recipes.Train(1, 0.1, 64, max_steps=1)
    settings = {"schedule": schedule, "allocator": "global_topk"}
    recipe = recipes.find(method)(Budget(macs=0.5, multiple_of=8), None, tune, **settings)
    prunings = [stage for stage in recipe if isinstance(stage, stages.Prune)]
    assert len(prunings) == 5
    macs = lambda masks: float(Net(task).cost(masks).macs)
    for seed in range(4):
        pruned, before = Pruned(task.init(jax.random.key(0)), None), 1.0
        for number, stage in enumerate(prunings):
            key = jax.random.fold_in(jax.random.key(seed), number)
            pruned, _ = stage(pruned, task, key)
            assert macs(pruned.masks) / macs({}) <= min(before, stage.budget.macs) + 1e-6
            before = macs(pruned.masks) / macs({})
        assert before >= 0.46
        assert all(int(mask.sum()) % 8 == 0 for mask in pruned.masks.values())


def test_what_the_last_round_would_keep_stays_in_all_rounds():
    """Widths 8 and 8 in steps of 4, of which MACs are the product: a half is 8 x 4 or 4 x 8."""

    def model(masks):
        first, second = (np.asarray(masks.get(n, np.ones(8))).sum() for n in "ab")
        return jprune.base.Cost(first + second, first * second, 0, {})

    scores = {"a": np.arange(8.0), "b": np.arange(8.0) + 100}
    half = Budget(macs=0.5, multiple_of=4)
    wanted = allocate.global_topk(scores, half, model)
    held = {n: np.where(wanted[n], np.inf, s) for n, s in scores.items()}
    between = allocate.global_topk(held, Budget(macs=0.75, multiple_of=4), model)
    assert all((between[name] >= wanted[name]).all() for name in scores)
    assert budgets.MISSED == 0.02
