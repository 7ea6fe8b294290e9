"""A learner that ends before its steps: in memory, in a run, and in a run that goes on."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from jprune.base import Learner, Pruned
from jprune.learners import to_the_end
from jprune.runs import loop
from jprune.runs.loop import Hooks, Restored
from jprune.runs.progress import Silent

KEY = jax.random.key(0)


def counting(end: int | None) -> Learner:
    """Counts its steps, in epochs of 4 of at most 20; over once there are `end`."""
    count = lambda state: Pruned({"count": state["count"]}, None)
    return Learner(
        steps=20,
        epoch=4,
        init=lambda: {"count": jnp.zeros(())},
        batches=lambda start: itertools.repeat({}),
        step=lambda state, batch: ({"count": state["count"] + 1}, {"loss": jnp.ones(())}),
        variables=lambda state: {"count": state["count"]},
        finish=count,
        over=None if end is None else lambda state: state["count"] >= end,
    )


@pytest.mark.parametrize(("end", "taken"), [(None, 20), (0, 0), (1, 4), (8, 8), (9, 12), (99, 20)])
def test_it_ends_with_the_epoch_in_which_it_is_over(end, taken, tmp_path):
    done, _ = to_the_end(counting(end))
    assert float(done.variables["count"]) == taken
    hooks = Hooks(lambda *line: None, lambda variables: {}, Silent())
    done, _ = loop.fit(counting(end), Restored(0, None, 0.0), tmp_path, KEY, hooks)
    assert float(done.variables["count"]) == taken


def test_a_run_that_was_stopped_when_it_was_over_takes_no_step_more(tmp_path):
    hooks = Hooks(lambda *line: None, lambda variables: {}, Silent())
    for step, taken in ((8, 8), (6, 8)):
        begun = Restored(step, {"count": jnp.asarray(float(step))}, 0.0)
        done, _ = loop.fit(counting(7), begun, tmp_path, KEY, hooks)
        assert float(done.variables["count"]) == taken
