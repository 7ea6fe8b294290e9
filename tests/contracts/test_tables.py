"""What all criteria, allocators and sparsifiers promise: a row of a table each, one claim for all.

A new mechanism is a row; a name of a room that has no row fails the test that counts them.
Stages and recipes have their tables in `test_stages_and_recipes.py`.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocate, blocks, criteria, curvature, errors, schedules, sparsify
from jprune.base import Allocator, Budget, Criterion
from tests.contracts.own import cross_entropy, draw

KEY = jax.random.key(3)
VARIABLES = {
    "params": draw({"first": (5, 7), "shift": (7,), "second": (7, 6), "out": (6, 3)}),
    "stats": {"mean": np.full(7, 0.1, np.float32)},
}


def fn(variables, x):
    v = variables["params"]
    x = jax.nn.relu(x @ v["first"] + v["shift"] - variables["stats"]["mean"])
    return jax.nn.relu(x @ v["second"]) @ v["out"]


def scaled(variables, x):
    """The same variables in a net whose `shift` multiplies."""
    v = variables["params"]
    return jax.nn.relu(jax.nn.relu(x @ v["first"] * v["shift"]) @ v["second"]) @ v["out"]


def batch_of(seed, size=8):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(size, 5)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, 3, size), "weight": np.ones(size, np.float32)}


GROUPS = jprune.trace(fn, VARIABLES, batch_of(0)["image"])
UNITS = {"params/first": 7, "params/second": 6}
LAYERS = curvature.layers_of(fn, GROUPS, VARIABLES, batch_of(0)["image"])


def signature_names(module, returns):
    """Public functions of a room that say they return this."""
    named = {name: getattr(module, name) for name in module.__all__}
    of = lambda function: str(inspect.signature(function).return_annotation)
    return {
        name
        for name, f in named.items()
        if inspect.isfunction(f) and f.__doc__ and returns in of(f)
    }


def is_array(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


# ---- criteria -----------------------------------------------------------------------------------

ALIVE = {name: np.arange(size) > 0 for name, size in UNITS.items()}
STATISTICS = {
    "zeros": criteria.zeros,
    "entropy": criteria.entropy,
    "map_rank": criteria.map_rank,
    "independence": criteria.independence,
}
CRITERIA = {
    **{
        f"activations {name}": lambda make=make: criteria.activations(fn, GROUPS, make())
        for name, make in STATISTICS.items()
    },
    "magnitude": lambda: criteria.magnitude(1),
    "magnitude squared": lambda: criteria.magnitude(2),
    **{
        f"distance {metric}": lambda metric=metric: criteria.distance(GROUPS, metric)
        for metric in ("manhattan", "cosine")
    },
    "layer_adaptive": lambda: criteria.layer_adaptive(),
    "random": lambda: criteria.random(KEY),
    "coupled_norm": lambda: criteria.coupled_norm(GROUPS),
    "scales": lambda: criteria.scales(jprune.trace(scaled, VARIABLES, batch_of(0)["image"])),
    "std_rule": lambda: criteria.std_rule(),
    "taylor separate": lambda: criteria.taylor(fn, cross_entropy),
    "taylor joint": lambda: criteria.taylor(fn, cross_entropy, GROUPS, form="joint"),
    "taylor gate": lambda: criteria.taylor(fn, cross_entropy, GROUPS, form="gate"),
    **{
        f"gate_slopes {form}": lambda form=form: criteria.gate_slopes(
            fn, cross_entropy, GROUPS, form
        )
        for form in ("absolute", "signed", "entries", "square")
    },
    "distance": lambda: criteria.distance(GROUPS),
    "sensitivity": lambda: criteria.sensitivity(fn, cross_entropy),
    "gradient_flow": lambda: criteria.gradient_flow(fn, cross_entropy, temperature=2.0),
    "synaptic_flow": lambda: criteria.synaptic_flow(fn, batch_of(0)["image"][:1]),
    "removal": lambda: criteria.removal(fn, cross_entropy, GROUPS, signed=True),
    "obd": lambda: criteria.obd(fn, cross_entropy, curvature.gauss_newton(1), KEY),
    **{
        f"kronecker {form}": lambda form=form: criteria.kronecker(
            fn, cross_entropy, GROUPS, LAYERS, form, key=KEY
        )
        for form in ("c_obd", "c_obs", "kron_obd", "kron_obs")
    },
    "masked": lambda: criteria.masked(
        criteria.taylor(fn, cross_entropy, GROUPS, form="gate"), ALIVE
    ),
}
each_criterion = pytest.mark.parametrize("row", CRITERIA)


def scores_of(criterion, *batches):
    return jprune.run_criterion(criterion, VARIABLES, batches)


def test_every_criterion_has_a_row():
    assert signature_names(criteria, "Criterion") == {row.partition(" ")[0] for row in CRITERIA}
    assert signature_names(criteria, "Statistic") == {*STATISTICS}


@each_criterion
def test_scores_are_of_units_or_of_the_trained_weights(row):
    """Real, of one shape with what they judge, and none for statistics; only masks say -inf."""
    scores = scores_of(CRITERIA[row](), batch_of(0), batch_of(1))
    if scores.keys() <= UNITS.keys():  # groups that a criterion has no opinion of are left out
        assert {name: np.shape(score) for name, score in scores.items()} == {
            name: (UNITS[name],) for name in scores
        }
    else:
        assert scores["stats"] == {"mean": None}
        shapes = jax.tree.map(np.shape, VARIABLES["params"])
        assert jax.tree.map(np.shape, scores["params"]) == shapes
    for score in jax.tree.leaves(scores):
        assert np.issubdtype(np.asarray(score).dtype, np.floating)
        assert np.isfinite(np.asarray(score)[1 if row == "masked" else 0 :]).all()


@each_criterion
def test_a_criterion_that_looks_at_data_asks_for_it(row):
    criterion = CRITERIA[row]()
    if criterion.needs_data:
        with pytest.raises(errors.ArgumentError, match="batch"):
            scores_of(criterion)
    else:
        jax.tree.map(np.testing.assert_array_equal, scores_of(criterion), scores_of(criterion))


@each_criterion
def test_a_criterion_is_pure_and_compiled_once(row):
    """The same batches give the same scores; a state can be used twice and is a tree of arrays."""
    criterion = CRITERIA[row]()
    state = criterion.init(VARIABLES)
    assert all(map(is_array, jax.tree.leaves(state)))
    traced = 0

    @jax.jit
    def update(state, batch):
        nonlocal traced
        traced += 1
        return criterion.update(state, VARIABLES, batch)

    first = update(state, batch_of(0))
    if criterion.again is not None:
        first = update(criterion.again(update(first, batch_of(1))), batch_of(0))
    one, two = update(first, batch_of(1)), update(first, batch_of(1))
    # The first state may have other types than those behind it (an empty mean is an integer).
    assert traced <= (2 if criterion.again is None else 3)
    assert all(map(is_array, jax.tree.leaves(one)))
    equal = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    jax.tree.map(equal, *(criterion.score(state, VARIABLES) for state in (one, two)))
    by_hand = scores_of(criterion, batch_of(0), batch_of(1))
    jax.tree.map(equal, criterion.score(one, VARIABLES), by_hand)


# The others draw labels or probes, in the shape of the batch.
@pytest.mark.parametrize(
    "row", [row for row in CRITERIA if row.split()[0] not in ("obd", "kronecker")]
)
def test_padded_examples_do_not_count(row):
    whole = batch_of(0)
    padded = {name: np.concatenate([array, array[:2]]) for name, array in whole.items()}
    padded["weight"][-2:] = 0
    equal = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    jax.tree.map(equal, scores_of(CRITERIA[row](), whole), scores_of(CRITERIA[row](), padded))


# ---- allocators ---------------------------------------------------------------------------------

ALLOCATORS = {
    "uniform": lambda groups: allocate.uniform,
    "global_topk": lambda groups: allocate.global_topk,
    "erdos_renyi": allocate.erdos_renyi,
}
"""{name: the allocator of a net}."""
OF_WEIGHTS = ("erdos_renyi",)
"""Allocators that take no scores of units."""


def stairs(term):
    """A latency table without a clock: time rises at every second channel."""
    steps = lambda width: -(-width // 2)
    return term.positions * steps(term.inputs) * steps(term.outputs)


COST = jprune.cost_model(fn, VARIABLES, batch_of(0)["image"][:1], groups=GROUPS, latency=stairs)
OF_COST = ("params", "macs", "latency", "energy", "bytes")
"""Kinds of budgets that a cost model meets."""


def numbers(shape, seed):
    return np.random.default_rng(seed).uniform(0.1, 1.0, size=shape).astype(np.float32)


UNIT_SCORES = {name: numbers((size,), n) for n, (name, size) in enumerate(UNITS.items())}
WEIGHT_SCORES = {
    "params": {
        name: numbers(leaf.shape, n) if leaf.ndim > 1 else None
        for n, (name, leaf) in enumerate(VARIABLES["params"].items())
    },
    "stats": {"mean": None},
}
SCORES = {"units": UNIT_SCORES, "weights": WEIGHT_SCORES}
each_allocator = pytest.mark.parametrize("row", ALLOCATORS)
each_allocator_and_kind = pytest.mark.parametrize(
    ("row", "kind"),
    [
        (row, kind)
        for row in ALLOCATORS
        for kind in SCORES
        if kind == "weights" or row not in OF_WEIGHTS
    ],
)


def is_none(leaf):
    return leaf is None


def with_extremes(score):
    """The first entry is gone already, the last is never pruned; None stays."""
    if score is None:
        return None
    score = score.copy()
    score.flat[0], score.flat[-1] = -np.inf, np.inf
    return score


HELPERS = """
    jointly keep_best largest price_of refuse_impossible refuse_impossible_jointly smallest spent
    toward
""".split()
"""Of the room, and no allocators themselves, or of counts and not of budgets of every kind."""


def test_every_allocator_has_a_row():
    named = {name: getattr(allocate, name) for name in allocate.__all__}
    signatures = {n: inspect.signature(f) for n, f in named.items() if inspect.isfunction(f)}
    taking = {n for n, of in signatures.items() if {"scores", "budget"} <= set(of.parameters)}
    making = {n for n, of in signatures.items() if of.return_annotation == Allocator}
    assert (taking | making) - {*HELPERS} == set(ALLOCATORS)


@pytest.mark.parametrize("row", OF_WEIGHTS)
def test_an_allocator_of_weights_refuses_scores_of_units(row):
    with pytest.raises(errors.ArgumentError, match="scores of units"):
        ALLOCATORS[row](GROUPS)(UNIT_SCORES, Budget(density=0.5))


@each_allocator_and_kind
@pytest.mark.parametrize("budget", ["density", *OF_COST])
def test_masks_are_boolean_within_the_budget_and_leave_scores_alone(row, kind, budget):
    if (kind, budget) == ("weights", "latency"):
        pytest.skip("zeros among weights take as long as other numbers: see the test below")
    scores = jax.tree.map(with_extremes, SCORES[kind], is_leaf=is_none)
    before = jax.tree.map(np.array, scores)
    masks = ALLOCATORS[row](GROUPS)(scores, Budget(**{budget: 0.6}), COST)
    jax.tree.map(np.testing.assert_array_equal, scores, before)
    assert jax.tree.structure(masks) == jax.tree.structure(scores)
    for mask, score in zip(jax.tree.leaves(masks), jax.tree.leaves(scores)):
        assert np.asarray(mask).dtype == bool
        assert np.shape(mask) == score.shape
        assert not np.any(np.asarray(mask)[score == -np.inf])
        assert np.all(np.asarray(mask)[score == np.inf])
    if budget == "density":
        total = sum(score.size for score in jax.tree.leaves(scores))
        assert abs(sum(int(np.sum(m)) for m in jax.tree.leaves(masks)) - 0.6 * total) <= 3
    else:
        kept = getattr(COST(masks), budget) / getattr(COST({}), budget)
        assert 0.4 < kept <= 0.6 + 1e-6


@each_allocator
def test_no_zeros_among_weights_save_time(row):
    with pytest.raises(errors.BudgetError, match=r"the smallest net allowed costs 1\.0000"):
        ALLOCATORS[row](GROUPS)(WEIGHT_SCORES, Budget(latency=0.6), COST)


@each_allocator_and_kind
def test_better_scores_are_preferred_and_only_their_order_counts(row, kind):
    """In every leaf what is kept is better than what is not; growing functions change nothing."""
    scores, budget = SCORES[kind], Budget(density=0.5)
    masks = ALLOCATORS[row](GROUPS)(scores, budget)
    for mask, score in zip(jax.tree.leaves(masks), jax.tree.leaves(scores)):
        mask = np.asarray(mask)
        if mask.any() and not mask.all():
            assert score[mask].min() >= score[~mask].max()
    squared = jax.tree.map(np.square, scores)
    jax.tree.map(np.testing.assert_array_equal, ALLOCATORS[row](GROUPS)(squared, budget), masks)


def listed(variables):
    """The variables and functions of them with a list in the place of the inner dictionary."""
    return {**variables, "params": [variables["params"][name] for name in VARIABLES["params"]]}


@each_allocator
@pytest.mark.parametrize("budget", ["density", "params", "macs"])
def test_scores_in_lists_get_the_masks_of_those_in_dictionaries(row, budget):
    named = lambda v: {**v, "params": dict(zip(VARIABLES["params"], v["params"]))}
    of_list = lambda v, x: fn(named(v), x)
    image = batch_of(0)["image"][:1]
    groups = jprune.trace(of_list, listed(VARIABLES), image)
    cost = jprune.cost_model(of_list, listed(VARIABLES), image, groups=groups)
    wanted = Budget(**{budget: 0.6})
    right = ALLOCATORS[row](GROUPS)(WEIGHT_SCORES, wanted, COST)
    found = ALLOCATORS[row](groups)(listed(WEIGHT_SCORES), wanted, cost)
    jax.tree.map(np.testing.assert_array_equal, found, listed(right))


# ---- sparsifiers --------------------------------------------------------------------------------

PARAMS = {name: jnp.asarray(leaf) for name, leaf in VARIABLES["params"].items()}
PATHS = {name: f"params/{name}" for name in PARAMS}
MASKS = {
    name: numbers(leaf.shape, 9) > 0.5 if leaf.ndim > 1 else None for name, leaf in PARAMS.items()
}
HALVES = {name: np.arange(size) // 2 for name, size in UNITS.items()}


def steady(step):
    """A learning rate."""
    return 0.05


def with_data(batch_matters=True):
    """A criterion that sees batches: scores are |w| times the mean of what it saw."""
    return Criterion(
        init=lambda variables: jnp.zeros(()),
        update=lambda state, variables, batch: state + batch["image"].mean() ** 2,
        score=lambda state, variables: jax.tree.map(lambda w: jnp.abs(w) * state, variables),
        needs_data=batch_matters,
    )


SPARSIFIERS = {
    "active_gradients": lambda: sparsify.active_gradients(blocks.weights(GROUPS), 30),
    "hold": lambda: sparsify.hold(MASKS),
    "l1_gradient": lambda: sparsify.l1_gradient(blocks.weights(GROUPS), 0.1),
    "l1_decay": lambda: sparsify.l1_decay(blocks.weights(GROUPS), 0.1, steady),
    "group_lasso": lambda: sparsify.group_lasso(blocks.filters(GROUPS), 0.1, steady),
    "admm": lambda: sparsify.admm(
        optax.adam(0.01),
        sparsify.projection(blocks.filters(GROUPS), dict.fromkeys(UNITS, 3)),
        rho=0.1,
        every=2,
    ),
    "centripetal": lambda: sparsify.centripetal(
        sparsify.memberships(GROUPS, HALVES)["params"], 0.1
    ),
    **{
        f"drop_and_grow {grow}": lambda grow=grow: sparsify.drop_and_grow(
            optax.sgd(0.1, 0.9), MASKS, KEY, every=2, stop=9, grow=grow
        )
        for grow in ("gradient", "random")
    },
    "dynamic_surgery": lambda: sparsify.dynamic_surgery(
        optax.sgd(0.1, 0.9),
        jax.tree.map(np.ones_like, MASKS),
        0.0,
        KEY,
        stop=10,
    ),
    "feedback": lambda: sparsify.feedback(
        optax.sgd(0.1, 0.9),
        sparsify.masks_by(
            criteria.magnitude(), allocate.global_topk, schedules.cubic(0.5, 0, 4), GROUPS, "weight"
        ),
        every=2,
    ),
    "feedback of units": lambda: sparsify.feedback(
        optax.sgd(0.1, 0.9),
        sparsify.masks_by(
            criteria.magnitude(2),
            allocate.toward({"params/first": 3, "params/second": 6}),
            schedules.cubic(9 / 13, 0, 4),
            GROUPS,
            roles=("kernel",),
        ),
        every=2,
    ),
    "hard_threshold": lambda: sparsify.hard_threshold(
        optax.sgd(0.1, 0.9),
        sparsify.masks_by(
            criteria.magnitude(), allocate.uniform, schedules.one_shot(0.4), GROUPS, "weight"
        ),
        sparse_steps=2,
        dense_steps=1,
        steps=5,
    ),
    "soft_prune": lambda: sparsify.soft_prune(
        sparsify.masks_by(
            criteria.distance(GROUPS), allocate.uniform, schedules.one_shot(0.5), GROUPS
        ),
        every=2,
    ),
    "forgetting": lambda: sparsify.forgetting(
        steady,
        0.01,
        lambda lengths, step, masks: {n: jnp.arange(len(rows)) > 0 for n, rows in lengths.items()},
        momentum=0.9,
    ),
    "fista": lambda: sparsify.fista(steady, lambda step: 0.1, restart=2),
    "movement": lambda: sparsify.movement(
        optax.sgd(0.1, 0.9),
        optax.sgd(0.01),
        lambda scores, step: allocate.uniform(
            scores, Budget(density=schedules.cubic(0.5, 0, 4)(step))
        ),
        jax.tree.map(np.ones_like, MASKS),
    ),
    "refined_ste": lambda: sparsify.refined_ste(
        optax.sgd(0.1, 0.9),
        lambda weights: blocks.n_of_m(GROUPS, jax.tree.map(jnp.abs, weights), 1, 2),
    ),
    "candidate_decay": lambda: sparsify.candidate_decay(blocks.filters(GROUPS), 0.4, 0.1, steady),
    "relative_decay": lambda: sparsify.relative_decay(blocks.coupled(GROUPS), 0.1),
    "dwindling": lambda: sparsify.dwindling(
        blocks.filters(GROUPS, shifts=True),
        allocate.lowest_first(UNITS, Budget(density=0.7)),
        begin=1,
        period=2,
        periods=1,
    ),
    "group_decay": lambda: sparsify.group_decay(blocks.filters(GROUPS), 0.1),
    "growing_decay": lambda: sparsify.growing_decay(blocks.filters(GROUPS), 0.1, 0.3, every=2),
    "ranked_decay": lambda: sparsify.ranked_decay(
        optax.sgd(0.05, 0.9), blocks.filters(GROUPS), dict.fromkeys(UNITS, 2), 0.2, 0.5
    ),
    "box": lambda: sparsify.box(-0.5, 0.5),
    "guarded": lambda: sparsify.guarded(optax.sgd(0.1)),
    "one_by_one": lambda: sparsify.one_by_one(
        criteria.magnitude(), GROUPS, allocate.lowest_first(UNITS, Budget(density=0.7)), every=2
    ),
    "low_rank": lambda: sparsify.low_rank(GROUPS, 0.1, steady, every=2),
    "truncated_lasso": lambda: sparsify.truncated_lasso(
        blocks.columns(GROUPS),
        0.1,
        {"params/first": 2, "params/second": 3, "params/out": 0},
        steady,
    ),
    "within_range": lambda: sparsify.within_range(
        optax.sgd(0.1, 0.9),
        jax.tree.map(lambda mask: np.array([0.3, 0.8]), MASKS),
        steady,
        strength=0.1,
        every=2,
    ),
    "scheduled_prune": lambda: sparsify.scheduled_prune(
        criteria.magnitude(), allocate.global_topk, schedules.cubic(0.5, 0, 4), every=2
    ),
    "scheduled_prune with data": lambda: sparsify.scheduled_prune(
        with_data(), allocate.global_topk, schedules.cubic(0.5, 0, 4), every=2
    ),
}
NEED_NO_PARAMETERS = ("guarded",)
FIRST = (
    "active_gradients",
    "centripetal",
    "group_decay",
    "growing_decay",
    "l1_gradient",
    "relative_decay",
)
"""They stand in front of the step; the others behind it, or are whole steps."""
each_sparsifier = pytest.mark.parametrize("row", SPARSIFIERS)


def gradients(params, batch):
    variables = {**VARIABLES, "params": params}
    loss = lambda params: cross_entropy(fn({**variables, "params": params}, batch["image"]), batch)
    return jax.grad(lambda params: loss(params).mean())(params)


def chained(row):
    """The transformation in a user's chain, beside plain SGD."""
    own, sgd = SPARSIFIERS[row](), optax.sgd(0.05, 0.9)
    return optax.chain(own, sgd) if row in FIRST else optax.chain(sgd, own)


def own_step(tx):
    """A user's own step: `(state, params, batch) -> state, params`, not compiled."""

    def step(state, params, batch):
        updates, state = tx.update(gradients(params, batch), state, params, batch=batch)
        return state, optax.apply_updates(params, updates)

    return step


def test_every_sparsifier_has_a_row():
    assert signature_names(sparsify, "GradientTransformation") == {
        row.partition(" ")[0] for row in SPARSIFIERS
    }


@each_sparsifier
def test_the_state_is_a_tree_of_arrays_that_keeps_its_shape(row):
    tx = chained(row)
    state = tx.init(PARAMS)
    assert all(map(is_array, jax.tree.leaves(state)))
    after, params = own_step(tx)(state, PARAMS, batch_of(0))
    types = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)
    assert types(after) == types(state)
    assert types(params) == types(PARAMS)


@each_sparsifier
def test_a_users_own_loop_is_compiled_once_and_does_what_it_does_uncompiled(row):
    tx = chained(row)
    plain, compiled = own_step(tx), jax.jit(own_step(tx))
    one = two = (tx.init(PARAMS), PARAMS)
    for number in range(5):
        one, two = plain(*one, batch_of(number)), compiled(*two, batch_of(number))
    assert compiled._cache_size() == 1
    equal = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(equal, one[1], two[1])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), two[1], PARAMS)
    assert max(jax.tree.leaves(moved)) > 1e-3


@each_sparsifier
def test_a_users_own_loop_may_be_a_scan(row):
    tx = chained(row)
    step = own_step(tx)
    batches = jax.tree.map(lambda *arrays: np.stack(arrays), *(batch_of(n) for n in range(4)))

    @jax.jit
    def scanned(state, params):
        return jax.lax.scan(
            lambda carry, batch: (step(*carry, batch), None), (state, params), batches
        )

    by_scan = scanned(tx.init(PARAMS), PARAMS)[0][1]
    state, params, compiled = tx.init(PARAMS), PARAMS, jax.jit(step)
    for number in range(4):
        state, params = compiled(state, params, batch_of(number))
    equal = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(equal, by_scan, params)


@each_sparsifier
def test_what_needs_parameters_says_so(row):
    tx = SPARSIFIERS[row]()
    state, extra = tx.init(PARAMS), optax.with_extra_args_support(tx)
    update = lambda *params: extra.update(PARAMS, state, *params, batch=batch_of(0))
    if row in NEED_NO_PARAMETERS:
        jax.tree.map(lambda u, p: np.testing.assert_equal(u.shape, p.shape), update()[0], PARAMS)
        return
    with pytest.raises(errors.ArgumentError, match="params"):
        update()


@each_sparsifier
def test_new_masks_do_not_recompile(row):
    tx = chained(row)
    state = tx.init(PARAMS)
    try:
        masks = jprune.masks_of(state)
    except errors.StructureError:
        assert row not in (
            "hold",
            "scheduled_prune",
            "dynamic_surgery",
            "drop_and_grow gradient",
        ), "it has masks"
        return
    compiled = jax.jit(own_step(tx))
    state, params = compiled(state, PARAMS, batch_of(0))
    turned = jax.tree.map(lambda mask: ~jnp.asarray(mask), masks)
    state, _ = compiled(jprune.with_masks(state, turned), params, batch_of(1))
    assert compiled._cache_size() == 1
    if row == "hold":
        jax.tree.map(np.testing.assert_array_equal, jprune.masks_of(state), turned)
