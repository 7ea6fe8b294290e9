"""Short training of nets that are compared, each once."""

import dataclasses

import jax

from jprune.base import Learner, Pruned, Records, Task
from jprune.stages.dimensions import is_among, where
from jprune.stages.train import Train, trained


@dataclasses.dataclass(frozen=True)
class Probe:
    """Training of a net that is not among the points yet; the others are left as they are.

    Attributes:
        train: how long, and how; the same for all that are compared.
        name: of the records.
    """

    train: Train
    name: str = "probe"

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; of none where a net of these dimensions was observed already."""
        learner = self.train.learner(pruned, task, key)
        twice = pruned.extra is not None and is_among(pruned.extra, where(task, pruned))
        return learner._replace(steps=0) if twice else learner

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)
