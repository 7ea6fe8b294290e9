"""SynFlow: numbers of checks.md B7, conservation, no collapse, wide numbers, and its recipe."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import criteria, errors
from jprune.base import Budget, Pruned
from jprune.criteria.synaptic_flow import flow_of
from jprune.recipes import Train
from jprune.recipes.synflow import synflow
from jprune.stages import PruneUntrained, evenly
from jprune.stages.prune import l1_of
from jprune.stages.untrained_scores import BySensitivity, BySynapticFlow
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
SHORT = Train(1, 0.05, 16, max_steps=2)
PAIR = jax.ShapeDtypeStruct((1, 2), jnp.float32)


def chain(v, x):
    """Dense layers with ReLUs between them."""
    for name in sorted(v):
        x = jnp.maximum(x, 0) @ v[name]
    return x


def test_scores_of_two_layers():
    """Checks B7: R = 10, and both layers' scores add up to it."""
    variables = {"a": np.array([[1.0, 3.0], [-2.0, 4.0]]), "b": np.array([[1.0], [-1.0]])}
    total, scores = flow_of(chain, PAIR)(variables)
    assert float(total) == 10
    assert scores["a"].tolist() == [[1, 3], [2, 4]]
    assert scores["b"].tolist() == [[3], [7]]


def test_densities_of_rounds():
    """Checks B7: 0.01^(k / 100)."""
    kept = [each.density for each in evenly(Budget(density=0.01), 100)]
    np.testing.assert_allclose([kept[0], kept[49], kept[99]], [0.954993, 0.1, 0.01], rtol=1e-6)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_layers_of_a_chain_share_the_flow(seed, widths):
    """A law: every layer's scores sum to R, and a unit's to it are those from it."""
    rng = np.random.default_rng(seed)
    sizes = list(zip([2, *widths], [*widths, 1]))
    variables = {f"w{n}": rng.normal(size=size).astype(np.float32) for n, size in enumerate(sizes)}
    total, scores = flow_of(chain, PAIR)(variables)
    # Brute force: the sum over all paths of the products of their |w|.
    paths = np.ones((1, 2))
    for name in variables:
        paths = paths @ np.abs(variables[name])
    np.testing.assert_allclose(total, paths.sum(), rtol=1e-5)
    for name, after in zip(list(scores), list(scores)[1:]):
        np.testing.assert_allclose(scores[name].sum(), total, rtol=1e-5)
        np.testing.assert_allclose(scores[name].sum(0), scores[after].sum(1), rtol=1e-5)


def untied(sizes, seed=0):
    """A task of dense layers whose kernels are drawn with layers of unlike scale."""
    rng = np.random.default_rng(seed)
    scales = [1.0, 0.02, 0.3, 1.0, 0.1][: len(sizes) - 1]
    params = {
        f"w{n}": (scale * rng.normal(size=size)).astype(np.float32)
        for n, (scale, size) in enumerate(zip(scales, itertools.pairwise(sizes)))
    }
    return own.task_of(lambda v, x: chain(v["params"], x), params, sizes[:1])


def test_it_keeps_a_path_where_the_others_cut_the_net():
    """Six weights for five layers: nearly the least that a path takes."""
    task = untied([8, 20, 30, 20, 12, 4])
    start = Pruned(task.init(KEY), None)
    budget = Budget(density=6 / sum(leaf.size for leaf in jax.tree.leaves(start.variables)))
    flow = flow_of(task.fn, task.example)
    left = {}
    for name, criterion, rounds in (
        ("100 rounds", BySynapticFlow(), 100),
        ("1 round", BySynapticFlow(), 1),
        ("sensitivity", BySensitivity(), 1),
        ("magnitude", l1_of, 1),
    ):
        stage = PruneUntrained(criterion, budget, rounds, batch_size=16, collapse="warn")
        pruned, (seen,) = stage(start, task, KEY)
        assert sum(int(mask.sum()) for mask in jax.tree.leaves(pruned.masks)) == 6
        left[name] = float(flow(pruned.variables)[0]) > 0
        assert left[name] == (seen["metrics"]["silent_layers"] == 0)
    assert left == {"100 rounds": True, "1 round": False, "sensitivity": False, "magnitude": False}
    with pytest.raises(errors.BudgetError, match="take more rounds"):
        PruneUntrained(BySynapticFlow(), budget)(start, task, KEY)


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("size", [1e13, 1e-13])
def test_wide_numbers_where_a_flow_leaves_float32(size, cast):
    """Forty layers of one weight: R = size^40 as a product; nets that cast to float32 too."""
    rng = np.random.default_rng(0)
    weights = (size**0.5 * rng.uniform(0.5, 2, 40)).astype(np.float32)
    number = lambda w: w.astype(jnp.float32) if cast else w

    def fn(v, x):
        for name in sorted(v):
            x = jax.nn.relu(jnp.dot(number(x), number(v[name]), preferred_element_type=x.dtype))
        return x

    variables = {f"{n:02}": jnp.full((1, 1), w) for n, w in enumerate(weights)}
    total, scores = flow_of(fn, jax.ShapeDtypeStruct((1, 1), jnp.float32))(variables)
    right = np.prod(weights.astype(np.float64))
    assert right > 1e200 or right < 1e-200
    np.testing.assert_allclose(total, right, rtol=1e-9)
    for score in jax.tree.leaves(scores):
        np.testing.assert_allclose(score, right, rtol=1e-9)


def test_norms_are_in_inference_mode_and_absolute():
    """(x - |mean|) / sqrt(var + eps) * |scale| + |shift|, as in the authors' state dictionary."""
    task = toy_task()
    variables = drawn(task)
    sizes = jax.tree.map(np.abs, variables)
    right = np.sum(task.fn(sizes, np.ones((1, 8, 8, 1), np.float32)))
    total, scores = flow_of(task.fn, task.example)(variables)
    np.testing.assert_allclose(total, right, rtol=1e-5)
    slope = jax.grad(lambda p: task.fn({**sizes, "params": p}, np.ones((1, 8, 8, 1))).sum())(
        sizes["params"]
    )
    product = jax.tree.map(lambda s, w: np.abs(s * w), slope, sizes["params"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), scores["params"], product
    )


def test_rounds_keep_exact_counts_and_meet_macs():
    task = toy_task()
    start = Pruned(drawn(task), None)
    total = sum(mask.size for mask in jax.tree.leaves(Net(task).prunable(None, Budget(density=1))))
    pruned, _ = PruneUntrained(BySynapticFlow(), Budget(density=0.1), 20)(start, task, KEY)
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(pruned.masks))
    assert kept == total - round(0.9 * total)
    _, (seen,) = PruneUntrained(BySynapticFlow(), Budget(macs=0.2), 3)(start, task, KEY)
    assert 0.19 < seen["metrics"]["macs"] <= 0.2


def test_a_net_that_no_flow_comes_through_is_refused_before_training():
    base = untied([4, 6, 3])
    drawn_batches = []
    task = own.watched(base._replace(fn=lambda v, x: jax.nn.softmax(base.fn(v, x))), drawn_batches)
    with pytest.raises(errors.ArgumentError, match="Leave the softmax to the loss"):
        own.run(synflow(Budget(density=0.5), SHORT), task)
    assert not drawn_batches
    broken = lambda v, x: base.fn(v, x) / (x.sum() - x.size)
    criterion = criteria.synaptic_flow(broken, task.example)
    with pytest.raises(errors.ArgumentError, match="not finite in float64 either"):
        jprune.run_criterion(criterion, task.init(KEY), ())


def test_it_scores_inside_a_transformation():
    criterion = criteria.synaptic_flow(chain, PAIR)
    variables = {"a": jnp.array([[1.0, 3.0], [-2.0, 4.0]]), "b": jnp.array([[1.0], [-1.0]])}
    assert jax.jit(criterion.score)((), variables)["b"].tolist() == [[3], [7]]
