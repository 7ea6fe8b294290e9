"""The steps that recipes are made of.

A stage is a frozen dataclass of settings, called as `stage(pruned, task, key) -> (pruned, records)`
(`jprune.base.Stage`). Called so, it runs in memory and to the end. `Train` is long, so it can also
be taken apart: `learner(pruned, task, key)` hands out its steps, and `jprune.train` drives them
with checkpoints and a progress bar. That is all that a leaf needs to know of a stage, so recipes
import no leaf, and a new long stage is one with a `learner` of its own.

A stage has a `name`: of its records and of its folder in a run directory.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import (
    Allocator,
    Budget,
    Criterion,
    Groups,
    Learner,
    Pruned,
    Records,
    Stage,
    Task,
    Variables,
    run_criterion,
)
from jprune.masks import apply_masks
from jprune.recipes._nets import (
    are_units,
    cost_of,
    groups_of,
    slim_net,
    unit_masks,
    weight_masks,
)
from jprune.recipes._training import (
    LEARNING_RATES,
    Sgd,
    evaluate,
    plain,
    stream,
)
from jprune.units import expand, to_units

CriterionOf = Callable[[Task, Groups, jax.Array], Criterion]
"""`(task, groups, key) -> criterion`."""


@runtime_checkable
class LongStage(Stage, Protocol):
    """A stage that can be taken apart into steps."""

    @property
    def name(self) -> str:
        """Of its records."""
        ...

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """Its steps."""
        ...


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains the weights by SGD; what is masked stays exactly 0.

    Attributes:
        epochs: passes over the training split; a fraction is one of an epoch's steps.
        learning_rate: the largest one of the schedule.
        batch_size: examples in a step.
        schedule: of the learning rate: "one_cycle", "cosine" or "constant".
        momentum: Nesterov's.
        weight_decay: on kernels only.
        max_steps: stop after so many steps; the schedule is that of the shortened training.
        name: of the records.
    """

    epochs: float
    learning_rate: float
    batch_size: int = 128
    schedule: str = "one_cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_steps: int | None = None
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
        steps = max(1, round(self.epochs * (examples // self.batch_size)))
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps."""
        steps = self.steps(task.data.sizes["train"])
        sgd = Sgd(self.learning_rate, self.schedule, steps, self.momentum, self.weight_decay)
        return plain(task, pruned, weight_masks(task, pruned.masks), sgd, key, self.batch_size)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        learner = self.learner(pruned, task, key)
        state, seen = learner.init(), {}
        for batch in itertools.islice(learner.batches(0), learner.steps):
            state, seen = learner.step(state, batch)
        metrics = {name: float(value) for name, value in seen.items()}
        return learner.finish(state), [record(self.name, metrics, learner.steps)]


def record(stage: str, metrics: dict[str, Any], step: int = 0) -> dict[str, Any]:
    """A record; whoever keeps it adds where it comes from."""
    return {"stage": stage, "step": step, "metrics": metrics}


@dataclasses.dataclass(frozen=True)
class Prune:
    """Scores the units, and masks all but the best under a budget.

    Units that are masked already stay so. The masked variables are zero at all places of a masked
    unit.

    Attributes:
        criterion: makes the criterion for this net.
        allocator: scores to masks.
        budget: what may be kept, of the dense net.
        batches: calibration batches, from the training split, where the criterion looks at data.
        batch_size: examples in such a batch.
        pool: how scores of weights become scores of units, `within` and `across` of `to_units`.
        name: of the record.
    """

    criterion: CriterionOf
    allocator: Allocator
    budget: Budget
    batches: int = 30
    batch_size: int = 64
    pool: str = "sum"
    name: str = "prune"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, masked variables, and a record of the fractions kept."""
        groups = groups_of(task)
        alive = unit_masks(task, pruned)
        scores = self.scores(pruned.variables, task, key)
        scores = {
            name: np.where(np.asarray(alive[name]), np.asarray(score, float), -np.inf)
            for name, score in scores.items()
        }
        model = cost_of(task)
        chosen = self.allocator(scores, self.budget, model)
        masks = {name: np.asarray(mask, bool) for name, mask in {**alive, **chosen}.items()}
        variables = apply_masks(pruned.variables, expand(groups, masks))
        kept, dense = model(masks), model({})
        metrics = {
            "density": sum(int(m.sum()) for m in masks.values()) / sum(groups.sizes.values()),
            "params": float(kept.params) / float(dense.params),
            "macs": float(kept.macs) / float(dense.macs),
        }
        return pruned._replace(variables=variables, masks=masks), [record(self.name, metrics)]

    def scores(self, variables: Variables, task: Task, key: jax.Array) -> dict[str, jax.Array]:
        """Scores of the units; groups that the criterion does not see are left out."""
        groups = groups_of(task)
        criterion = self.criterion(task, groups, key)
        batch_size = min(self.batch_size, task.data.sizes["train"])
        batches = stream(task.data, batch_size, key) if criterion.needs_data else iter(())
        scores = run_criterion(criterion, variables, itertools.islice(batches, self.batches))
        if are_units(groups, scores):
            return scores
        return to_units(groups, scores, within=self.pool, across=self.pool)


@dataclasses.dataclass(frozen=True)
class Recalibrate:
    """Lets the statistics of the norms settle on the net as it is now; weights stay.

    Attributes:
        batches: training batches that are looked at.
        batch_size: examples in one.
        name: of the record.
    """

    batches: int = 50
    batch_size: int = 128
    name: str = "recalibrate"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """New statistics, and a record of the number of batches."""
        batch_size = min(self.batch_size, task.data.sizes["train"])
        variables = pruned.variables

        @jax.jit
        def look(variables: Variables, image: jax.Array, key: jax.Array) -> Variables:
            return task.update(variables, task.train_fn(variables, image, key)[1])

        batches = itertools.islice(stream(task.data, batch_size, key), self.batches)
        for step, batch in enumerate(batches):
            variables = look(variables, jnp.asarray(batch["image"]), jax.random.fold_in(key, step))
        masks = weight_masks(task, pruned.masks)
        if masks is not None:
            variables = apply_masks(variables, masks)
        return pruned._replace(variables=variables), [record(self.name, {"batches": self.batches})]


@dataclasses.dataclass(frozen=True)
class Save:
    """Keeps a copy of the variables under a name, for later stages.

    Attributes:
        under: the name: "dense", "init", "teacher", "rewind".
        name: of the stage.
    """

    under: str
    name: str = "save"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, with one more copy in `saved`."""
        del task, key
        return pruned._replace(saved={**pruned.saved, self.under: pruned.variables}), []


@dataclasses.dataclass(frozen=True)
class Rewind:
    """Puts saved variables back, under today's masks.

    Attributes:
        to: name that `Save` used.
        name: of the stage.
    """

    to: str
    name: str = "rewind"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The saved variables, masked.

        Raises:
            ArgumentError: nothing was saved under this name.
        """
        del key
        if self.to not in pruned.saved:
            raise errors.ArgumentError(
                f"Rewind(to={self.to!r}): saved are {', '.join(pruned.saved) or 'none'}. Put "
                f"Save({self.to!r}) before it in the recipe."
            )
        masks = weight_masks(task, pruned.masks)
        variables = pruned.saved[self.to]
        variables = variables if masks is None else apply_masks(variables, masks)
        return pruned._replace(variables=variables), []


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measures loss and accuracy on a split, and counts.

    The record has the task's metrics, `params` (those that are not 0) and `macs` (for one example,
    under the masks).

    Attributes:
        split: "train", "validation" or "test".
        slim: evaluate the small net instead of the masked one.
        name: of the record.
    """

    split: str = "validation"
    slim: bool = False
    name: str = "evaluate"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record."""
        del key
        fn, variables = slim_net(task, pruned) if self.slim else (task.fn, pruned.variables)
        params, _ = task.split(variables)
        counts = {
            "params": sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(params)),
            "macs": round(float(cost_of(task)(pruned.masks or {}).macs)),
        }
        metrics = evaluate(task, variables, self.split, fn) | counts
        return pruned, [{**record(self.name, metrics), "split": self.split}]


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Runs stages several times over.

    Attributes:
        stages: what is repeated.
        times: how often.
        name: of the whole; the records have the names of the stages.
    """

    stages: tuple[Stage, ...]
    times: int
    name: str = "repeat"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """All stages in order, each time with keys of their own."""
        return run(unrolled((self,)), pruned, task, key)


def unrolled(recipe: Sequence[Stage]) -> Iterator[Stage]:
    """The stages of a recipe one by one, repetitions written out."""
    for stage in recipe:
        if isinstance(stage, Repeat):
            for _ in range(stage.times):
                yield from unrolled(stage.stages)
        else:
            yield stage


def run(
    recipe: Sequence[Stage] | Iterator[Stage], pruned: Pruned, task: Task, key: jax.Array
) -> tuple[Pruned, Records]:
    """Runs stages in memory, one after the other.

    Args:
        recipe: the stages.
        pruned: where to begin.
        task: net, loss and data.
        key: the n-th stage gets `fold_in(key, n)`.

    Returns:
        The last state and all records.
    """
    records: Records = []
    for number, stage in enumerate(unrolled(tuple(recipe))):
        pruned, added = stage(pruned, task, jax.random.fold_in(key, number))
        records += added
    return pruned, records
