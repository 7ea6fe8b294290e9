"""Statistics of activations: checks.md [6], where units are read, and one pass for all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jprune
from jprune import allocate, criteria, errors, schedules, sparsify
from jprune.base import Budget
from jprune.criteria.zeros import Count, Zeros
from tests.contracts.own import by_path, conv, draw

LAYERS = {"first": (3, 3, 2, 6), "a": (3, 3, 6, 5), "b": (3, 3, 5, 6), "out": (6, 4)}


def net(v, x, act=jax.nn.relu):
    """A residual block: pooling behind the first activation, no activation before the sum."""
    x = act(conv(x, v["first"]) + v["shift"])
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = act(x + conv(act(conv(x, v["a"])), v["b"]))
    return x.mean((1, 2)) @ v["out"]


@functools.cache
def case():
    variables = {**draw(LAYERS), "shift": np.linspace(-1, 0.2, 6).astype(np.float32)}
    variables = jax.tree.map(jnp.asarray, variables)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(10, 8, 6, 2)), jnp.float32)
    return variables, images, jprune.trace(net, variables, images[:1])


def scores(statistic, batches, fn=net, **settings):
    variables, _, groups = case()
    criterion = criteria.activations(fn, groups, statistic, **settings)
    return jprune.run_criterion(criterion, variables, batches)


def updated(statistic, maps, counted=None):
    """The score of maps [examples, units, *positions], in all its passes."""
    maps = jnp.asarray(maps, float)
    counted = jnp.ones(len(maps), bool) if counted is None else jnp.asarray(counted)
    state = statistic.update(statistic.init(maps.shape[1]), maps, counted)
    if statistic.again is not None:
        state = statistic.update(statistic.again(state), maps, counted)
    return np.asarray(statistic.score(state))


def by_hand(images):
    """Activations behind the functions, before pooling: {group: one array for each place}."""
    v, _, _ = case()
    first = jax.nn.relu(conv(images, v["first"]) + v["shift"])
    x = jax.lax.reduce_window(first, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    a = jax.nn.relu(conv(x, v["a"]))
    return {"first": [first, jax.nn.relu(x + conv(a, v["b"]))], "a": [a]}


# ---- zeros --------------------------------------------------------------------------------------

MAPS = [
    [[[0, 1], [2, 0]], [[0, 0], [0, 3]], [[1, 1], [1, 1]]],
    [[[0, 0], [0, 0]], [[0, 0], [4, 0]], [[0, 2], [1, 1]]],
]


def test_zeros_of_the_worked_case():
    """[6] P1: O of shape (2, 3, 2, 2)."""
    np.testing.assert_array_equal(1 - updated(criteria.zeros(), MAPS), [0.75, 0.75, 0.125])
    only = updated(criteria.zeros(), MAPS, [True, False])
    np.testing.assert_array_equal(1 - only, [0.5, 0.75, 0])
    np.testing.assert_array_equal(1 - updated(criteria.zeros(below=1), MAPS), [7 / 8, 3 / 4, 7 / 8])


def test_the_rule_of_a_standard_deviation():
    """[6] P2: mean .35, std .306594, threshold .656594; equal scores lose nothing."""
    zeros = np.array([0.1, 0.2, 0.3, 0.2, 0.95])
    assert zeros.mean() + zeros.std() == pytest.approx(0.656594, abs=1e-6)
    above = allocate.deviations({"a": 1 - zeros})["a"]
    np.testing.assert_allclose(above, (0.35 - zeros) / 0.306594, rtol=1e-5)
    rule = allocate.Outliers(allocate.global_topk)
    kept = rule({"a": 1 - zeros, "b": np.full(3, 0.7)}, Budget(density=0.1))
    assert np.flatnonzero(~kept["a"]).tolist() == [4]
    assert kept["b"].all()


def test_the_rule_takes_no_more_than_the_budget_asks_and_the_last_round_meets_it():
    rng = np.random.default_rng(0)
    scores = {"a": rng.uniform(size=40), "b": rng.uniform(size=60) ** 4}
    kept = lambda masks: sum(int(mask.sum()) for mask in masks.values())
    rule = allocate.Outliers(allocate.global_topk)
    by_rule = rule(scores, Budget(density=0.1))
    for name, score in scores.items():
        np.testing.assert_array_equal(by_rule[name], score >= score.mean() - score.std())
    assert kept(rule(scores, Budget(density=0.97))) == 97
    last = allocate.Outliers(allocate.global_topk, last=True)(scores, Budget(density=0.3))
    assert kept(last) == 30
    assert all((~last[name] | by_rule[name]).all() for name in scores)
    # One group at a time: the one of the lowest mean score.
    one = allocate.Outliers(allocate.global_topk, groups=1)(scores, Budget(density=0.1))
    assert one["a"].all()
    np.testing.assert_array_equal(one["b"], by_rule["b"])
    eights = rule(scores, Budget(density=0.1, multiple_of=8))
    assert all(int(m.sum()) % 8 == 0 or m.all() for m in eights.values())
    with pytest.raises(errors.ArgumentError, match="NaN"):
        rule({"a": np.array([1.0, np.nan])}, Budget(density=0.5))
    with pytest.raises(errors.ArgumentError, match="q is 0 or more"):
        allocate.Outliers(allocate.global_topk, q=-1)


def test_a_dead_channel_says_nothing_is_first_to_go_and_leaves_no_trace(float64):
    """[6] P3: a bias of -1e3, behind a norm-free layer that is read through pooling."""
    v = draw({"first": (3, 3, 2, 6), "second": (3, 3, 6, 5), "out": (5, 4)})
    v = {**jax.tree.map(lambda w: jnp.asarray(w, float), v), "shift": jnp.zeros(6).at[2].set(-1e3)}

    def fn(v, x):
        x = jax.nn.relu(conv(x, v["first"]) + v["shift"])
        x = jax.nn.relu(conv(x[:, ::2, ::2], v["second"]))
        return x.mean((1, 2)) @ v["out"]

    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 8, 6, 2)))
    groups = jprune.trace(fn, v, x)
    criterion = criteria.activations(fn, groups, criteria.zeros())
    score = jprune.run_criterion(criterion, v, [{"image": x}])["first"]
    assert score[2] == 0
    assert (np.delete(score, 2) > 0).all()
    masks = allocate.uniform({"first": score}, Budget(density=5 / 6))
    assert np.flatnonzero(~masks["first"]).tolist() == [2]
    small = jprune.slim_params(groups, masks, v)
    assert small["second"].shape == (3, 3, 5, 5)
    found = jprune.slim(fn, groups, masks)(small, x)
    np.testing.assert_allclose(found, fn(v, x), rtol=1e-6, atol=1e-9)


def test_zeros_are_counted_behind_the_function_and_before_pooling_at_every_place_of_a_stream():
    _, images, groups = case()
    assert criteria.places_read(groups) == {"first": ("first act", "b act"), "a": ("a act",)}
    came = scores(criteria.zeros(), [{"image": images}])
    for name, places in by_hand(images).items():
        share = [np.asarray(place != 0).mean((0, 1, 2)) for place in places]
        np.testing.assert_allclose(came[name], np.mean(share, axis=0), rtol=1e-6)
    # What consumers read behind pooling has fewer zeros.
    pooled = scores(criteria.zeros(), [{"image": images}], at="in")
    assert (np.asarray(pooled["first"]) > came["first"]).all()


def test_a_counter_runs_over_into_its_upper_half():
    statistic = criteria.zeros()
    full = jnp.full(1, 2**32 - 3, jnp.uint32)
    state = Zeros(Count(jnp.zeros(1, jnp.uint32), full), Count(jnp.zeros(1, jnp.uint32), full))
    state = statistic.update(state, jnp.zeros((2, 1, 4)), jnp.array([True, True]))
    assert (int(state.zeros.high[0]), int(state.zeros.low[0])) == (1, 5)
    assert (int(state.seen.high[0]), int(state.seen.low[0])) == (1, 5)


SOFT = {
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "leaky": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "none": lambda x: x,
}
HARD = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "shrink": lambda x: jnp.where(jnp.abs(x) < 0.65, 0, x),
}


@pytest.mark.parametrize("name", [*SOFT, *HARD])
def test_functions_that_are_0_on_an_interval_are_told_apart(name):
    variables, images, _ = case()
    fn = functools.partial(net, act={**SOFT, **HARD}[name])
    groups = jprune.trace(fn, variables, images[:1])
    said = criteria.rectified(fn, groups, variables, images[:1])
    assert said == (("first", "a") if name in HARD else ())


def test_a_net_without_zeros_is_refused_when_it_is_scored():
    variables, images, _ = case()
    fn = functools.partial(net, act=jax.nn.gelu)
    groups = jprune.trace(fn, variables, images[:1])
    criterion = criteria.activations(fn, groups, criteria.zeros())
    with pytest.raises(errors.ArgumentError, match="of the activations of first, a"):
        jprune.run_criterion(criterion, variables, [{"image": images}])


# ---- entropy ------------------------------------------------------------------------------------


def of_means(values, bins):
    """The entropy of one unit whose pooled values these are."""
    return updated(criteria.entropy(bins), np.reshape(np.asarray(values, float), (-1, 1, 1)))[0]


def test_entropies_of_the_worked_cases(float64):
    """[21] P1."""
    assert of_means([0, 1, 2, 3], 4) == pytest.approx(1.3862944, abs=1e-7)
    assert of_means([0, 0, 0, 3], 4) == pytest.approx(0.5623351, abs=1e-7)
    assert of_means([7.3] * 5, 4) == 0
    assert of_means(range(100), 100) == pytest.approx(4.6051702, abs=1e-7)


@given(st.integers(0, 10**6), st.floats(1e-9, 1e6), st.floats(-3, 3))
def test_a_factor_a_shift_and_the_order_of_positions_change_no_entropy(seed, factor, shift):
    """[21] P2; the maps are drawn, so that none lies on the edge of a bin."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        maps = rng.normal(size=(12, 3, 5))
        right = updated(criteria.entropy(7), maps)
        moved = factor * (maps + shift)
        np.testing.assert_allclose(updated(criteria.entropy(7), rng.permuted(moved, axis=2)), right)


def test_entropies_are_those_of_numpys_histograms():
    _, images, _ = case()
    came = scores(criteria.entropy(8), [{"image": images}])
    for name, places in by_hand(images).items():
        sums = 0
        for place in places:
            for unit, means in enumerate(np.asarray(place).mean((1, 2)).T):
                share = np.histogram(means, 8)[0] / len(means)
                sums += np.eye(len(came[name]))[unit] * -np.sum(
                    share[share > 0] * np.log(share[share > 0])
                )
        np.testing.assert_allclose(came[name], sums / len(places), atol=1e-5)


def test_a_second_pass_needs_batches_that_can_be_gone_over_twice():
    variables, images, groups = case()
    criterion = criteria.activations(net, groups, criteria.entropy(4))
    with pytest.raises(errors.ArgumentError, match="generator, which can be gone over once"):
        jprune.run_criterion(criterion, variables, (b for b in [{"image": images}]))
    state = criterion.update(criterion.init(variables), variables, {"image": images})
    with pytest.raises(errors.ArgumentError, match=r"state = criterion\.again"):
        criterion.score(state, variables)
    with pytest.raises(errors.ArgumentError, match="sees every batch once"):
        sparsify.scheduled_prune(
            criterion, allocate.global_topk, schedules.one_shot(0.5), every=1, groups=groups
        )
    with pytest.raises(errors.ArgumentError, match="bins=0"):
        criteria.entropy(0)


# ---- ranks and independence ---------------------------------------------------------------------


def test_ranks_of_the_worked_case():
    """B13: [[1, 2], [2, 4]] has rank 1, I has 2; the score is the mean over images."""
    one, two = [[1, 2], [2, 4]], [[1, 0], [0, 1]]
    np.testing.assert_array_equal(updated(criteria.map_rank(), [[one], [two]]), [1.5])
    np.testing.assert_array_equal(updated(criteria.map_rank(), [[one, two]]), [1, 2])
    nearly = [[[[1, 0], [0, 0.05]]]]
    assert updated(criteria.map_rank(0.1), nearly) == [1]
    assert updated(criteria.map_rank(), nearly) == [2]
    # What is no map has rank 1 where it says anything.
    np.testing.assert_array_equal(updated(criteria.map_rank(), [[0, 2], [3, 1]]), [0.5, 1])
    with pytest.raises(errors.ArgumentError, match="tolerance=1"):
        criteria.map_rank(1)


def test_ranks_are_those_of_numpy():
    rng = np.random.default_rng(0)
    low = rng.normal(size=(4, 6, 7, 3)) @ rng.normal(size=(4, 6, 3, 5))
    maps = np.where(rng.uniform(size=low.shape) < 0.3, 0, low).astype(np.float32)
    for values in (low.astype(np.float32), maps):
        right = np.linalg.matrix_rank(values).mean(0)
        np.testing.assert_allclose(updated(criteria.map_rank(), values), right, rtol=1e-6)


def test_independence_of_the_worked_case(float64):
    """B14: of two equal rows both score low, though their norms are the largest."""
    rows = [[[3, 0, 0], [0, 4, 0], [0, 4, 0]]]
    came = updated(criteria.independence(), rows)
    np.testing.assert_allclose(came, [3, 1.656854, 1.656854], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 6, 2, 2), (2, 5, 5)])
def test_independences_are_differences_of_nuclear_norms(float64, shape):
    maps = np.random.default_rng(1).normal(size=shape)
    flat = maps.reshape(*shape[:2], -1)
    norm = lambda a: np.linalg.norm(a, "nuc")
    right = [
        np.mean([norm(a) - norm(a * (np.arange(shape[1]) != c)[:, None]) for a in flat])
        for c in range(shape[1])
    ]
    np.testing.assert_allclose(updated(criteria.independence(), maps), right, rtol=1e-9)


# ---- the pass -----------------------------------------------------------------------------------

STATISTICS = {
    "zeros": criteria.zeros,
    "entropy": functools.partial(criteria.entropy, 8),
    "map_rank": criteria.map_rank,
    "independence": criteria.independence,
}


def part(images, *numbers, weight=None):
    batch = {"image": images[jnp.array(numbers)]}
    return batch if weight is None else {**batch, "weight": jnp.array(weight, jnp.float32)}


WAYS = {
    "7 + 3": lambda x: [part(x, *range(7)), part(x, 7, 8, 9)],
    "6 + 4 and two of padding": lambda x: [
        part(x, *range(6), weight=[1] * 6),
        part(x, 6, 7, 8, 9, 9, 9, weight=[1, 1, 1, 1, 0, 0]),
    ],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STATISTICS)
def test_scores_do_not_depend_on_the_batches(name, way):
    _, images, _ = case()
    right = scores(STATISTICS[name](), [{"image": images}])
    came = scores(STATISTICS[name](), WAYS[way](images))
    for group, score in right.items():
        exact = name in ("zeros", "map_rank")
        np.testing.assert_allclose(came[group], score, rtol=1e-7 if exact else 1e-4, atol=1e-4)


def test_all_statistics_share_one_run_of_the_net():
    variables, images, groups = case()
    runs = []

    def counted(v, x):
        jax.debug.callback(lambda _: runs.append(1), x[0, 0, 0, 0])
        return net(v, x)

    batches = [part(images, *range(5)), part(images, *range(5, 10))]
    all_ = {name: make() for name, make in STATISTICS.items()} | {"near": criteria.zeros(0.1)}
    together = criteria.activations(counted, groups, all_)
    came = jprune.run_criterion(together, variables, batches)
    jax.effects_barrier()
    # One pass, and a second one where a statistic asks for it.
    assert len(runs) == len(batches) * (1 if together.again is None else 2)
    for name, statistic in all_.items():
        alone = scores(statistic, batches)
        jax.tree.map(np.testing.assert_array_equal, came[name], alone)


def test_what_stays_nan_is_not_scored():
    _, images, _ = case()
    broken = images.at[3].set(jnp.nan)
    for make in STATISTICS.values():
        came = scores(make(), [{"image": broken}])
        assert all(np.isnan(score).all() for score in came.values())
        fine = scores(make(), [{"image": broken, "weight": jnp.ones(10).at[3].set(0)}])
        assert all(np.isfinite(score).all() for score in fine.values())


def channels_first(v, x):
    """For one image [channels, height, width]: kernels OIHW, shifts [C, 1, 1], under `vmap`."""
    act = jax.nn.relu

    def one(x):
        turn = lambda name: v[name].transpose(3, 2, 0, 1)
        of = lambda x, name: conv(x[None], turn(name), layout="NCHW")[0]
        x = act(of(x, "first") + v["shift"][:, None, None])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2), (1, 2, 2), "VALID")
        x = act(x + of(act(of(x, "a")), "b"))
        return x.mean((1, 2)) @ v["out"]

    return jax.vmap(one)(x)


def test_channels_first_under_vmap_scores_as_channels_last():
    variables, images, _ = case()
    x = images.transpose(0, 3, 1, 2)
    groups = jprune.trace(channels_first, variables, x[:1])
    for make in STATISTICS.values():
        criterion = criteria.activations(channels_first, groups, make())
        came = jprune.run_criterion(criterion, variables, [{"image": x}])
        right = scores(make(), [{"image": images}])
        for name, score in right.items():
            np.testing.assert_allclose(came[name], score, rtol=1e-3, atol=1e-3)


def flattened(v, x):
    """Pooling before the function, which is read behind a flatten."""
    x = conv(x, v["a"])
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(x).reshape(len(x), -1) @ v["b"]
    return jax.nn.relu(x) @ v["c"]


def test_a_unit_behind_a_flatten_is_read_at_all_its_positions():
    v = jax.tree.map(jnp.asarray, draw({"a": (3, 3, 2, 5), "b": (4 * 3 * 5, 7), "c": (7, 3)}))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 8, 6, 2)), jnp.float32)
    groups = jprune.trace(flattened, v, x[:1])
    assert criteria.places_read(groups)["a"] == ("b in",)
    criterion = criteria.activations(flattened, groups, criteria.zeros())
    came = jprune.run_criterion(criterion, v, [{"image": x}])["a"]
    read = conv(x, v["a"])
    read = jax.lax.reduce_window(read, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_allclose(came, (np.asarray(read) > 0).mean((0, 1, 2)), rtol=1e-6)
    assert criteria.rectified(flattened, groups, v, x[:1]) == ("a", "b")


def test_zeros_prune_on_a_schedule_in_a_loop_of_ones_own():
    variables, images, groups = case()
    criterion = criteria.activations(net, groups, criteria.zeros())
    tx = sparsify.scheduled_prune(
        criterion, allocate.global_topk, schedules.one_shot(0.5), every=2, groups=groups
    )
    state = tx.init(variables)
    still = jax.tree.map(jnp.zeros_like, variables)
    updates, state = jax.jit(tx.update)(still, state, variables, batch={"image": images})
    held = by_path(jax.tree.map(jnp.add, variables, updates))
    right = allocate.global_topk(scores(criteria.zeros(), [{"image": images}]), Budget(density=0.5))
    np.testing.assert_array_equal(held["a"].any((0, 1, 2)), right["a"])
    np.testing.assert_array_equal(held["first"].any((0, 1, 2)), right["first"])


def test_errors_say_what_to_write():
    variables, _, groups = case()
    for settings, says in (
        ({"at": "pool"}, "write one of act, in"),
        ({"only": ["c"]}, "only names c; the groups are first, a"),
        ({"only": []}, "no group of this net has a place"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            criteria.activations(net, groups, criteria.zeros(), **settings)
    with pytest.raises(errors.ArgumentError, match="below=-1"):
        criteria.zeros(-1)
    mixed = lambda v, x: net(v, jnp.concatenate([x, x[:1]]))[:-1]
    criterion = criteria.activations(mixed, groups, criteria.zeros())
    with pytest.raises(errors.StructureError, match="rows for 2 examples"):
        criterion.update(criterion.init(variables), variables, {"image": jnp.ones((2, 8, 6, 2))})
