"""Training under a weight decay that depends on what units weigh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jprune import errors
from jprune.base import Learner, Pruned, Records, Schedule, Task
from jprune.blocks import coupled
from jprune.sparsify.relative_decay import relative_decay
from jprune.stages.train import Train, trained
from jprune.train.net import Net

WAY = 1.2
"""Sum over the authors' steps of lambda and the rate: the decay of their largest units, in nats."""

SAFE = 0.5
"""The most that a step takes off a weight: more would throw it past 0."""


@dataclasses.dataclass(frozen=True)
class Fade:
    """A `Wrap` with a decay that is the stronger, the less a unit weighs.

    Attributes:
        strength: see `jprune.sparsify.relative_decay`; None: see `settled`.
        alpha: see there.
        growing: whether factors grow instead.
        growth: by how much; None: by twice the strength over the whole training.
        every: steps from one growth to the next; 0: an epoch.
        shifts: whether biases and shifts decay too.
    """

    strength: float | None = 5e-4
    alpha: float = 4.0
    growing: bool = False
    growth: float | None = None
    every: int = 0
    shifts: bool = False

    def settled(self, train: Train, task: Task) -> "Fade":
        """With numbers for None.

        The strength is such that the units that weigh most lose as much as in the authors' 100
        epochs, e^-1.2, whatever the rates and steps are; but no step takes more than a half off a
        weight.
        """
        rates = train.rates(task)
        every = self.every or max(1, task.data.sizes["train"] // train.batch_size)
        strength = self.strength
        if strength is None:
            largest = 3.0 if self.growing else 2.0**self.alpha
            strength = float(min(WAY / rates.sum(), SAFE / (largest * rates.max())))
        growth = self.growth
        if growth is None:
            # From lambda to 3 lambda, as 100 times 1e-5 over 5e-4
            growth = 2 * strength / -(-len(rates) // every)
        return dataclasses.replace(self, strength=strength, growth=growth, every=every)

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        if self.strength is None:
            raise errors.ArgumentError(
                "Fade without a strength: write one, or take the stage FadeUnits, which finds it."
            )
        decay = relative_decay(
            coupled(net.groups, shifts=self.shifts), self.strength, alpha=self.alpha,
            growth=self.growth if self.growing else None, every=max(1, self.every),
        )  # fmt: skip
        # In the gradient: momentum gathers it like any other decay.
        return lambda inner: optax.chain(decay, inner)


@dataclasses.dataclass(frozen=True)
class FadeUnits:
    """Training in which small units fade; nothing becomes 0.

    Attributes:
        train: how long, and how.
        fade: how units fade.
        name: of the records.
    """

    train: Train
    fade: Fade
    name: str = "fade"

    def __post_init__(self):
        fade = self.fade
        numbers = (fade.strength or 0, fade.alpha, fade.growth or 0, fade.every)
        if not all(number >= 0 for number in numbers):
            raise errors.ArgumentError(
                f"reg={fade.strength}, alpha={fade.alpha}, growth={fade.growth}, "
                f"every={fade.every}; each is 0 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses an average of weights that fade."""
        self.train.takes("decay of units", "optimizer", "warmup", "clip", "accumulate")

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps."""
        self.check(task)
        wrap = self.fade.settled(self.train, task)
        stage = dataclasses.replace(self.train, wrap=wrap, name=self.name)
        return stage.learner(pruned, task, key)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)
