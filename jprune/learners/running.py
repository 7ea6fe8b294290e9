"""A learner run to its end, in memory."""

import itertools

from jprune.base import Learner, Pruned


def to_the_end(learner: Learner) -> tuple[Pruned, dict[str, float]]:
    """Takes all steps.

    Returns:
        The net, and the metrics of the last step.
    """
    state, seen = learner.init(), {}
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, seen = learner.step(state, batch)
    return learner.finish(state), {name: float(value) for name, value in seen.items()}
