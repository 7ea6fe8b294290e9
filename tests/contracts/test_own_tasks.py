"""Every method on tasks of a user's own: it trains, or it refuses before the first batch.

A task is what `base.Task` says: a function of arrays, whose kernels have any layout, whose outputs
are whatever its loss takes, and whose metrics have any name.
"""

import pytest

from jprune import recipes
from jprune.base import Budget
from tests.contracts import own


def other_names():
    """Classification whose metrics are named otherwise."""
    task = own.channels_first(False)
    renamed = {"loss": "surprise", "accuracy": "hits"}
    metrics = lambda out, batch: {renamed[n]: v for n, v in task.metrics(out, batch).items()}
    return task._replace(metrics=metrics)


TASKS = {
    "channels_last": lambda: own.channels_first(False),
    "channels_first": lambda: own.channels_first(True),
    "per_pixel": own.per_pixel,
    "other_names": other_names,
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", recipes.METHODS)
def test_a_method_trains_or_refuses_before_the_first_batch(method, task):
    budget = own.OF_ITS_OWN.get(method, Budget(macs=0.7))
    recipe = own.recipe_of(method, budget, **own.OPTIONS.get(method, {}))
    said = own.trouble(recipe, TASKS[task]())
    assert not said, said
