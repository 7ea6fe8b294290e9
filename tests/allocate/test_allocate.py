"""Allocators: exact counts, ties, floors, multiples, budgets that are met."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import errors
from jprune.allocate import global_topk, normalized, uniform
from jprune.allocate.budgets import search
from jprune.base import Budget, Cost
from tests.nets import FIRST_CUT, draw

BOTH = pytest.mark.parametrize("allocate", [uniform, global_topk])


@BOTH
@pytest.mark.parametrize("size", [7, 10, 100])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_counts_are_exact_even_for_ties(allocate, size, sparsity):
    """[0] P1: zeros == round(s n), halves to even; ties by lowest index."""
    mask = allocate({"a": np.ones(size)}, Budget(density=1 - sparsity))["a"]
    zeros = round(sparsity * size)
    if zeros < size:
        assert int((~mask).sum()) == zeros
        assert mask[: size - zeros].all()


def test_global_ties_go_to_the_lowest_flat_index():
    masks = global_topk({"a": np.ones(3), "b": np.ones(5)}, Budget(density=0.5))
    assert masks["a"].tolist() == [True] * 3
    assert masks["b"].tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(("sparsity", "size", "zeros"), [(0.1, 15, 2), (0.3, 5, 2), (0.1, 5, 0)])
@BOTH
def test_halves_are_those_of_the_decimal_number(allocate, sparsity, size, zeros):
    mask = allocate({"a": np.arange(float(size))}, Budget(density=1 - sparsity))["a"]
    assert int((~mask).sum()) == zeros


def test_a_density_may_be_traced_in_uniform_too():
    scores = {"a": jnp.arange(8.0), "b": {"c": jnp.arange(12.0).reshape(3, 4), "d": None}}
    traced = jax.jit(lambda d: uniform(scores, Budget(density=d, min_units=2)))
    for density in (0.15, 0.5, 1.0):
        host = uniform(scores, Budget(density=density, min_units=2))
        result = traced(density)
        assert result["a"].tolist() == host["a"].tolist()
        assert result["b"]["c"].tolist() == host["b"]["c"].tolist()
        assert result["b"]["d"] is None


SIZES = (1, 7, 32, 61)


@jax.jit
def jitted_topk(tree, density):
    return global_topk(tree, Budget(density=density))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.floats(0.02, 1.0), st.integers(0, 10_000))
def test_jitted_selection_equals_host_selection(size, density, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, size).astype(np.float32)
    scores[rng.random(size) < 0.1] = -np.inf
    scores[rng.random(size) < 0.1] = np.inf
    tree = {"a": scores[: size // 2], "b": scores[size // 2 :]}
    tree = {name: leaf for name, leaf in tree.items() if leaf.size}
    density = float(np.float32(density))
    host = global_topk(tree, Budget(density=density))
    traced = jitted_topk(tree, jnp.float32(density))
    for name in tree:
        assert host[name].tolist() == np.asarray(traced[name]).tolist()


@BOTH
def test_infinities_are_honoured(allocate):
    scores = {"a": np.array([-np.inf, 1.0, np.inf, 2.0, np.inf, 3.0])}
    assert allocate(scores, Budget(density=0.2))["a"].tolist() == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    assert not allocate(scores, Budget(density=1.0))["a"][0]


def test_floors_and_multiples():
    scores = {"small": np.arange(6.0), "large": 100 + np.arange(20.0)}
    masks = global_topk(scores, Budget(density=0.5, min_units=2, floors={"small": 3}))
    assert masks["small"].sum() == 3
    masks = global_topk(scores, Budget(density=0.5, multiple_of=8))
    # The nearest multiple of 8 to 11 of 20; the small group goes in steps of gcd(6, 8) = 2.
    assert masks["large"].sum() == 8
    assert masks["small"].sum() == 2
    assert uniform(scores, Budget(density=0.95, multiple_of=8))["large"].sum() == 20


def chain_cost(widths, sides=(3, 4)):
    """A chain of dense layers in -> a -> b -> out, bilinear in the widths of a and b."""
    a, b = (float(np.sum(mask)) for mask in widths)
    macs = sides[0] * a + a * b + b * sides[1]
    return Cost(macs, macs, 0, {})


def chain_model(masks):
    full = {"a": np.ones(5, bool), "b": np.ones(6, bool)}
    masks = {**full, **masks}
    return chain_cost((masks["a"], masks["b"]))


@BOTH
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7, 0.95])
def test_budgets_are_met_and_no_single_unit_more_fits(allocate, fraction):
    rng = np.random.default_rng(0)
    scores = {"a": rng.random(5), "b": rng.random(6)}
    masks = allocate(scores, Budget(macs=fraction), chain_model)
    dense = chain_model({}).macs
    assert chain_model(masks).macs <= fraction * dense + 1e-6
    for name, mask in masks.items():
        assert mask.any()
        for unit in np.flatnonzero(~mask):
            wider = {**masks, name: mask | (np.arange(mask.size) == unit)}
            assert chain_model(wider).macs > fraction * dense


def test_a_budget_keeps_the_best_units_of_every_group():
    scores = {"a": np.array([5.0, 1, 4, 2, 3]), "b": np.arange(6.0)}
    masks = global_topk(scores, Budget(macs=0.5), chain_model)
    for name, mask in masks.items():
        assert scores[name][mask].min() > scores[name][~mask].max(initial=-np.inf)


def widths_that_fit(fraction):
    goal = fraction * chain_model({}).macs
    return [
        (a, b)
        for a, b in itertools.product(range(1, 6), range(1, 7))
        if chain_cost((np.ones(a), np.ones(b))).macs <= goal * (1 + 1e-9)
    ]


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 1.0), st.integers(0, 1000))
def test_global_budgets_against_brute_force(fraction, seed):
    """The widths are maximal among all that fit, and each group keeps its best units."""
    rng = np.random.default_rng(seed)
    scores = {"a": rng.random(5), "b": rng.random(6)}
    fits = widths_that_fit(fraction)
    masks = global_topk(scores, Budget(macs=fraction), chain_model)
    widths = int(masks["a"].sum()), int(masks["b"].sum())
    assert widths in fits
    assert not any(w[0] >= widths[0] and w[1] >= widths[1] and w != widths for w in fits)
    for name, mask in masks.items():
        assert set(np.flatnonzero(mask)) == set(np.argsort(-scores[name])[: mask.sum()])


@BOTH
@pytest.mark.parametrize("fraction", [0.2, 0.6, 0.9])
def test_budgets_in_multiples(allocate, fraction):
    sizes = {"a": 32, "b": 20}
    model = lambda masks: chain_cost((masks["a"], masks["b"]))
    scores = {name: np.random.default_rng(2).random(size) for name, size in sizes.items()}
    budget = Budget(macs=fraction, multiple_of=8)
    masks = allocate(scores, budget, model)
    dense = model({name: np.ones(size) for name, size in sizes.items()}).macs
    widths = {name: int(mask.sum()) for name, mask in masks.items()}
    assert widths["a"] in (8, 16, 24, 32)
    assert widths["b"] in (8, 16, 20)
    assert model(masks).macs <= fraction * dense + 1e-6


def test_infinities_under_a_cost_budget():
    scores = {"a": np.array([-np.inf, 5, 4, 3, np.inf]), "b": np.arange(6.0)}
    masks = global_topk(scores, Budget(macs=0.6), chain_model)
    assert masks["a"][4]
    assert not masks["a"][0]
    kept = {"a": np.full(5, np.inf), "b": np.full(6, np.inf)}
    with pytest.raises(errors.BudgetError, match=r"costs 1\.0000"):
        global_topk(kept, Budget(macs=0.6), chain_model)


def test_the_smallest_reachable_budget_is_named_and_can_be_met():
    scores = {"a": np.arange(5.0), "b": np.arange(6.0)}
    least = min(
        chain_cost((np.ones(a), np.ones(b))).macs
        for a, b in itertools.product(range(1, 6), range(1, 7))
    )
    with pytest.raises(errors.BudgetError, match="cannot be met") as caught:
        global_topk(scores, Budget(macs=0.01), chain_model)
    named = float(str(caught.value).split("Ask for ")[1].split(" ")[0])
    assert named == pytest.approx(least / chain_model({}).macs, abs=1e-3)
    assert chain_model(global_topk(scores, Budget(macs=named), chain_model)).macs == least


def test_real_cost_models_meet_their_budgets():
    net = FIRST_CUT[2]
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    model = jprune.cost_model(net.fn, variables, *inputs, groups=groups)
    rng = np.random.default_rng(1)
    scores = {name: rng.random(size) for name, size in groups.sizes.items()}
    for kind in ("macs", "params"):
        masks = global_topk(scores, Budget(**{kind: 0.5}), model)
        fraction = getattr(model(masks), kind) / getattr(model({}), kind)
        assert 0.4 < fraction <= 0.5


def test_weights_under_a_budget_in_params():
    net = FIRST_CUT[1]
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    model = jprune.cost_model(net.fn, variables, *inputs, groups=groups)
    scores = {k: (jnp.abs(v) if k.startswith("conv") else None) for k, v in variables.items()}
    scores = {
        k: jax.tree.map(lambda _: None, variables[k]) if s is None else s for k, s in scores.items()
    }
    masks = global_topk(scores, Budget(params=0.3), model)
    assert float(model(masks).params / model({}).params) == pytest.approx(0.3, abs=0.002)
    assert masks["head"]["kernel"] is None


def test_large_scores_are_selected_exactly_when_jitted():
    scores = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    mask = jax.jit(lambda s, d: global_topk({"a": s}, Budget(density=d)))(scores, 0.25)["a"]
    assert int(mask.sum()) == 50_000
    assert scores[np.asarray(mask)].min() > scores[~np.asarray(mask)].max()


def test_normalized_scores():
    scores = {"a": jnp.array([3.0, 4.0, -jnp.inf]), "b": jnp.zeros(2)}
    result = normalized(scores)
    assert float((result["a"][:2] ** 2).sum()) == pytest.approx(1)
    assert result["a"][2] == -jnp.inf
    assert result["b"].tolist() == [0, 0]
    scaled = normalized({"a": 7 * scores["a"], "b": scores["b"]})
    np.testing.assert_allclose(scaled["a"][:2], result["a"][:2], rtol=1e-6)


@BOTH
def test_errors_say_what_to_write(allocate):
    with pytest.raises(errors.ArgumentError, match="hold NaN"):
        allocate({"a": np.array([1.0, np.nan])}, Budget(density=0.5))
    with pytest.raises(errors.ArgumentError, match="needs a cost model"):
        allocate({"a": np.ones(3)}, Budget(macs=0.5))
    with pytest.raises(errors.ArgumentError, match="does not count latency"):
        allocate({"a": np.ones(5)}, Budget(latency=0.5), chain_model)
    with pytest.raises(errors.ArgumentError, match="nothing to allocate"):
        allocate({}, Budget(density=0.5))
    with pytest.raises(errors.ArgumentError, match="outside"):
        Budget(density=1.5)
    with pytest.raises(errors.ArgumentError, match="exactly one"):
        Budget(density=0.5, macs=0.5)


def test_the_nearer_of_below_and_above_is_taken_where_below_falls_short():
    """Units cost 10, 8 and 3, the whole 42, and 30 are asked for.

    From below come 24, and one more of `a` or `b` is too much. From above, `c` has the worst unit
    (39 are left), and then only one of `a` less fits: 29.
    """
    prices = {"a": 10, "b": 8, "c": 3}
    model = lambda masks: Cost(0, sum(prices[n] * np.sum(m) for n, m in masks.items()), 0, {})
    scores = {"a": np.array([9.0, 8.0]), "b": np.array([7.0, 6.0]), "c": np.array([5.0, 4.0])}
    widths_at = lambda *widths: {n: np.arange(2) < width for n, width in zip("abc", widths)}
    masks_at = lambda density: widths_at(2, 2, 2) if density > 0.5 else widths_at(1, 1, 2)
    chosen = search(masks_at, scores, Budget(macs=30 / 42), model)
    assert {name: int(mask.sum()) for name, mask in chosen.items()} == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize(
    "asked",
    [
        {"density": 0.25, "min_units": 3},
        {"density": 0.5, "floors": {"a": 4, "b": 5}},
        {"density": 0.25, "multiple_of": 8},
    ],
)
@pytest.mark.parametrize("allocator", [global_topk, uniform])
def test_a_density_below_what_floors_and_multiples_allow_is_refused(allocator, asked):
    scores = {"a": np.arange(4.0), "b": np.arange(5.0)}
    with pytest.raises(errors.BudgetError, match=r"cannot be met: .* of 9 entries. Ask for"):
        allocator(scores, Budget(**asked))
    # One entry a group always stays, and is no reason to refuse.
    masks = allocator(scores, Budget(density=0.05))
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1]
