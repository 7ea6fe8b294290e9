"""Layer-adaptive scores: the checks' numbers, sums by hand, no layer emptied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import allocate, criteria
from jprune.base import Budget

LAMP = criteria.layer_adaptive()


def scores_of(**leaves):
    return jprune.run_criterion(LAMP, leaves, ())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_are_the_papers(sign):
    """Checks B5."""
    found = scores_of(a=sign * np.array([1.0, 2.0, 3.0]), b=np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(found["a"], [1 / 14, 4 / 13, 1], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [1 / 30, 4 / 29, 0.36, 1], rtol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_sums_by_hand_compiled_or_not(seed):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(3, 4, 5)).round(1) * 10.0 ** rng.integers(-20, 20)
    found = scores_of(w=w)["w"].ravel()
    squares = w.ravel() ** 2
    for n, square in enumerate(squares):
        # Equal ones in the order of their index: the first is the best of them.
        rest = squares[(squares > square) | ((squares == square) & (np.arange(60) <= n))].sum()
        assert found[n] == pytest.approx(square / rest if rest else 0, rel=1e-6)
    single = {"w": jnp.asarray(w, jnp.float32)}
    compiled = jax.jit(lambda v: LAMP.score((), v))(single)["w"]
    np.testing.assert_allclose(compiled.ravel(), found, rtol=1e-4, atol=1e-7)


def test_the_scale_of_a_layer_is_nothing_and_the_best_of_each_scores_1():
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(6, 7)), rng.normal(size=(7, 2))
    one, two = scores_of(w=w, v=v), scores_of(w=1e-12 * w, v=1e9 * v)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-9)
        assert one[name].max() == 1
        assert (one[name] > 0).all()


def test_zeros_score_0_and_nan_is_seen():
    assert scores_of(w=np.zeros(4))["w"].tolist() == [0, 0, 0, 0]
    assert scores_of(w=np.zeros((0, 3)))["w"].shape == (0, 3)
    assert scores_of(w=np.array([2.0, 0.0, 0.0]))["w"].tolist() == [1, 0, 0]
    assert np.isnan(scores_of(w=np.array([1.0, np.nan]))["w"]).any()


def test_no_layer_is_emptied_where_magnitude_empties_one():
    """One kernel is a hundredth of the others: by magnitude nothing of it but its floor is left."""
    rng = np.random.default_rng(0)
    scale = {"a": 1.0, "b": 0.01, "c": 1.0}
    variables = {name: s * rng.normal(size=(30, 30)) for name, s in scale.items()}
    kept = {}
    for name, criterion in (("lamp", LAMP), ("magnitude", criteria.magnitude())):
        scores = jprune.run_criterion(criterion, variables, ())
        masks = allocate.global_topk(scores, Budget(density=0.05))
        kept[name] = {leaf: int(mask.sum()) for leaf, mask in masks.items()}
    assert kept["magnitude"]["b"] == 1
    assert min(kept["lamp"].values()) > 30
    # Down to one weight a layer, and none before another is.
    masks = allocate.global_topk(jprune.run_criterion(LAMP, variables, ()), Budget(density=0.00112))
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]
