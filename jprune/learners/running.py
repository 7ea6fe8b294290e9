"""Runs a learner to its end, in memory."""

import itertools

from jprune.base import Learner, Pruned


def to_the_end(learner: Learner) -> tuple[Pruned, dict[str, float]]:
    """Takes all steps.

    Returns:
        The net, and the metrics of the last step.
    """
    state, metrics = learner.init(), {}
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, metrics = learner.step(state, batch)
    # Metrics are read once, at the end: reading them each step would wait for the device.
    return learner.finish(state), {name: float(value) for name, value in metrics.items()}
