"""Training under masks of single weights that move: as many weights grow as are dropped."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jprune import errors
from jprune.base import Budget, Learner, Masks, Pruned, Records, Schedule, Task, to_the_end
from jprune.graph.shrink.concrete import copied
from jprune.masks import HoldState, apply_masks, as_masks, masks_of
from jprune.sparsify.drop_grow import drop_and_grow
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.train import Train
from jprune.train.net import Net
from jprune.train.step import TrainState, plain

EXCHANGES = {"gradient": 50, "random": 10}
"""{how weights grow: into how many parts exchanges divide a training at least}."""
AFTER = 100
"""Steps from one exchange to the next, by the gradient, in trainings that are long enough."""


@dataclasses.dataclass(frozen=True)
class Moved:
    """How moving masks take part in training: `drop_and_grow` around the optimizer, as a `Wrap`.

    The masks stand in its state; nothing is masked at first.

    Attributes:
        grow: see `drop_and_grow`.
        every: see `drop_and_grow`.
        stop: see `drop_and_grow`.
        begin: see `drop_and_grow`.
        fraction: see `drop_and_grow`.
        anneal: see `drop_and_grow`.
    """

    grow: str
    every: int
    stop: int
    begin: int
    fraction: float
    anneal: str

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate
        nothing = jax.tree.map(lambda leaf: None, net.task.split(net.shapes)[0])
        return lambda inner: self.around(inner, nothing, key)

    def around(
        self, inner: optax.GradientTransformation, masks: Masks, key: jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation with these settings."""
        return drop_and_grow(
            inner, masks, key, every=self.every, stop=self.stop, begin=self.begin,
            fraction=self.fraction, grow=self.grow, anneal=self.anneal,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DropGrow:
    """Trains a masked net; now and then the smallest weights are dropped, and others grow.

    Every layer keeps the number of weights that its mask has at the beginning.

    Attributes:
        train: how long, and how.
        grow: "gradient" (the largest |g|) or "random".
        every: steps from one exchange to the next. None: by the gradient 100, or a fiftieth of the
            steps if that is less; at random an epoch, or a tenth of the steps if that is less.
        fraction: of the weights of a layer, that go in the first exchange.
        anneal: of the fraction until `stop`: "cosine" or "constant".
        stop: fraction of the steps after which the masks are fixed.
        name: of the records.
    """

    train: Train
    grow: str = "gradient"
    every: int | None = None
    fraction: float = 0.3
    anneal: str = "cosine"
    stop: float = 0.75
    name: str = "sparse"

    def __post_init__(self):
        if not 0 < self.stop <= 1:
            raise errors.ArgumentError(
                f"stop={self.stop} is outside (0, 1]: it is the fraction of the steps after which "
                "the masks are fixed."
            )
        every = 1 if self.every is None else self.every
        how = Moved(self.grow, every, 1, 0, self.fraction, self.anneal)
        how.around(optax.identity(), {}, jax.random.key(0))  # refuses words and numbers

    def check(self, task: Task) -> None:
        """Refuses an average of weights whose masks move, and a net that has no kernels."""
        self.train.takes(
            "training with masks that move", "optimizer", "warmup", "clip", "accumulate"
        )
        check_prunable(task, Budget(density=1.0), "weight")

    def moved(self, steps: int, epoch: int) -> "Moved":
        """How it takes part in a training of so many steps."""
        least = max(1, steps // EXCHANGES[self.grow])
        every = min(AFTER if self.grow == "gradient" else epoch, least)
        every = every if self.every is None else self.every
        # By the gradient from the first step on, where masks are random; at random after an epoch.
        begin = 0 if self.grow == "gradient" else every
        stop = max(1, round(self.stop * steps))
        return Moved(self.grow, every, stop, begin, self.fraction, self.anneal)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: the net has no masks, or what `Train.learner` raises.
        """
        masks = Net(task).weight_masks(pruned.masks)
        if masks is None:
            raise errors.ArgumentError(
                "DropGrow moves masks, and the net has none. Put a stage that masks weights before "
                "it, such as RandomMasks(Budget(density=0.1))."
            )
        task = self.train.taught(task, pruned)
        optimizer = self.train.optimizer_for(task)
        epoch = task.data.sizes["train"] // self.train.batch_size
        moved = self.moved(optimizer.taken, epoch)
        learner = plain(task, pruned, None, optimizer, key, self.train.batch_size, moved)

        def init() -> TrainState:
            state = learner.init()
            # Masks are in the state, which is data: nets with other masks share the compiled step.
            of_params = task.split(masks)[0]
            opt_state = state.opt_state._replace(hold=HoldState(as_masks(of_params, state.params)))
            params = apply_masks(state.params, of_params)
            return copied(state._replace(params=params, opt_state=opt_state))

        def finish(state: TrainState) -> Pruned:
            none = jax.tree.map(lambda leaf: None, state.rest)
            after = task.merge(masks_of(state.opt_state), none)
            return pruned._replace(variables=learner.variables(state), masks=after)

        return learner._replace(init=init, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]
