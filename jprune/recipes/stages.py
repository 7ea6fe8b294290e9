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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import (
    Allocator,
    Budget,
    Criterion,
    Groups,
    Learner,
    Masks,
    Pruned,
    Records,
    Schedule,
    Scores,
    Task,
    Variables,
    run_criterion,
)
from jprune.learners import to_the_end
from jprune.masks import apply_masks, density, intersect, is_none
from jprune.recipes._distill import distilled
from jprune.recipes._forms import cost_as_held
from jprune.recipes._nets import (
    are_units,
    cost_of,
    groups_of,
    of_single_weights,
    prunable_weights,
    slim_net,
    unit_masks,
    weight_masks,
)
from jprune.recipes._resolution import at_resolution, seen_at
from jprune.recipes._training import LEARNING_RATES, Sgd, evaluate, plain, stream
from jprune.units import expand, to_units

CriterionOf = Callable[[Task, Groups, jax.Array], Criterion]
"""`(task, groups, key) -> criterion`."""

SparsifierOf = Callable[
    [Task, Groups, jax.Array], Callable[[Schedule], optax.GradientTransformation]
]
"""`(task, groups, key) -> (learning rate at a step -> transformation)`."""


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
        begin: the step of the schedule at which this training begins.
        stop: the step of the schedule at which it stops; None: at its end.
        sparsify: makes an optax transformation that stands behind the step and makes sparse.
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
    sparsify: SparsifierOf | None = None
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

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: distillation, and no net was saved as "dense"; `begin` or `stop` is
                not in the schedule.
        """
        task = at_resolution(self.taught(task, pruned), pruned)
        steps = self.steps(task.data.sizes["train"])
        if not 0 <= self.begin < (steps if self.stop is None else self.stop) <= steps:
            raise errors.ArgumentError(
                f"Train(begin={self.begin}, stop={self.stop}) of a schedule of {steps} steps; "
                f"write 0 <= begin < stop <= {steps}."
            )
        sgd = Sgd(
            self.learning_rate,
            self.schedule,
            steps,
            self.momentum,
            self.weight_decay,
            self.begin,
            self.stop,
            None if self.sparsify is None else self.sparsify(task, groups_of(task), key),
        )
        return plain(task, pruned, weight_masks(task, pruned.masks), sgd, key, self.batch_size)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


def record(stage: str, metrics: dict[str, Any], step: int = 0) -> dict[str, Any]:
    """A record; whoever keeps it adds where it comes from."""
    return {"stage": stage, "step": step, "metrics": metrics}


def trained(learner: Learner, name: str) -> tuple[Pruned, Records]:
    """A learner run to its end, in memory; one record of the last step's metrics."""
    done, metrics = to_the_end(learner)
    return done, [record(name, metrics, learner.steps)]


@dataclasses.dataclass(frozen=True)
class Prune:
    """Scores units or single weights, and masks all but the best under a budget.

    What is masked already stays so. Units: the masked variables are zero at all places of a masked
    unit. Weights: those of kernels compete, biases and norms stay; `multiple_of` is not theirs.

    Attributes:
        criterion: makes the criterion for this net.
        allocator: scores to masks.
        budget: what may be kept, of the dense net; of weights, a density is that of all kernels.
            A floor of its whole size leaves a group whole.
        batches: calibration batches, from the training split, where the criterion looks at data.
        batch_size: examples in such a batch.
        pool: how scores of weights become scores of units, `within` and `across` of `to_units`.
        per: "unit" or "weight".
        name: of the record.
    """

    criterion: CriterionOf
    allocator: Allocator
    budget: Budget
    batches: int = 30
    batch_size: int = 64
    pool: str = "sum"
    per: str = "unit"
    name: str = "prune"

    def __post_init__(self):
        if self.per not in ("unit", "weight"):
            raise errors.ArgumentError(f"Prune(per={self.per!r}); write 'unit' or 'weight'.")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, masked variables, and a record of the fractions kept."""
        prune = self.of_units if self.per == "unit" else self.of_weights
        masks = prune(pruned, task, self.scores(pruned.variables, task, key))
        variables = apply_masks(pruned.variables, weight_masks(task, masks))
        return pruned._replace(variables=variables, masks=masks), [
            record(self.name, fractions(task, masks))
        ]

    def of_units(self, pruned: Pruned, task: Task, scores: Scores) -> dict[str, np.ndarray]:
        """Masks {group: [units]} by scores of units or of weights."""
        if not are_units(groups_of(task), scores):
            scores = to_units(groups_of(task), scores, within=self.pool, across=self.pool)
        alive = unit_masks(task, pruned)
        scores = {
            name: np.where(np.asarray(alive[name]), np.asarray(score, float), -np.inf)
            for name, score in scores.items()
        }
        chosen = self.allocator(scores, self.budget, cost_of(task))
        return {name: np.asarray(mask, bool) for name, mask in {**alive, **chosen}.items()}

    def of_weights(self, pruned: Pruned, task: Task, scores: Scores) -> Masks:
        """Masks of kernels, a tree like the variables that is None elsewhere.

        Raises:
            ArgumentError: the criterion scores units.
        """
        if are_units(groups_of(task), scores):
            raise errors.ArgumentError(
                "Prune(per='weight') came with a criterion that scores units; write per='unit'."
            )
        alive = prunable_weights(task, pruned.masks, self.budget)
        scores = jax.tree.map(
            lambda mask, score: None if mask is None else np.where(mask, score, -np.inf),
            alive,
            scores,
            is_leaf=is_none,
        )
        chosen = self.allocator(scores, of_single_weights(self.budget), cost_of(task))
        before = weight_masks(task, pruned.masks)
        return chosen if before is None else intersect(before, chosen)

    def scores(self, variables: Variables, task: Task, key: jax.Array) -> Scores:
        """What the criterion says: of units (groups it does not see left out) or of weights."""
        criterion = self.criterion(task, groups_of(task), key)
        batch_size = min(self.batch_size, task.data.sizes["train"])
        batches = stream(task.data, batch_size, key) if criterion.needs_data else iter(())
        return run_criterion(criterion, variables, itertools.islice(batches, self.batches))


def fractions(task: Task, masks: Masks) -> dict[str, float]:
    """What masks keep of the dense net: `density` (of what is masked), `params`, `macs`."""
    kept, dense = cost_of(task)(masks), cost_of(task)({})
    return {
        "density": density(masks),
        "params": float(kept.params) / float(dense.params),
        "macs": float(kept.macs) / float(dense.macs),
    }


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
        masks = weight_masks(task, pruned.masks)
        variables = saved(pruned, self.to, f"Rewind(to={self.to!r})")
        variables = variables if masks is None else apply_masks(variables, masks)
        return pruned._replace(variables=variables), []


def saved(pruned: Pruned, name: str, who: str) -> Variables:
    """Variables that an earlier stage saved.

    Args:
        pruned: the state of the run.
        name: that `Save` used.
        who: asks, for the message.

    Raises:
        ArgumentError: nothing was saved under this name.
    """
    if name not in pruned.saved:
        raise errors.ArgumentError(
            f"{who}: saved are {', '.join(pruned.saved) or 'none'}. Put Save({name!r}) before it "
            "in the recipe."
        )
    return pruned.saved[name]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measures loss and accuracy on a split, and counts.

    The record has the task's metrics, `params` (those that are not 0) and `macs` (for one example,
    under the masks; those of masked weights do not count).

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
        seen = seen_at(task.fn, pruned.resolution)
        fn, variables = slim_net(task, pruned) if self.slim else (seen, pruned.variables)
        params, _ = task.split(variables)
        masks = {} if pruned.masks is None else pruned.masks
        if self.slim and not are_units(groups_of(task), masks):
            masks = intersect(masks, expand(groups_of(task), unit_masks(task, pruned)))
        counts = {
            "params": sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(params)),
            "macs": round(
                float(cost_as_held(at_resolution(task, pruned), pruned, masks, self.split).macs)
            ),
        }
        metrics = evaluate(task, variables, self.split, fn) | counts
        return pruned, [{**record(self.name, metrics), "split": self.split}]
