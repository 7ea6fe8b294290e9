"""SSR [36]: proximal steps, the augmented Lagrangian, layer by layer or all at once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import blocks, errors, recipes
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.sparsify import admm, projection, proximal
from jprune.stages.frame import check
from jprune.stages.proximal import CutSupport, Regulariser, Split
from jprune.stages.splitting import Sets
from jprune.train.net import Net
from tests.contracts import own
from tests.recipes.test_ssl import rows_of
from tests.stages.test_time_to_act import learnable

KEY = jax.random.key(5)
ROWS = [[3.0, 4.0], [0.6, 0.8], [0.3, 0.4]]


def at(rows, rho, **options):
    value = jnp.asarray(rows, float)
    return np.asarray(proximal(rows_of(len(rows)), rho, **options)({"w": value})["w"])


def test_the_step_of_l21_shrinks_all_rows(float64):
    found = at(ROWS, 2.0, strength=1.5)
    np.testing.assert_allclose(found, [[2.55, 3.4], [0.15, 0.2], [0, 0]], atol=1e-12)


def test_the_step_of_l20_is_the_best_of_all_supports(float64):
    """0.2 a row that stays, and half its square for one that goes."""
    found = at(ROWS, 1.0, strength=0.2, norm="l20")
    np.testing.assert_array_equal(found, [[3, 4], [0.6, 0.8], [0, 0]])
    squares = (np.array(ROWS) ** 2).sum(1)
    costs = {
        support: sum(0.2 if stays else square / 2 for stays, square in zip(support, squares))
        for support in itertools.product((True, False), repeat=3)
    }
    assert min(costs, key=lambda support: costs[support]) == (True, True, False)
    assert costs[True, True, False] == pytest.approx(0.525)
    assert costs[True, True, True] == pytest.approx(0.6)
    assert costs[True, False, False] == pytest.approx(0.825)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6), st.floats(0.05, 4), st.floats(0.2, 5), st.sampled_from(["l21", "l20"])
)
def test_no_point_has_a_smaller_objective(seed, strength, rho, norm):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4, 3)) * rng.uniform(0, 2, (4, 1))

    def objective(f):
        size = np.linalg.norm(f, axis=1)
        g = size.sum() if norm == "l21" else (size > 0).sum()
        return strength * g + rho / 2 * ((f - rows) ** 2).sum()

    with jax.enable_x64(True):
        found = at(rows, rho, strength=strength, norm=norm, least=0)
    least = objective(found)
    others = [found + scale * rng.normal(size=rows.shape) for scale in (1, 0.1, 1e-3)]
    for alive in itertools.product((0, 1), repeat=4):
        others += [rows * np.array(alive)[:, None], found * np.array(alive)[:, None]]
    assert all(objective(other) >= least - 1e-9 for other in others)


@pytest.mark.parametrize("norm", ["l21", "l20"])
def test_with_counts_lambda_is_the_smallest_that_leaves_so_many(norm, float64):
    rows = np.random.default_rng(1).normal(size=(6, 4))
    norms = np.sort(np.linalg.norm(rows, axis=1))[::-1]
    for count in range(1, 7):
        found = at(rows, 2.0, norm=norm, keep={"w": count})
        limit = norms[count] if count < 6 else 0
        strength = 2 * limit if norm == "l21" else limit**2 * (1 + 1e-9)  # rho t, rho t^2 / 2
        np.testing.assert_allclose(found, at(rows, 2.0, norm=norm, strength=strength), atol=1e-12)
        assert (found.any(1)).sum() == count
    near = projection(rows_of(6), {"w": 3})({"w": jnp.asarray(rows)})["w"]
    np.testing.assert_array_equal(at(rows, 2.0, norm="l20", keep={"w": 3}), near)


@pytest.mark.parametrize("norm", ["l21", "l20"])
def test_equal_rows_and_the_last_ones_stay(norm):
    found = at(np.ones((4, 2)), 1.0, norm=norm, keep={"w": 2})
    assert found.any(1).tolist() == [True, True, False, False]
    found = at(ROWS, 1.0, norm=norm, strength=1000.0, least=2)
    np.testing.assert_allclose(found, [[3, 4], [0.6, 0.8], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("rho", [0.5, 1.0, 4.0])
def test_the_augmented_lagrangian_solves_the_group_lasso_for_every_rho(rho, float64):
    """L = ||W - A||^2 / 2; SGD at 1 / (1 + rho) is the exact W-step (A + rho F - Y) / (1 + rho)."""
    aim = jnp.array([[3, 4], [0.3, 0.4], [-1.5, 2]])
    step = proximal(rows_of(3), rho, strength=1.0)
    tx = admm(optax.sgd(1 / (1 + rho)), step, rho=rho, every=1)
    params, update = {"w": aim}, jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(300):
        updates, state = update({"w": params["w"] - aim}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.target["w"], [[2.4, 3.2], [0, 0], [-0.9, 1.2]], atol=1e-8)
    multipliers = rho * state.duals["w"]
    np.testing.assert_allclose(multipliers, [[0.6, 0.8], [0.3, 0.4], [-0.6, 0.8]], atol=1e-8)


def split(task, parts=1, part=0, budget=None, epochs=60, before=None, **options):
    sets = Sets(Budget(density=0.5) if budget is None else budget)
    regulariser = Regulariser(sets, parts=parts, **options)
    start = Pruned(task.init(KEY), None) if before is None else before
    train = Train(epochs, 0.02, 32, schedule="constant", weight_decay=0)
    after, records = Split(train, regulariser, part, rho=None)(start, task, KEY)
    return regulariser, start, after, records[0]["metrics"]


@pytest.mark.parametrize("norm", ["l21", "l20"])
def test_weights_are_drawn_to_the_copy_and_the_cut_is_its_support(norm):
    """Half of the units, exactly; the cut costs little since W is near F by then."""
    task = learnable()
    regulariser, start, after, metrics = split(task, norm=norm)
    assert metrics["primal"] < 0.1
    cut, (record,) = CutSupport(regulariser)(after, task, KEY)
    counts = {name: int(mask.sum()) for name, mask in cut.masks.items()}
    assert counts == {"params/a/kernel": 10, "params/b/kernel": 12}
    assert record["metrics"]["reached"] == record["metrics"]["density"] == 0.5
    for name, mask in cut.masks.items():
        np.testing.assert_array_equal(mask, after.extra["alive"][name])
    norms = blocks.norms(regulariser.filters(task), after.variables)
    for name, mask in cut.masks.items():
        assert norms[name][~mask].max() < 0.1 < norms[name][mask].max()
    images = next(task.data.batches("test", 64))["image"]
    far = lambda before, masked: float(np.abs(task.fn(before, images) - masked).mean())
    own_cut = far(after.variables, task.fn(cut.variables, images))
    other = Net(task).weight_masks(
        {n: m[np.argsort(~m, kind="stable")] for n, m in cut.masks.items()}
    )
    assert own_cut < 0.2 * far(
        start.variables, task.fn(apply_masks(start.variables, other), images)
    )


def test_one_part_is_trained_while_the_others_are_held_still():
    task = learnable()
    regulariser, start, after, _ = split(task, parts=2, epochs=30)
    before, moved = own.by_path(start.variables), own.by_path(after.variables)
    same = {path for path in before if np.array_equal(before[path], moved[path])}
    assert set(before) - same == {"params/a/kernel", "params/a/bias"}
    assert [*after.extra["alive"]] == ["params/a/kernel"]
    cut, _ = CutSupport(regulariser, 0)(after, task, KEY)
    assert cut.masks["params/b/kernel"].all()
    _, _, after, _ = split(task, parts=2, part=1, epochs=30, before=cut)
    last, (record,) = CutSupport(regulariser, 1)(after, task, KEY)
    assert record["metrics"]["density"] == 0.5
    np.testing.assert_array_equal(last.masks["params/a/kernel"], cut.masks["params/a/kernel"])


def test_a_strength_decides_how_many_filters_stay_and_the_budget_corrects_it():
    task = learnable()
    alive = {}
    for strength in (0.1, 0.5):
        regulariser, _, after, _ = split(task, strength=strength)
        alive[strength] = sum(int(mask.sum()) for mask in after.extra["alive"].values())
        if strength == 0.1:
            cut, (record,) = CutSupport(regulariser)(after, task, KEY)
            assert record["metrics"]["density"] <= 0.5 < record["metrics"]["reached"]
            for name, mask in cut.masks.items():
                assert not (mask & ~after.extra["alive"][name]).any()
            with pytest.raises(errors.BudgetError, match="the zeros reached density="):
                CutSupport(regulariser, correct=False)(after, task, KEY)
    assert 2 <= alive[0.5] < 10 < alive[0.1] < 44


def test_the_recipe_layer_by_layer():
    task = learnable()
    short = Train(4, 0.02, 32, name="finetune")
    recipe = recipes.find("ssr")(Budget(macs=0.5), None, short, parts=2)
    done, records = recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)
    seen = [r["metrics"]["macs"] for r in records if r["stage"] == "prune"]
    assert len(seen) == 2
    assert seen[1] <= 0.5 < seen[0] < 1
    for leaf, mask in zip(
        jax.tree.leaves(done.variables), jax.tree.leaves(Net(task).weight_masks(done.masks))
    ):
        assert not np.asarray(leaf)[~np.asarray(mask)].any()


@pytest.mark.parametrize(("options", "message"), [
    ({"norm": "l2"}, "norm='l2'.*l21, l20"),
    ({"allocator": "best"}, "allocator='best'"),
    ({"stop": 1.0}, "stop=1.0"),
    ({"rho": 0.0}, "rho is above 0"),
    ({"parts": 0}, "1 or more"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        recipes.find("ssr")(Budget(macs=0.5), None, Train(1, 0.1), **options)


@pytest.mark.parametrize(("options", "message"), [
    ({"parts": 3}, "3 parts of 2 groups"),
    ({"strength": -1.0}, "0 or more"),
    ({"strength": (1.0, 2.0, 3.0)}, "strength has 3 numbers"),
    ({"names": "params/d/kernel"}, "no group"),
])  # fmt: skip
def test_what_does_not_fit_the_net_is_refused_before_training(options, message):
    recipe = recipes.find("ssr")(Budget(macs=0.5), None, Train(1, 0.1), **options)
    with pytest.raises(errors.JpruneError, match=message):
        check(recipe, learnable())


def test_a_strength_or_counts_and_not_both():
    for options in ({}, {"strength": 1.0, "keep": {"w": 1}}, {"strength": 1.0, "norm": "l1"}):
        with pytest.raises(errors.ArgumentError, match="a strength or how many"):
            proximal(rows_of(3), 1.0, **options)
    with pytest.raises(errors.ArgumentError, match="strength is of other"):
        proximal(rows_of(3), 1.0, strength={"other": 1.0})
