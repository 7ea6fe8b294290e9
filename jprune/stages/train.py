"""Plain training as a stage."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Learner, Pruned, Records, Task, Wrap
from jprune.learners import to_the_end
from jprune.stages.frame import record, saved
from jprune.train.net import Net
from jprune.train.optimizers import (
    LEARNING_RATES,
    SETTINGS,
    Around,
    Chosen,
    Sgd,
    function_of,
)
from jprune.train.step import plain
from jprune.train.task import at_resolution, distilled


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains the weights by gradient steps, SGD's by default; masked weights stay exactly 0.

    With `ema`, what is evaluated, handed on, pruned later and exported is the running average of
    parameters and statistics (`jprune.train.step.averaged`), on which masks hold as well; it is a
    part of the state, so a resumed run goes on with it. Each training begins an average of its own.

    Attributes:
        epochs: passes over the training split; a fraction is one of an epoch's steps.
        learning_rate: the largest one of the schedule.
        batch_size: examples in a step.
        schedule: of the learning rate: "one_cycle", "cosine", "constant" or "step".
        momentum: of "sgd", Nesterov's unless `settings` say nesterov=False.
        weight_decay: on kernels only: added to the gradient by "sgd" and "adam", beside the step by
            "adamw", "lion" and "lamb"; an optimizer of the user's own has its own.
        max_steps: stop after so many steps; the schedule is that of the shortened training.
        begin: the step of the schedule at which this training begins.
        stop: the step of the schedule at which it stops; None: at its end.
        wrap: how a method takes part, as `jprune.base.Wrap` says; for a transformation `tx` behind
            the step: `lambda net, rate, key: lambda inner: optax.chain(inner, tx)`.
        distill: weight in the loss of the outputs of the net that was saved as "dense"; 0: none.
        temperature: of the distillation.
        name: of the records.
        optimizer: "sgd", "adam", "adamw", "lion" or "lamb"; or a function that is called as
            `make(learning_rate=schedule, **settings)` and returns an optax transformation, itself
            or as "module:callable".
        settings: of the optimizer, {name: value}: `jprune.train.optimizers.SETTINGS`, but for the
            momentum; or what the user's function takes.
        warmup: fraction of the steps in which the learning rate rises in a line, before the
            schedule begins.
        clip: the largest norm of the whole gradient, masked weights left out; None: any.
        ema: decay of the running average, in (0, 1); None: none.
        accumulate: the batch goes through the net in so many parts, whose gradients are added up.
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
    optimizer: str | Callable[..., Any] = "sgd"
    settings: Any = ()
    warmup: float = 0.0
    clip: float | None = None
    ema: float | None = None
    accumulate: int = 1

    def __post_init__(self):
        self._check_optimizer()
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

    def _check_optimizer(self) -> None:
        """Refuses settings of the optimizer that cannot be, and those that would do nothing."""
        settings = tuple(sorted(dict(self.settings).items()))
        # Pairs, since stages can be hashed.
        object.__setattr__(self, "settings", settings)
        own = self.optimizer not in SETTINGS
        if own:
            function_of(self.optimizer)
        taken = {} if own else {**SETTINGS[str(self.optimizer)]}
        taken.pop("momentum", None)
        for name, _ in settings:
            if not own and name not in taken:
                raise errors.ArgumentError(
                    f"{self.optimizer} has no setting {name!r}; {errors.nearest(name, taken)}"
                    f"it has {', '.join(taken)}, beside learning rate and weight decay."
                )
        # Defaults of SGD that others do not look at are 0 for them; anything else was written.
        idle = (["momentum"] if self.optimizer != "sgd" else []) + (["weight_decay"] if own else [])
        for name in idle:
            if getattr(self, name) not in (0.0, getattr(type(self), name)):
                raise errors.ArgumentError(
                    f"Train(optimizer={self.optimizer!r}, {name}={getattr(self, name)}): this "
                    f"optimizer does not look at {name}. Leave it out, or write it in settings "
                    "where a function of your own takes it."
                )
            object.__setattr__(self, name, 0.0)
        shaped = self.schedule != "one_cycle"
        tests = {
            "warmup": (
                self.warmup == 0 or (shaped and 0 < self.warmup < 1),
                "0, or a fraction of the steps below 1, with schedule='cosine', 'constant' or "
                "'step': one_cycle warms up by itself",
            ),
            "clip": (self.clip is None or self.clip > 0, "a norm above 0, or None"),
            "ema": (
                self.ema is None or 0 < self.ema < 1,
                "a decay in (0, 1) such as 0.999, or None",
            ),
            "accumulate": (
                self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
                f"a number that divides batch_size={self.batch_size}",
            ),
        }
        for name, (fits, wanted) in tests.items():
            if not fits:
                raise errors.ArgumentError(f"Train({name}={getattr(self, name)}); write {wanted}.")
        if self.ema is not None and self.wrap is not None:
            raise errors.ArgumentError(
                "Train(ema=..., wrap=...): the method moves weights to 0 while it trains, and an "
                "average of them is not 0. Leave out ema."
            )

    def takes(self, who: str, *options: str) -> None:
        """Refuses what a stage that trains otherwise cannot do; for its `check`.

        Args:
            who: the method, for the message.
            options: those that it takes, of "optimizer", "warmup", "clip", "ema" and "accumulate".

        Raises:
            ArgumentError: another one of these is set.
        """
        defaults = {"optimizer": "sgd", "warmup": 0, "clip": None, "ema": None, "accumulate": 1}
        for name, default in defaults.items():
            if name not in options and getattr(self, name) != default:
                value = getattr(self, name)
                needs = "it is derived for SGD" if name == "optimizer" else "it has no place for it"
                raise errors.ArgumentError(
                    f"{who} cannot train with {name}={value!r}: {needs}. Leave it out, or take it "
                    "for the training of the dense net alone."
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

    def check(self, task: Task) -> None:
        """Refuses distillation of outputs that are no logits.

        Raises:
            ArgumentError: what `distilled` raises.
        """
        if self.distill:
            distilled(task, Net(task).shapes, self.distill, self.temperature)

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
        """The optimizer of this training, for methods that are derived for SGD.

        Raises:
            ArgumentError: another optimizer; what `optimizer_for` raises.
        """
        optimizer = self.optimizer_for(task)
        if not isinstance(optimizer, Sgd):
            raise errors.ArgumentError(
                f"this method is derived for SGD, and came with optimizer={self.optimizer!r}."
            )
        return optimizer

    def optimizer_for(self, task: Task) -> Sgd | Chosen:
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
        # Some, and not all, even where `max_steps` leaves few.
        warmup = min(max(1, round(self.warmup * steps)), steps - 1) if self.warmup else 0
        around = Around(warmup, self.clip, self.accumulate, self.ema)
        if self.optimizer == "sgd":
            return Sgd(
                self.learning_rate, self.schedule, steps, self.momentum, self.weight_decay,
                self.begin, self.stop, around, **dict(self.settings),
            )  # fmt: skip
        return Chosen(
            self.optimizer, self.learning_rate, self.schedule, steps, self.weight_decay,
            self.settings, self.begin, self.stop, around,
        )  # fmt: skip

    def rates(self, task: Task) -> np.ndarray:
        """[steps]: what a `Wrap` gets as its rate, in every step of this training."""
        optimizer = self.optimizer_for(task)
        # One call: a schedule is made of many small operations.
        rates = jax.jit(jax.vmap(optimizer.stride))(jnp.arange(optimizer.taken))
        return np.asarray(rates, float)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: distillation, and no net was saved as "dense"; `begin` or `stop` is
                not in the schedule.
        """
        # The teacher sees what the net sees: images of the net's resolution.
        task = at_resolution(self.taught(task, pruned), pruned)
        masks = Net(task).weight_masks(pruned.masks)
        optimizer = self.optimizer_for(task)
        return plain(task, pruned, masks, optimizer, key, self.batch_size, self.wrap)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


def trained(learner: Learner, name: str) -> tuple[Pruned, Records]:
    """A learner run to its end, in memory; one record of the last step's metrics."""
    done, metrics = to_the_end(learner)
    return done, [record(name, metrics, learner.steps)]
