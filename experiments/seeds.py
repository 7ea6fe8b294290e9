"""The dense nets of several seeds, trained together: one vmapped step does a step of each.

It pays on accelerators, where a small net leaves most of the device idle. On two CPU cores two
processes do better (`benchmarks/runner.py` has both), and convolutions do worse: under `vmap` over
their kernels they become grouped ones.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Pruned, PyTree, Records, Task
from jprune.recipes import Train, evaluate
from jprune.runs.loop import EVERY
from jprune.runs.progress import Progress
from jprune.stages.frame import record


class Trained(NamedTuple):
    """The net of one seed."""

    pruned: Pruned
    records: Records


def train_together(
    stage: Train,
    starts: Sequence[Pruned],
    task: Task,
    keys: Sequence[jax.Array],
    progress: Progress,
) -> tuple[list[Trained], float]:
    """Trains nets that differ in their initial values and in the order of the data.

    Args:
        stage: the same training for all.
        starts: a net a seed, without masks.
        task: of all.
        keys: of the stage, one a seed.
        progress: is shown what happens.

    Returns:
        A net and its records a seed, as each would have them alone but for rounding; the seconds
        that all of it took.

    Raises:
        DivergenceError: a loss is not finite.
    """
    began = time.perf_counter()
    learners = [stage.learner(start, task, key) for start, key in zip(starts, keys)]
    steps = vmapped(stage, starts[0], task)
    state = stacked([learner.init() for learner in learners], jnp.stack)
    key = jnp.stack(list(keys))
    feeds = zip(*(learner.batches(0) for learner in learners))
    records: list[Records] = [[] for _ in learners]
    window: list[dict[str, jax.Array]] = []
    first = learners[0]
    progress.begin(f"{stage.name} of {len(learners)} seeds", 1, 1, first.steps, 0)
    for number, batches in enumerate(itertools.islice(feeds, first.steps), start=1):
        state, seen = steps(state, stacked(batches, np.stack), key)
        window.append(seen)
        over = number % first.epoch == 0 or number == first.steps
        if not over and number % EVERY:
            continue
        seen_since = means(window, number)
        window = []
        progress.advance(number, {})
        for place, (learner, found) in enumerate(zip(learners, records)):
            metrics = {name: float(values[place]) for name, values in seen_since.items()}
            if over:
                variables = learner.variables(_at(state, place))
                after = evaluate(task, variables, "validation")
                metrics |= {f"validation_{name}": value for name, value in after.items()}
            found.append(record(stage.name, metrics, number))
    ends = [learner.finish(_at(state, place)) for place, learner in enumerate(learners)]
    progress.end()
    return [Trained(*pair) for pair in zip(ends, records)], time.perf_counter() - began


def vmapped(stage: Train, start: Pruned, task: Task) -> Callable[..., Any]:
    """The step of several seeds: `step(states, batches, keys) -> states, metrics`, stacked all."""

    # A learner made of a traced key steps like any other: nothing of it is run but its step.
    def step(state: PyTree, batch: Batch, key: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
        return stage.learner(start, task, key).step(state, batch)

    return jax.jit(jax.vmap(step), donate_argnums=0)


def stacked(trees: Sequence[PyTree], stack: Callable[..., Any]) -> PyTree:
    """Trees with a new first axis, over all of them."""
    return jax.tree.map(lambda *leaves: stack(leaves), *trees)


def _at(tree: PyTree, place: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[place], tree)


def means(window: list[dict[str, jax.Array]], step: int) -> dict[str, np.ndarray]:
    """Means over the latest steps, the last of them being `step`: {metric: [seeds]}.

    Raises:
        DivergenceError: a loss is not finite.
    """
    values = jax.device_get(window)
    found = {name: np.mean([seen[name] for seen in values], axis=0) for name in values[0]}
    if not np.isfinite(found["loss"]).all():
        raise errors.DivergenceError(
            f"training of seeds diverged before step {step}: the mean losses were "
            f"{found['loss'].tolist()}. Write a smaller learning_rate."
        )
    return found
