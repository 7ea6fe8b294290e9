"""Recipes meet budgets of every kind, with a latency table that no clock has made."""

import pytest

from jprune.base import Budget
from jprune.train.net import Net
from tests.contracts import own, spellings
from tests.contracts.test_tables import stairs

KINDS = {
    "l1": ("latency", "energy", "bytes"),
    "channel_lasso": ("latency",),
    "bar": ("latency", "bytes"),
    "gmp": ("energy", "bytes"),
    "energy_aware": ("energy",),
}
"""Methods by one threshold, layer by layer, that a budget trains, and of weights (two)."""
ASKED = 0.6


@pytest.mark.parametrize(
    ("method", "kind"), [(method, kind) for method, kinds in KINDS.items() for kind in kinds]
)
def test_a_recipe_meets_a_budget_of_any_kind(method, kind):
    # One net for all: what is compiled for it is compiled once.
    task = spellings.of("nnx").task._replace(latency=stairs)
    budget = Budget(**{kind: ASKED})
    recipe = own.recipe_of(method, budget, dense=False, **own.OPTIONS.get(method, {}))
    pruned = own.run(recipe, task)
    cost = Net(task).cost
    kept = float(getattr(cost(pruned.masks), kind)) / float(getattr(cost({}), kind))
    assert kept <= ASKED + 1e-6
    assert kept > 0.3  # a net of few units has wide steps
