"""A penalty that had no time to act says so, and one that acted does not."""

import warnings

import jax
import numpy as np
import pytest

from jprune import recipes
from jprune.base import Budget
from jprune.stages import Train
from tests.contracts import own


def learnable():
    """Dense layers that learn their labels in some steps."""
    params = own.kernels({"a": (8, 20), "b": (20, 24), "c": (24, 3)}, bias=True)

    def fn(v, x):
        for name in "abc":
            x = x @ v["params"][name]["kernel"] + v["params"][name]["bias"]
            x = x if name == "c" else jax.nn.relu(x)
        return x

    rng = np.random.default_rng(0)
    images = rng.normal(size=(128, 8)).astype(np.float32)
    labels = (np.tanh(images) @ rng.normal(size=(8, 3))).argmax(1).astype(np.int32)
    return own.task_of(fn, params, (8,), images=images, labels=labels)


@pytest.mark.parametrize(
    ("method", "option", "weak", "strong"),
    [("ssl", "strength", None, 0.3), ("struct_admm", "rho", None, 1.0)],
)
def test_defaults_without_time_to_act_are_said(method, option, weak, strong):
    for value, acts in ((weak, False), (strong, True)):
        options = {} if value is None else {option: value}
        finetune = Train(60, 0.01, 32, name="finetune")
        recipe = recipes.find(method)(Budget(density=0.5), None, finetune, **options)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            own.up_to(recipe, learnable(), "prune")
        found = any(option in str(warning.message) for warning in said)
        assert found != acts, [str(warning.message) for warning in said]
