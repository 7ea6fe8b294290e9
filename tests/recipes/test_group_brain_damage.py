"""Group-wise brain damage [15]: columns, the truncated penalty, thin patches, zeros that stay."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import blocks, errors, forms, recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.sparsify import group_lasso, group_penalty, truncated_lasso, truncated_penalty
from jprune.stages.frame import check
from jprune.stages.truncated_lasso import Columns, PruneColumns, ShrinkWeakest
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = jax.random.key(4)
LAYOUT = ("NCHW", "OIHW", "NCHW")


def conv_fn(v, x):
    return jax.lax.conv_general_dilated(x, v["k"], (1, 1), "VALID", dimension_numbers=LAYOUT)


def one_channel():
    """K [2, 1, 2, 2]: filters [[3, 0], [1, .1]] and [[4, 0], [1, .2]]."""
    kernel = jnp.array([[[3.0, 0], [1, 0.1]], [[4.0, 0], [1, 0.2]]])[:, None]
    return {"k": kernel}, blocks.columns(
        jprune.trace(conv_fn, {"k": kernel}, jnp.ones((1, 1, 4, 4)))
    )


def test_norms_of_columns_and_the_truncated_sum(float64):
    v, columns = one_channel()
    norms = blocks.norms(columns, v)["k"].reshape(2, 2)
    np.testing.assert_allclose(norms, [[5, 0], [1.414214, 0.223607]], atol=1e-6)
    np.testing.assert_allclose(group_penalty(columns, 1.0, v), 6.637820, rtol=1e-6)
    np.testing.assert_allclose(truncated_penalty(columns, 1.0, 0.5, v), 1.223607, rtol=1e-6)
    # Above theta nothing pulls, below it the unit vector does, and at 0 there is no NaN.
    gradient = jax.jit(jax.grad(lambda v: truncated_penalty(columns, 2.0, 0.5, v)))(v)["k"][:, 0]
    np.testing.assert_array_equal(gradient[:, 0], 0)
    np.testing.assert_array_equal(gradient[:, 1, 0], 0)
    np.testing.assert_allclose(gradient[:, 1, 1], 2 * np.array([0.1, 0.2]) / np.hypot(0.1, 0.2))


def test_the_step_is_that_of_the_truncated_penalty(float64):
    """Small steps of either kind are steps against the gradient of the penalty, by autodiff."""
    rng = np.random.default_rng(0)
    v = {"k": jnp.asarray(rng.normal(size=(4, 3, 2, 2)))}
    columns = blocks.columns(jprune.trace(conv_fn, v, jnp.ones((1, 3, 4, 4))))
    penalty = lambda limit, v: truncated_penalty(columns, 0.7, limit, v)
    for how, count in itertools.product(("prox", "subgradient"), (0, 5, 11)):
        tx = truncated_lasso(columns, 0.7, {"k": count}, 1e-3, how=how, epsilon=0.0)
        still = jax.tree.map(jnp.zeros_like, v)
        updates, state = tx.update(still, tx.init(v), v)
        slope = jax.grad(functools.partial(penalty, state.limits["k"]))(v)
        np.testing.assert_allclose(updates["k"], -1e-3 * slope["k"], atol=1e-15)
        assert int(state.targeted["k"].sum()) == count
        # theta is the norm of the next column
        norms = np.sort(blocks.norms(columns, v)["k"])
        np.testing.assert_allclose(state.limits["k"], norms[count])


@pytest.mark.parametrize("channels_last", [False, True])
def test_thin_patches_are_the_masked_convolution_in_nine_columns(float64, channels_last):
    rng = np.random.default_rng(1)
    kernel, x = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(2, 3, 6, 6))
    taps = np.zeros(27, bool)
    taps[rng.permutation(27)[:9]] = True
    v, fn = {"k": jnp.asarray(kernel)}, conv_fn
    if channels_last:
        v = {"k": v["k"].transpose(2, 3, 1, 0)}
        fn = lambda v, x: conv_fn({"k": v["k"].transpose(3, 2, 0, 1)}, x)
    groups = jprune.trace(fn, v, x)
    columns = blocks.columns(groups)
    masks = blocks.masks(columns, {"k": taps})
    # The mask is the same for all filters.
    outputs = 3 if channels_last else 0
    assert (masks["k"] == masks["k"].any(outputs, keepdims=True)).all()
    small = jprune.slim(fn, groups, {})
    held = forms.compact(small, v, masks, x)
    assert isinstance(held["k"], forms.Thin)
    masked = jprune.apply_masks(v, masks)
    np.testing.assert_allclose(small(held, x), fn(masked, x), atol=1e-12)
    products = [e for e in jax.make_jaxpr(small)(held, x).eqns if e.primitive.name == "dot_general"]
    assert [(e.invars[0].aval.shape[-1], e.invars[1].aval.shape) for e in products] == [(9, (9, 4))]
    cost = jprune.cost_model(fn, v, x[:1], groups=groups)
    assert float(cost(masks).macs) / float(cost({}).macs) == pytest.approx(1 / 3)


def test_a_cross_is_the_middle_row_and_column_of_every_input_in_any_layout():
    """5 x 5: 9 of 25, as in the authors' demonstration; the window axes are those of the layout."""
    shapes = {"k": jnp.zeros((4, 3, 5, 5))}
    groups = jprune.trace(conv_fn, shapes, jnp.zeros((1, 3, 8, 8)))
    inside = blocks.cross(groups)["k"].reshape(3, 5, 5)
    expected = np.zeros((5, 5), bool)
    expected[2], expected[:, 2] = True, True
    assert (inside == expected).all()
    last = lambda v, x: conv_fn({"k": v["k"].transpose(3, 2, 0, 1)}, x)
    groups = jprune.trace(last, {"k": jnp.zeros((5, 5, 3, 4))}, jnp.zeros((1, 3, 8, 8)))
    inside = blocks.cross(groups)["k"].reshape(5, 5, 3)
    assert (inside == expected[..., None]).all()
    # A 1-D window and a dense layer have no cross.
    line = lambda v, x: jax.lax.conv(x, v["k"], (1,), "SAME") if x.ndim > 2 else x @ v["k"]
    for shape, data in (((4, 3, 5), (1, 3, 8)), ((3, 4), (1, 3))):
        groups = jprune.trace(line, {"k": jnp.zeros(shape)}, jnp.zeros(data))
        assert blocks.cross(groups)["k"].all()


def test_a_column_under_epsilon_stays_0_whatever_momentum_and_gradients_do():
    params = {"w": jnp.array([[0.01, 0.0], [3.0, 4.0], [1.0, 1.0]])}
    columns = blocks.columns(jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(3)))
    tx = optax.chain(
        optax.sgd(0.1, 0.9), truncated_lasso(columns, 0.5, {"w": 1}, 1.0, every=2, epsilon=1e-3)
    )
    state, seen = tx.init(params), []
    for _ in range(6):
        pulls = {"w": jnp.array([[-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])}
        updates, state = jax.jit(tx.update)(pulls, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(params["w"]))
    assert all(not w[0].any() for w in seen)
    # The others are above theta, and have not moved at all.
    np.testing.assert_array_equal(seen[-1][1:], [[3.0, 4.0], [1.0, 1.0]])
    # Group lasso lets the same column come back: its gradient is larger than lambda.
    free = optax.chain(optax.sgd(0.1), group_lasso(columns, 0.5, 0.1))
    params = {"w": jnp.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])}
    updates, _ = free.update(pulls, free.init(params), params)
    assert np.asarray(updates["w"])[0].any()


def test_no_more_columns_go_than_are_targeted_as_the_ramp_says():
    """A penalty that is far too strong takes no column that stays, and none before its time."""
    rng = np.random.default_rng(2)
    params = {"w": jnp.asarray(rng.normal(size=(10, 3)), jnp.float32)}
    columns = blocks.columns(jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(10)))
    order = np.argsort(blocks.norms(columns, params)["w"])
    ramp = lambda step: jnp.minimum(step / 4, 1.0)
    tx = truncated_lasso(columns, 1e3, {"w": 8}, 1.0, ramp=ramp, every=1)
    state, still = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for number in range(6):
        updates, state = tx.update(still, state, params)
        params = optax.apply_updates(params, updates)
        gone = set(np.flatnonzero(~np.asarray(params["w"]).any(1)))
        assert gone == {*order[: min(2 * number, 8)]}


def net():
    """Convolutions and a dense layer that learn which of three inputs is brightest."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(96, 5, 5, 3)).astype(np.float32)
    params = own.kernels({"a": (3, 3, 3, 8), "b": (3, 3, 8, 8), "c": (8, 3)})

    def fn(v, x):
        a, b, c = (v["params"][name]["kernel"] for name in "abc")
        x = jax.nn.relu(own.conv(jax.nn.relu(own.conv(x, a)), b))
        return x.mean((1, 2)) @ c

    labels = images.mean((1, 2)).argmax(-1).astype(np.int32)
    return own.task_of(fn, params, (5, 5, 3), images=images, labels=labels)


TASK = net()
CONVS = ("params/a/kernel", "params/b/kernel")


def columns_of(pruned, path):
    """Bool [columns]: which are other than 0, and that a mask cuts all filters alike."""
    columns = blocks.columns(Net(TASK).groups)
    mask = Net(TASK).leaves(pruned.masks)[path]
    assert (mask == mask.any(-1, keepdims=True)).all()
    return blocks.alive(columns, pruned.variables)[path]


def test_columns_go_gradually_until_the_budget_is_met_and_the_largest_are_not_pulled():
    """The zeros of the penalty meet the budget by themselves; plain decay makes none."""
    train = Train(40, 0.05, 32, weight_decay=0.0)
    budget = Budget(macs=0.4)
    stage = ShrinkWeakest(train, Columns(budget, "column", None, CONVS))
    start = Pruned(TASK.init(KEY), None)
    after, _ = stage(start, TASK, KEY)
    columns = blocks.columns(Net(TASK).groups, CONVS)
    alive = blocks.alive(columns, after.variables)
    masks = blocks.masks(columns, alive)
    kept = float(Net(TASK).cost(masks).macs) / float(Net(TASK).cost({}).macs)
    assert 0.35 < kept <= 0.4
    still, _ = train(start, TASK, KEY)
    assert all(mask.all() for mask in blocks.alive(columns, still.variables).values())


@pytest.mark.parametrize("options", [
    {}, {"mode": "group"}, {"mode": "fixed"}, {"mode": "fixed", "pattern": "position"},
    {"mode": "fixed", "pattern": "norm", "keep": {CONVS[0]: 1 / 3, CONVS[1]: 1 / 3}},
], ids=str)  # fmt: skip
def test_the_recipe_ends_with_kernels_that_are_thin(options):
    train = Train(2, 0.05, 32)
    finetune = Train(20, 0.05, 32, weight_decay=0.0, name="finetune")
    method = recipes.find("group_brain_damage")
    budget = Budget(macs=0.45)
    done, records = recipes.run(
        method(budget, train, finetune, names=CONVS, **options),
        Pruned(TASK.init(KEY), None), TASK, KEY,
    )  # fmt: skip
    (seen,) = (r["metrics"] for r in records if r["stage"] == "prune")
    assert seen["macs"] <= 0.45
    if options.get("mode") != "fixed":
        # The penalty has done most of the work: what it left for the cut is little.
        assert seen["reached"] < 0.7
        assert seen["zeros"] > 0.3
    for path in CONVS:
        alive = columns_of(done, path)
        assert 0 < alive.sum() < alive.size
    if options.get("pattern") == "position":
        assert (alive.reshape(9, 8) == alive.reshape(9, 8)[:, :1]).all()
    if options.get("keep"):
        assert [columns_of(done, path).sum() for path in CONVS] == [9, 24]
    # What runs in the end is thin, and says the same.
    x = TASK.example
    units = blocks.lift(Net(TASK).groups, done.masks)
    small = jprune.slim(TASK.fn, Net(TASK).groups, units)
    variables = jprune.slim_params(Net(TASK).groups, units, done.variables)
    masks = jprune.slim_params(Net(TASK).groups, units, Net(TASK).weight_masks(done.masks))
    held = forms.compact(small, variables, masks, x)
    assert isinstance(held["params"]["b"]["kernel"], forms.Thin | forms.Rows)
    images = next(TASK.data.batches("test", 8))["image"]
    np.testing.assert_allclose(small(held, images), TASK.fn(done.variables, images), atol=1e-4)


def test_a_cross_is_kept_before_all_others():
    stage = PruneColumns(Budget(density=1.0), "cross", 5 / 9, CONVS)
    after, _ = stage(Pruned(TASK.init(KEY), None), TASK, KEY)
    inside = blocks.cross(Net(TASK).groups, CONVS)
    for path in CONVS:
        np.testing.assert_array_equal(columns_of(after, path), inside[path])


def test_all_taps_of_an_input_gone_its_channel_goes():
    groups = Net(TASK).groups
    columns = blocks.columns(groups, CONVS)
    alive = {name: np.ones(block.size, bool) for name, block in columns.items()}
    alive[CONVS[1]].reshape(9, 8)[:, 2] = False
    units = blocks.lift(groups, blocks.masks(columns, alive))
    assert [int(np.flatnonzero(~mask)[0]) for mask in units.values() if not mask.all()] == [2]


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "slow"}, "mode is one of gradual, group, fixed"),
    ({"stop": 1.0}, "stop in"),
    ({"mode": "fixed", "strength": 0.1}, "does not look at strength"),
    ({"pattern": "norm"}, "does not look at pattern"),
    ({"mode": "fixed", "pattern": "circle"}, "write one of cross, position, norm"),
    ({"mode": "fixed", "correct": False}, "does not look at correct"),
    ({"mode": "group", "every": 3}, "does not look at every"),
    ({"how": "newton"}, "how='newton'"),
    ({"ramp": 1.5}, "ramp is in"),
    ({"every": 0}, "every 1 or more"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        recipes.find("group_brain_damage")(Budget(macs=0.5), None, Train(1, 0.1), **options)


def test_what_cannot_be_is_refused_before_training():
    method, finetune = recipes.find("group_brain_damage"), Train(1, 0.1, name="finetune")
    task = toy_task()
    for options, error, message in (
        ({"names": "params/conv9/kernel"}, errors.StructureError, "is no kernel"),
        ({"strength": -1.0}, errors.ArgumentError, "0 or more"),
        ({"strength": (1.0, 2.0)}, errors.ArgumentError, "strength has 2 numbers"),
        ({"keep": 1.5}, errors.ArgumentError, "in \\(0, 1\\]"),
        ({"mode": "fixed", "keep": 0.0}, errors.ArgumentError, "in \\(0, 1\\]"),
        (
            {"mode": "fixed", "pattern": "position", "names": "params/fc/kernel"},
            errors.BudgetError,
            "",
        ),
    ):
        with pytest.raises(error, match=message):
            check(method(Budget(macs=0.5), None, finetune, **options), task)
    (name, *_) = Net(task).groups.kernels
    broken = drawn(task)
    broken["params"]["conv1"]["kernel"] = broken["params"]["conv1"]["kernel"] * jnp.nan
    with pytest.raises(errors.JpruneError):
        recipes.run(method(Budget(macs=0.5), None, finetune), Pruned(broken, None), task, KEY)
    assert name.endswith("kernel")
    columns = blocks.columns(Net(task).groups)
    for wrong in ({"removed": {}}, {"removed": dict.fromkeys(columns, 10**6)}, {"every": 0}):
        counts = {"removed": dict.fromkeys(columns, 1), **wrong}
        with pytest.raises(errors.ArgumentError):
            truncated_lasso(columns, 0.1, rate=0.1, **counts)


def test_equal_norms_lose_as_many_as_they_should():
    params = {"w": jnp.ones((6, 2))}
    columns = blocks.columns(jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(6)))
    tx = truncated_lasso(columns, 10.0, {"w": 4}, 1.0)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    after = np.asarray(optax.apply_updates(params, updates)["w"])
    assert after.any(1).tolist() == [False] * 4 + [True] * 2
