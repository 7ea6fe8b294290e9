"""Particle filter: numbers of checks.md [12], conserved counts, better than random, scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jprune import blocks, data, errors, forms, recipes, stages, train, zoo
from jprune.base import Budget, Pruned, to_the_end
from jprune.recipes import Train
from jprune.recipes.particle_filter import particle_filter
from jprune.search import Offsets, Subsets, likelihoods, strided, systematic
from jprune.search import particle_filter as searching
from jprune.stages.particles import FilterParticles
from jprune.train.net import Net
from tests.blocks.test_grains import groups_of
from tests.contracts import own
from tests.toys import drawn, equal, toy_task

KEY = jax.random.key(0)
FINE = Train(1, 0.01, batch_size=16, max_steps=2, name="finetune")
HALF = Budget(macs=0.5)


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "taps"),
    [
        ((3, 3), 2, 0, {0, 2, 4, 6, 8}),
        ((3, 3), 2, 1, {1, 3, 5, 7}),
        ((3, 3), 3, 1, {1, 4, 7}),
        ((5, 5), 3, 2, {2, 5, 8, 11, 14, 17, 20, 23}),
        ((3, 3), 1, 0, {*range(9)}),
    ],
)
def test_strided_taps(shape, stride, offset, taps):
    """P1, and that stride 1 is dense."""
    mask = strided(shape, stride, offset)
    assert {*np.flatnonzero(mask).tolist()} == taps
    assert mask.mean() == pytest.approx(len(taps) / np.prod(shape))
    with pytest.raises(errors.ArgumentError, match=r"0 \.\. stride - 1"):
        strided(shape, stride, stride)


def test_systematic_resampling():
    """P3."""
    assert systematic(np.array([0.9, 0.6, 0.3, 0.2]), 0.5).tolist() == [0, 0, 1, 2]
    for weights in ([0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0]):
        with pytest.raises(errors.ArgumentError, match="not all"):
            systematic(np.array(weights), 0.5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 0.999))
def test_children_are_the_share_of_the_weights_rounded(weights, start):
    weights = np.array(weights) + 1e-6
    share = weights / weights.sum() * len(weights)
    children = np.bincount(systematic(weights, start), minlength=len(weights))
    assert children.sum() == len(weights)
    assert (np.abs(children - share) < 1 + 1e-6).all()


@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_what_is_pruned_is_conserved(seed, rate):
    rng = np.random.default_rng(seed)
    allowed = rng.random(15) < 0.8
    allowed[0] = True
    kind = Subsets(tuple(allowed.tolist()), int(rng.integers(1, allowed.sum() + 1)))
    parents, others = kind.draw(rng, 7), kind.draw(rng, 7)
    children = kind.cross(parents, others, rng)
    mutants = kind.mutate(children, rate, rng)
    for genes in (parents, children, mutants):
        assert (genes.sum(axis=1) == kind.kept).all()
        assert not genes[:, ~allowed].any()
    # What both parents keep, the child keeps; nothing comes of neither.
    assert (children >= parents * others).all()
    assert (children <= parents + others).all()
    if kind.kept < allowed.sum():
        assert (mutants != children).any(axis=1).all()
    offsets = Offsets(6, 3)
    one, two = offsets.draw(rng, 5), offsets.draw(rng, 5)
    child = offsets.cross(one, two, rng)
    assert ((child == one) | (child == two)).all()
    mutant = offsets.mutate(child, rate, rng)
    assert ((mutant >= 0) & (mutant < 3)).all()
    assert (mutant != child).any(axis=1).all()


def search(kind, genes, score, generations, seed=0, **settings):
    searcher = searching(kind, genes, 16, **settings)
    state, scores = searcher.init(jax.random.key(seed)), []
    for _ in range(generations):
        asked = searcher.ask(state)
        scores.append(score(asked))
        state = searcher.tell(state, asked, scores[-1])
    return searcher.best(state), scores


def test_the_filter_is_better_than_as_many_random_masks():
    """Values of units in pairs: which is best is no matter of units one by one."""
    rng = np.random.default_rng(1)
    values, pairs = rng.normal(size=20), rng.normal(size=(20, 20)) / 3
    score = lambda genes: (
        1 / (1 + np.exp(-(genes @ values + np.einsum("pi,ij,pj->p", genes, pairs, genes)) / 6))
    )
    found, chance = [], []
    for seed in range(8):
        (best, top), scores = search(
            Subsets((True,) * 20, 10), 20, score, 12, seed, temperature=0.5
        )
        assert best.sum() == 10
        bests = np.maximum.accumulate([each.max() for each in scores])
        assert top == pytest.approx(bests[-1], rel=1e-6)  # the elite stays
        found.append(top)
        many = np.random.default_rng(seed)
        chance.append(score(Subsets((True,) * 20, 10).draw(many, 12 * 16)).max())
    assert np.mean(found) > np.mean(chance) + 0.02


def test_raw_weights_hardly_select_and_sharp_ones_do():
    assert likelihoods(np.array([0.98, 0.97])).tolist() == [0.98, 0.97]
    sharp = likelihoods(np.array([0.98, 0.97]), 0.2)
    assert sharp[0] > 0.999
    # Minus a loss is no rate: it is weighed, not refused; NaN is the worst.
    weights = likelihoods(np.array([-1.0, -2.0, np.nan]))
    assert weights[0] > weights[1] == weights[2] > 0
    assert likelihoods(np.array([0.0, 0.0])).tolist() == [0.5, 0.5]
    assert likelihoods(np.full(3, np.nan)).tolist() == [1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def task():
    return toy_task("tiny", validation_size=64)


@pytest.fixture(scope="module")
def trained(task):
    return Train(6, 0.1, 16)(Pruned(drawn(task), None), task, KEY)[0]


def stage_of(scale="maps", budget=HALF, **settings):
    return FilterParticles(budget, scale, **{"particles": 6, "generations": 3, **settings})


@pytest.mark.parametrize("scale", ["maps", "kernels", "taps"])
def test_masks_of_a_scale_and_the_score_of_the_net_under_them(task, trained, scale):
    stage = stage_of(scale, Budget(macs=0.6))
    pruned, (line,) = stage(trained, task, KEY)
    net, metrics = Net(task), line["metrics"]
    assert 0.3 < metrics["macs"] <= 0.6
    weights = net.leaves(net.weight_masks(pruned.masks))
    for path, leaf in net.leaves(pruned.variables).items():
        if path in weights:
            assert not np.asarray(leaf)[~np.asarray(weights[path])].any()
    # The best score of the last layer is that of the net as it is now.
    (batch,) = task.data.batches("validation", 64)
    out = jax.jit(task.fn)(pruned.variables, batch["image"])
    accuracy = float((np.asarray(out).argmax(-1) == batch["label"]).mean())
    assert metrics["best"] == pytest.approx(accuracy, abs=1e-6)
    if scale == "maps":
        assert net.are_units(pruned.masks)
        return
    for n in (1, 2, 3):
        mask = np.asarray(weights[f"params/conv{n}/kernel"])  # HWIO
        if scale == "kernels":
            assert {*np.unique(mask.mean(axis=(0, 1)))} <= {0.0, 1.0}
        else:
            assert (mask == mask[..., :1]).all()  # all outputs of an input share the taps
            counts = mask[..., 0].reshape(9, -1).sum(axis=0)
            assert {*counts.tolist()} <= {4, 5}
            for taps in mask[..., 0].reshape(9, -1).T:
                assert any((taps == strided((9,), 2, offset)).all() for offset in (0, 1))


def test_columns_that_went_leave_a_smaller_matrix_product():
    """P2: offsets differ between inputs; the thin kernel gives what the masked one gives."""
    made = blocks.columns(groups_of({"w": (3, 3, 4, 5)}))
    taps = np.stack([strided((3, 3), 2, offset) for offset in (0, 1, 1, 0)], axis=-1)
    mask = np.broadcast_to(taps[..., None], (3, 3, 4, 5))
    alive = blocks.alive(made, {"w": mask.astype(float)})
    np.testing.assert_array_equal(blocks.spread(made, alive)["w"], mask)
    kernel = jax.random.normal(KEY, mask.shape)
    thin = forms.leaf_of(kernel * mask, mask)
    assert isinstance(thin, forms.Thin)
    assert thin.weights.shape == (int(taps.sum()), 5)
    x = jax.random.normal(jax.random.key(1), (2, 7, 7, 4))
    conv = lambda kernel: own.conv(x, kernel)
    expected = jax.jit(conv)(kernel * mask)
    variables = {"w": thin}
    held = Net(own.task_of(lambda v, x: own.conv(x, v["params"]["w"]), {"w": kernel}, (7, 7, 4)))
    found = jax.jit(held.fn)({"params": variables, "stats": {}}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_filter_is_better_than_its_random_masks_on_a_net(task, trained):
    """As many evaluations: one generation of 48 against 8 of 6, over keys."""
    wins = []
    budget = Budget(macs=0.25)
    for seed in range(4):
        key = jax.random.key(seed)
        filtered, (one,) = stage_of(budget=budget, generations=8, temperature=0.5)(
            trained, task, key
        )
        _, (other,) = stage_of(budget=budget, particles=48, generations=1)(trained, task, key)
        wins.append(one["metrics"]["best"] - other["metrics"]["best"])
        assert all(mask.any() for mask in filtered.masks.values())
    assert np.mean(wins) >= 0
    random = FilterParticles(budget, particles=2, generations=1)(trained, task, KEY)[1][0][
        "metrics"
    ]
    assert one["metrics"]["best"] > random["best"]


def test_a_search_that_is_stopped_goes_on(task, trained):
    learner = stage_of().learner(trained, task, KEY)
    whole, metrics = to_the_end(learner)
    state = learner.init()
    for _ in range(2):
        state, _ = learner.step(state, {})
    state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)  # as from a file
    again = stage_of().learner(trained, task, KEY)
    for _ in range(again.steps - 2):
        state, last = again.step(state, {})
    assert equal(again.finish(state).masks, whole.masks)
    assert last["best"] == metrics["best"]
    assert learner.steps == 3 * len(whole.masks)


def test_scales_multiply_and_go_in_order(task, trained):
    recipe = particle_filter(
        Budget(macs=0.3), None, FINE, scales=("taps", "maps", "kernels"), particles=3, generations=1
    )
    _, records = recipes.run(recipe, trained._replace(saved={}), task, KEY)
    kept = [line["metrics"]["macs"] for line in records if line["stage"] == "search"]
    assert [stage.scale for stage in recipe if stage.name == "search"] == [
        "maps",
        "kernels",
        "taps",
    ]
    assert 1 > kept[0] > kept[1] > kept[2]
    assert kept[2] <= 0.3
    assert kept[0] <= 0.3 ** (1 / 3) + 1e-9


def test_what_does_not_fit_is_refused_before_training(task):
    refused = lambda task=task, budget=HALF, **options: stages.check(
        particle_filter(budget, FINE, FINE, **options), task
    )
    refused(scales=("maps", "taps"))
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        refused(budget=Budget(macs=0.001))
    with pytest.raises(errors.BudgetError, match="taps of stride 2"):
        refused(budget=Budget(macs=0.3), scales="taps", stride=2)
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        refused(budget=Budget(macs=0.001), scales="kernels")
    dense = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
    with pytest.raises(errors.ArgumentError, match="no convolution with a window"):
        refused(dense, scales="kernels")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scales": "filters"}, "maps, kernels, taps"),
        ({"particles": 1}, "particles are 2 or more"),
        ({"generations": 0}, "1 or more"),
        ({"rate": 0.0}, "rate in (0, 1]"),
        ({"temperature": -1.0}, "0 or more"),
        ({"stride": 1}, "2 or more"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(errors.ArgumentError) as raised:
        particle_filter(HALF, None, FINE, **options)
    assert says in str(raised.value)
