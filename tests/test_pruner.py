"""`Pruner`: the same as the functions behind it, and nothing is changed in place."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import Budget, allocate, criteria, errors, pruner
from tests.nets import conv


def fn(v, x):
    x = jax.nn.relu(conv(x, v["params"]["a"]))
    return jax.nn.relu(conv(x, v["params"]["b"])).mean((1, 2)) @ v["params"]["out"]


@pytest.fixture(scope="module")
def variables():
    rng, shapes = np.random.default_rng(0), {"a": (3, 3, 2, 8), "b": (3, 3, 8, 12), "out": (12, 3)}
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"params": {name: draw(shape) for name, shape in shapes.items()}}


X = jnp.ones((2, 6, 6, 2))
HALF = Budget(macs=0.5)


def test_a_step_is_what_the_functions_give(variables):
    done = jprune.Pruner(fn, variables, X).step(HALF, allocator=allocate.global_topk)
    groups = jprune.trace(fn, variables, X)
    scores = jprune.to_units(groups, jprune.run_criterion(criteria.magnitude(2), variables, ()))
    model = jprune.cost_model(fn, variables, X, groups=groups)
    masks = allocate.global_topk(scores, HALF, model)
    assert jax.tree.all(jax.tree.map(np.array_equal, done.masks, masks))
    small_fn, small = done.slim()
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(
        jnp.shape, jprune.slim_params(groups, masks, variables)
    )
    np.testing.assert_allclose(small_fn(small, X), fn(done.variables, X), rtol=1e-5)


def test_nothing_is_changed_in_place(variables):
    begun = jprune.Pruner(fn, variables, X)
    begun.step(HALF)
    assert all(mask.all() for mask in begun.masks.values())
    assert begun.variables is variables
    assert begun.slim()[1]["params"]["b"].shape == (3, 3, 8, 12)


def test_what_is_gone_stays_gone_in_rounds_and_in_training(variables):
    first = jprune.Pruner(fn, variables, X, freeze=["params/b"]).step(Budget(macs=0.7))
    tx = optax.chain(optax.sgd(0.1), first.hold())
    ones = jax.tree.map(jnp.ones_like, variables)
    updates, _ = tx.update(ones, tx.init(first.variables), first.variables)
    moved = optax.apply_updates(first.variables, updates)
    gone = ~first.masks["params/a"]
    assert 0 < gone.sum() < 8
    assert not np.asarray(moved["params"]["a"])[..., gone].any()
    second = first.trained(moved).step(Budget(macs=0.4))
    assert not second.masks["params/a"][gone].any()
    assert second.masks["params/a"].sum() < first.masks["params/a"].sum()
    assert second.groups.sizes == {"params/a": 8}
    # Of one collection, as loops have it that train it alone.
    tx = first.hold("params")
    zeros, _ = tx.update(ones["params"], tx.init(variables["params"]), variables["params"])
    assert not np.asarray(variables["params"]["a"] + zeros["a"])[..., gone].any()


def test_statistics_and_reports(variables):
    training = lambda v, x: (fn(v, x), {"mean": x.mean()})
    done = jprune.Pruner(training, variables, X, has_aux=True).step(HALF)
    head, *groups = done.report().splitlines()
    assert head.startswith("MACs ")
    assert groups == [f"{name}: {mask.sum()} of {mask.size}" for name, mask in done.masks.items()]
    with pytest.raises(errors.BudgetError, match="Ask for"):
        done.step(Budget(macs=1e-6))


def test_it_is_thin_and_public():
    text = Path(pruner.__file__).read_text()
    assert len(text.splitlines()) <= 120
    assert "import _" not in text
    assert "._" not in text.replace("self._with", "")
