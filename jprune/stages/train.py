"""Plain training as a stage."""

import dataclasses

import jax

from jprune import errors
from jprune.base import Learner, Pruned, Records, Task, Wrap
from jprune.learners import to_the_end
from jprune.stages.frame import record, saved
from jprune.train.net import Net
from jprune.train.optimizers import LEARNING_RATES, Sgd
from jprune.train.step import plain
from jprune.train.task import at_resolution, distilled


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains the weights by SGD; masked weights stay exactly 0.

    Attributes:
        epochs: passes over the training split; a fraction is one of an epoch's steps.
        learning_rate: the largest one of the schedule.
        batch_size: examples in a step.
        schedule: of the learning rate: "one_cycle", "cosine" or "constant".
        momentum: Nesterov's.
        weight_decay: on kernels only.
        max_steps: stop after so many steps; the schedule is that of the shortened training.
        begin: the step of the schedule at which this training begins.
        stop: the step of the schedule at which it stops; None: at its end.
        wrap: how a method takes part, as `jprune.base.Wrap` says; for a transformation `tx` behind
            the step: `lambda net, rate, key: lambda inner: optax.chain(inner, tx)`.
        distill: weight in the loss of the outputs of the net that was saved as "dense"; 0: none.
        temperature: of the distillation.
        name: of the records.
    """

    epochs: float
    learning_rate: float
    batch_size: int = 128
    schedule: str = "one_cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_steps: int | None = None
    begin: int = 0
    stop: int | None = None
    wrap: Wrap | None = None
    distill: float = 0.0
    temperature: float = 4.0
    name: str = "train"

    def __post_init__(self):
        if self.schedule not in LEARNING_RATES:
            raise errors.ArgumentError(
                f"Train(schedule={self.schedule!r}); write one of {', '.join(LEARNING_RATES)}."
            )
        if not (self.epochs > 0 and self.learning_rate > 0 and self.batch_size >= 1):
            raise errors.ArgumentError(
                f"Train(epochs={self.epochs}, learning_rate={self.learning_rate}, "
                f"batch_size={self.batch_size}); all three are above 0."
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise errors.ArgumentError(f"Train(max_steps={self.max_steps}); it is at least 1.")
        try:
            # Steps are compiled once per settings, so settings
            # must be hashable: refused here with a remedy.
            hash(self.wrap)
        except TypeError:
            raise errors.ArgumentError(
                f"Train(wrap={self.wrap!r}) cannot be hashed: equal wraps share what was compiled. "
                "Write a function, or a frozen dataclass of settings with __call__(net, rate, key)."
            ) from None
        if not 0 <= self.distill <= 1:
            raise errors.ArgumentError(
                f"Train(distill={self.distill}) is outside [0, 1]: it is the weight of the dense "
                "net's outputs in the loss. Write 0 to learn from the labels alone."
            )

    def steps(self, examples: int) -> int:
        """Steps that the epochs are, for so many training examples.

        Raises:
            ArgumentError: a batch is larger than the training split.
        """
        if self.batch_size > examples:
            raise errors.ArgumentError(
                f"batch_size={self.batch_size} for the {examples} training examples; write a "
                f"number from 1 to {examples}."
            )
        # Whole batches: the last, partial one of an epoch is dropped.
        steps = max(1, round(self.epochs * (examples // self.batch_size)))
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def taught(self, task: Task, pruned: Pruned) -> Task:
        """The task with the loss that `distill` asks for; stages that train otherwise take it too.

        Raises:
            ArgumentError: distillation, and no net was saved as "dense".
        """
        if not self.distill:
            return task
        teacher = saved(pruned, "dense", f"Train(distill={self.distill})")
        return distilled(task, teacher, self.distill, self.temperature)

    def sgd(self, task: Task) -> Sgd:
        """The optimizer of this training; stages that train otherwise take it too.

        Raises:
            ArgumentError: a batch is larger than the training split, or `begin` or `stop` is not
                in the schedule.
        """
        steps = self.steps(task.data.sizes["train"])
        if not 0 <= self.begin < (steps if self.stop is None else self.stop) <= steps:
            raise errors.ArgumentError(
                f"Train(begin={self.begin}, stop={self.stop}) of a schedule of {steps} steps; "
                f"write 0 <= begin < stop <= {steps}."
            )
        return Sgd(
            self.learning_rate, self.schedule, steps, self.momentum, self.weight_decay,
            self.begin, self.stop,
        )  # fmt: skip

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: distillation, and no net was saved as "dense"; `begin` or `stop` is
                not in the schedule.
        """
        # The teacher sees what the net sees: images of the net's resolution.
        task = at_resolution(self.taught(task, pruned), pruned)
        masks = Net(task).weight_masks(pruned.masks)
        return plain(task, pruned, masks, self.sgd(task), key, self.batch_size, self.wrap)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


def trained(learner: Learner, name: str) -> tuple[Pruned, Records]:
    """A learner run to its end, in memory; one record of the last step's metrics."""
    done, metrics = to_the_end(learner)
    return done, [record(name, metrics, learner.steps)]
