"""Training that scores weights by their movement, under masks that become sparser."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import allocate, errors, schedules
from jprune.base import (
    Budget,
    Learner,
    Masks,
    Pruned,
    Records,
    Schedule,
    Scores,
    Task,
    to_the_end,
)
from jprune.graph.shrink.concrete import copied
from jprune.masks import apply_masks, density, keep_best, masks_of
from jprune.sparsify.hidden import whole
from jprune.sparsify.movement import movement
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.train import Train
from jprune.train.net import Net
from jprune.train.step import TrainState, plain

FORMS = ("hard", "soft")
LEAST = 0.005
"""Fraction of a kernel that stays alive whatever its scores are, while they are learned softly."""


@dataclasses.dataclass(frozen=True)
class Moving:
    """How scores take part in training: `movement` around the optimizer, as a `Wrap`.

    Scores and masks stand in its state.

    Attributes:
        paths: of the kernels that may lose weights.
        form: "hard" or "soft".
        together: whether weights compete across kernels.
        goal: density that the ramp ends at, of "hard".
        begin: step at which the ramp begins.
        end: step at which it ends.
        rate: learning rate of the scores.
        threshold: that sigmoid(S) has to pass at the end, of "soft".
        strength: of the penalty on sigmoid(S) at the end, of "soft".
    """

    paths: tuple[str, ...]
    form: str
    together: bool
    goal: float
    begin: int
    end: int
    rate: float
    threshold: float
    strength: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        ones = {path: np.ones(net.groups.leaves[path].shape, bool) for path in self.paths}
        prunable = net.task.split(net.tree(ones))[0]
        choose = self.hard if self.form == "hard" else self.soft
        strength = (lambda step: self.strength * self.risen(step)) if self.form == "soft" else 0.0
        return lambda inner: movement(
            inner, optax.adam(self.rate), choose, prunable, strength=strength
        )

    def risen(self, step: Any) -> Any:
        """From 0 to 1, fast at first: 1 - (1 - t)^3."""
        time = jnp.clip((step - self.begin) / (self.end - self.begin), 0.0, 1.0)
        return 1 - (1 - time) ** 3

    def hard(self, scores: Scores, step: Any) -> Masks:
        """The best scores, at a density that falls."""
        ramp = schedules.cubic(self.goal, self.begin, self.end)
        allocator = allocate.global_topk if self.together else allocate.uniform
        return allocator(scores, Budget(density=ramp(jnp.asarray(step))), None)

    def soft(self, scores: Scores, step: Any) -> Masks:
        """Scores above a threshold that rises, and the best few of every kernel."""
        bound = self.threshold * self.risen(step)

        def one(score: Any) -> Any:
            least = max(1, round(LEAST * score.size))
            # m = 1[sigmoid(S) > tau]
            return (jax.nn.sigmoid(score) > bound) | keep_best(jnp.asarray(score), least)

        return jax.tree.map(one, scores)


@dataclasses.dataclass(frozen=True)
class Movement:
    """Trains weights and their scores; at the end, the budget is met by the scores.

    Attributes:
        train: how long, and how.
        budget: of weights.
        form: "hard" (the best scores stay, at a density that falls) or "soft" (those above a
            threshold stay, and a penalty lowers all).
        scope: "layer" (the same fraction of every kernel) or "global".
        rate: learning rate of the scores, by Adam.
        warmup: fraction of the steps before the masks become sparse.
        threshold: that sigmoid(S) has to pass at the end, of "soft".
        strength: of the penalty on the mean of sigmoid(S) at the end, of "soft".
        name: of the records.
    """

    train: Train
    budget: Budget
    form: str = "hard"
    scope: str = "layer"
    rate: float = 1e-2
    warmup: float = 0.1
    threshold: float = 0.1
    strength: float = 400.0
    name: str = "movement"

    def __post_init__(self):
        if self.form not in FORMS or self.scope not in ("layer", "global"):
            raise errors.ArgumentError(
                f"form={self.form!r}, scope={self.scope!r}; form is {' or '.join(FORMS)}, scope is "
                "layer or global."
            )
        fits = self.rate > 0 and 0 <= self.warmup < 1
        if not (fits and 0 < self.threshold < 0.5 and self.strength >= 0):
            raise errors.ArgumentError(
                f"rate={self.rate}, warmup={self.warmup}, threshold={self.threshold}, "
                f"strength={self.strength}; rate is above 0, warmup in [0, 1), threshold in "
                "(0, 0.5), for scores begin at sigmoid(0), and strength 0 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses an average of weights whose masks move; raises what `check_prunable` does."""
        self.train.takes("movement", "optimizer", "warmup", "clip", "accumulate")
        check_prunable(task, self.budget, "weight")

    def moving(self, task: Task, prunable: Masks, steps: int) -> Moving:
        """How it takes part in a training of so many steps."""
        begin = min(round(self.warmup * steps), steps - 1)
        # The ramp ends at the density that meets the budget where all kernels keep the same.
        even = allocate.uniform(prunable, self.budget.of_weights(), Net(task).cost)
        goal = density(even)
        return Moving(
            tuple(Net(task).leaves(prunable)), self.form, self.scope == "global", goal, begin,
            steps, self.rate, self.threshold, self.strength,
        )  # fmt: skip

    def chosen(self, task: Task, scores: Scores) -> Masks:
        """Masks by scores that meet the budget."""
        allocator = allocate.global_topk if self.scope == "global" else allocate.uniform
        return allocator(scores, self.budget.of_weights(), Net(task).cost)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: weights that are NaN, masks from before, or what `Train.learner` raises.
        """
        if pruned.masks is not None:
            raise errors.ArgumentError(
                "Movement scores all weights of a dense net, and this one has masks. Leave out the "
                "stage that masks."
            )
        net, prunable = Net(task), Net(task).prunable(None, self.budget)
        net.refuse_nan(pruned.variables, net.kernels(prunable))
        taught, optimizer = self.train.taught(task, pruned), self.train.optimizer_for(task)
        moving = self.moving(task, prunable, optimizer.taken)
        learner = plain(taught, pruned, None, optimizer, key, self.train.batch_size, moving)

        def init() -> TrainState:
            state = learner.init()
            masked = apply_masks(state.params, masks_of(state.opt_state))
            return copied(state._replace(params=masked))

        def finish(state: TrainState) -> Pruned:
            done = state.opt_state
            none = jax.tree.map(lambda leaf: None, state.rest)
            scores = task.merge(done.scores, none)
            masks = self.chosen(task, jax.tree.map(np.asarray, scores))
            # What the last cut brings back has the value that it was masked with.
            dense = whole(masks_of(done), state.params, done.hidden)
            variables = apply_masks(task.merge(dense, state.rest), masks)
            return pruned._replace(variables=variables, masks=masks)

        return learner._replace(init=init, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]
