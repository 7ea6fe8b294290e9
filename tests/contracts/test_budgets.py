"""Recipes meet budgets of every kind, with a latency table that no clock has made."""

import pytest

from jprune.base import Budget
from jprune.train.net import Net
from tests.contracts import own, spellings
from tests.contracts.test_tables import stairs

KINDS = {
    "l1": {"latency": 0.6, "energy": 0.6, "bytes": 0.6},
    "channel_lasso": {"latency": 0.6},
    "bar": {"latency": 0.6},
    "gmp": {"energy": 0.6, "bytes": 0.8},
    "energy_aware": {"energy": 0.6},
}
"""Methods by one threshold, layer by layer, that a budget trains, and of weights (two).

Without weights, two thirds of the bytes of this net are left: those of its activations.
"""


@pytest.mark.parametrize(
    ("method", "kind", "asked"),
    [(method, *budget) for method, budgets in KINDS.items() for budget in budgets.items()],
)
def test_a_recipe_meets_a_budget_of_any_kind(method, kind, asked):
    # One net for all: what is compiled for it is compiled once.
    task = spellings.of("nnx").task._replace(latency=stairs)
    budget = Budget(**{kind: asked})
    recipe = own.recipe_of(method, budget, dense=False, **own.OPTIONS.get(method, {}))
    pruned = own.run(recipe, task)
    cost = Net(task).cost
    kept = float(getattr(cost(pruned.masks), kind)) / float(getattr(cost({}), kind))
    assert kept <= asked + 1e-6
    assert kept > 0.3  # a net of few units has wide steps
