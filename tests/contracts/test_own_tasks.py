"""Every method on tasks of a user's own: it trains, or it refuses before the first batch.

A task is what `base.Task` says: a function of arrays, whose kernels have any layout, whose outputs
are whatever its loss takes, and whose metrics have any name.
"""

import pytest

from jprune import recipes
from jprune.base import Budget
from tests.contracts import own

LATE = "it refuses the net when its turn comes, after the dense training: no check asks before"
WRONG: dict[str, dict[str, str]] = {
    "channel_lasso": {"channels_first": LATE},
    "data_free": {"channels_first": LATE},
    "thinet": {"channels_first": LATE},
    "c_obs": {"channels_first": LATE},
    "kron_obd": {"channels_first": LATE},
    "kron_obs": {"channels_first": LATE},
    "subset_sum": dict.fromkeys(
        ("channels_last", "channels_first", "per_pixel", "other_names"), LATE
    ),
    "eigendamage": {
        "channels_first": LATE,
        **dict.fromkeys(
            ("channels_last", "per_pixel", "other_names"),
            "only train.task makes functions that take factored kernels",
        ),
    },
    "fbs": dict.fromkeys(
        ("channels_last", "per_pixel", "other_names"),
        "only train.task makes functions that take kernels with winners",
    ),
    "gal": {"per_pixel": "its discriminator takes outputs [batch, classes]: a TypeError"},
    "han": dict.fromkeys(("per_pixel", "other_names"), "it asks for a metric accuracy: a KeyError"),
    "three_d": {"per_pixel": "it asks for a metric accuracy: a KeyError"},
    "metapruning": dict.fromkeys(
        ("per_pixel", "other_names"), "it asks for a metric loss: a KeyError"
    ),
}
"""{method: {task: what is wrong}}."""
KNOWN = {
    f"test_a_method_trains_or_refuses_before_the_first_batch[{method}-{task}]": reason
    for method, tasks in WRONG.items()
    for task, reason in tasks.items()
}


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
