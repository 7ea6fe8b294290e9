"""Layer by layer: choose what a consumer reads, refit it, go on with the net as it is now.

The steps of the walk are in `walk.py`, the mathematics of choice and refit in
`jprune.reconstruct`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate.widths import widths
from jprune.base import (
    Budget,
    Masks,
    Problem,
    Pruned,
    Reconstructor,
    Records,
    Task,
    Variables,
)
from jprune.graph.layers import offsets
from jprune.masks import apply_masks
from jprune.reconstruct import channel_scales, lasso, least_squares
from jprune.reconstruct import thinet as chosen
from jprune.reconstruct.greedy import FILTERS, GREEDY
from jprune.reconstruct.least_squares import relative_error
from jprune.reconstruct.windows import Look, Windows, aimed, collect, look
from jprune.stages.error_weights import ErrorWeights, staying
from jprune.stages.frame import fractions, record
from jprune.stages.walk import Step, alive_of, check_steps, masks_by_name, shares_of, steps_of
from jprune.train.net import Net
from jprune.train.numbers import Numbers
from jprune.train.step import few_batches

STREAMS = ("sampler", "whole", "joint")

Choose = Callable[[Sequence[Problem], int, jax.Array], np.ndarray]
"""`(problems, width, key) -> bool [units]`, a problem for every consumer."""

Refit = Callable[[np.ndarray, jax.Array], Reconstructor]
"""`(bool [units] alive before the choice, key) -> reconstructor`; the key is the choice's."""


@dataclasses.dataclass(frozen=True)
class LayerWise:
    """Prunes layer by layer: chooses the units that consumers read, and refits the consumers.

    Inputs come from the net as pruned so far, so that a refit makes up for earlier errors; targets
    from the net before this stage, so that errors do not add up. Steps go in the order of their
    first consumer.

    Attributes:
        budget: what is kept of the dense net.
        choose: which units stay.
        refit: how consumers are refitted; None: not at all.
        targets: outputs of the "dense" net, or "now": a consumer's outputs before this step.
        stream: what happens to groups on residual streams. "sampler": the stream stays whole, and
            a layer that begins a branch reads a part of it (masks of weights); "whole": no pruning;
            "joint": pruned like others, for all their consumers together.
        ratios: relative shares kept: one number for all, one for each step in order, or by name.
        part: (round, number of rounds): the steps are divided evenly among rounds.
        batches: of calibration images.
        batch_size: images in one.
        points: sampled positions per image and layer.
        ridge: see `Problem`.
        bias: whether constants are fitted, where a bias or a norm can hold them.
        weigh: what errors of outputs matter, for choice and refit; None: all alike.
        name: of the record.
    """

    budget: Budget
    choose: Choose
    refit: Refit | None
    targets: str = "dense"
    stream: str = "sampler"
    ratios: Numbers = 1.0
    part: tuple[int, int] = (0, 1)
    batches: int = 40
    batch_size: int = 125
    points: int = 10
    ridge: float | None = None
    bias: bool = True
    weigh: ErrorWeights | None = None
    name: str = "prune"

    def __post_init__(self):
        if self.stream not in STREAMS or self.targets not in ("dense", "now"):
            raise errors.ArgumentError(
                f"stream={self.stream!r}, targets={self.targets!r}; write one of "
                f"{', '.join(STREAMS)}, and 'dense' or 'now'."
            )
        if min(self.batches, self.batch_size, self.points) < 1:
            raise errors.ArgumentError(
                f"calibration with batches={self.batches}, batch_size={self.batch_size}, "
                f"points={self.points}; each is 1 or more."
            )

    def check(self, task: Task) -> None:
        """As `check_steps`."""
        check_steps(task, self.stream, self.budget, self.ratios)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, variables, and a record of the fractions kept and the outputs' relative error.

        Raises:
            ArgumentError: nothing is prunable, or the net's activations are not finite.
            BudgetError: a budget that cannot be met.
        """
        steps = steps_of(task, self.stream)
        alive = alive_of(task, pruned, steps)
        shares = shares_of(self.ratios, steps)
        masks_of = lambda masks: masks_by_name(task, pruned, steps, masks)
        # All widths at once and before the first choice: the budget is one of the whole net.
        goals = widths(alive, self.budget, Net(task).cost, masks_of, shares)
        which, parts = self.part
        # Contiguous parts: round `which` of `parts` takes the
        # steps n with floor(n parts / N) = which.
        of_part = [step for n, step in enumerate(steps) if n * parts // len(steps) == which]
        todo = [step for step in of_part if goals[step.name] < alive[step.name].sum()]
        walk = Walk(self, task, key, pruned.variables, todo, alive, goals)
        errors_left = []
        for number, step in enumerate(todo):
            # A key of its own for every step: what one step draws
            # does not depend on how many were before.
            drawing = jax.random.fold_in(walk.draws, number)
            problems = walk.problems(step, alive[step.name])
            chosen = self.choose(problems, goals[step.name], drawing)
            alive = {**alive, step.name: chosen}
            # Masked before the next step looks: its inputs are those of the net as pruned by now.
            masks = Net(task).weight_masks(masks_of(alive))
            errors_left += walk.refit(step, problems, chosen, masks, drawing)
        masks = masks_of(alive)
        metrics = {**fractions(task, masks), "layers": len(todo)}
        if errors_left:
            metrics["reconstruction_error"] = float(np.mean(errors_left))
        return Pruned(walk.variables, masks, pruned.extra, pruned.saved), [
            record(self.name, metrics)
        ]


class Walk:
    """A net while its steps are pruned one after the other.

    Attributes:
        variables: as pruned so far.
        images: the calibration batches.
        points: key of the sampled positions.
        dense: {site: windows} with the dense net's outputs; empty where targets are those of "now".
        draws: key of the choices.
        slopes: {site: [rows, outputs] of the loss by the dense net's outputs}; empty where errors
            count alike.
    """

    def __init__(
        self,
        stage: LayerWise,
        task: Task,
        key: jax.Array,
        variables: Variables,
        todo: list[Step],
        alive: Mapping[str, np.ndarray],
        goals: Mapping[str, int],
    ):
        self.stage, self.task, self.variables = stage, task, variables
        self.alive, self.goals = alive, goals
        # Positions, choices and batches are drawn apart: another choice sees the same calibration.
        self.points, self.draws, order = jax.random.split(key, 3)
        batches = few_batches(task.data, stage.batches, stage.batch_size, order) if todo else []
        self.images = [batch["image"] for batch in batches]
        self.groups = Net(task).groups
        self.layers = self.groups.layers
        self.sites = {path: self.layers[path].sites for step in todo for path in step.kernels}
        self.biases = offsets(self.groups) if stage.bias and todo else {}
        self.dense: Mapping[str, Windows] = {}
        if stage.targets == "dense" and todo:
            # One pass over the dense net for all layers; its
            # inputs are not kept, they would fill memory.
            self.dense = self._seen([s for sites in self.sites.values() for s in sites], False)
        self.slopes: Mapping[str, np.ndarray] = {}
        if stage.weigh is not None and todo:
            sites = [s for of_layer in self.sites.values() for s in of_layer]
            self.slopes = stage.weigh.collect(
                Net(task), sites, stage.points, variables, batches, self.points
            )

    def _seen(self, sites: Sequence[str], inputs: bool = True) -> dict[str, Windows]:
        of = self.task
        see = Net(of).once(_look, tuple(sites), self.stage.points, inputs)
        return collect(see, self.variables, self.images, self.points)

    def problems(self, step: Step, keep: np.ndarray) -> list[Problem]:
        """One problem for every consumer of a step, seen in one pass."""
        windows = self._seen([site for path in step.kernels for site in self.sites[path]])
        return [self._problem(path, index, keep, windows) for path, index in step.kernels.items()]

    def _problem(
        self, path: str, index: np.ndarray, keep: np.ndarray, windows: Mapping[str, Windows]
    ) -> Problem:
        sites = self.sites[path]
        # [n, channels, window], the rows of all call sites below each other: they share the kernel
        inputs = np.concatenate([windows[site].inputs for site in sites])
        aims = [
            aimed(windows[s], self.dense[s]) if self.dense else windows[s].outputs for s in sites
        ]
        weight = self._matrix(path)
        units, repeats = index.shape
        # Input channels of this kernel that the step does not choose from.
        others = np.setdiff1d(np.arange(weight.shape[0]), index)
        targets = np.concatenate(aims)
        if others.size:
            # Inputs outside this step keep their contribution: Y <- Y - sum_c X_c W_c over them.
            targets = targets - np.tensordot(inputs[:, others], weight[others], 2)
        problem = Problem(
            # A unit that stands at several channels (behind a
            # flatten) is one unit with a longer window.
            inputs=inputs[:, index].reshape(len(inputs), units, -1),
            targets=targets,
            weight=weight[index].reshape(units, repeats * weight.shape[1], -1),
            keep=keep,
            ridge=self.stage.ridge,
            bias=path in self.biases,
        )
        if self.stage.weigh is None:
            return problem
        slopes = np.concatenate([self.slopes[site] for site in sites])
        seen = np.concatenate([(self.dense or windows)[site].outputs for site in sites])
        stays = lambda importance: staying(self.groups, path, importance, self.alive, self.goals)
        return self.stage.weigh.on(problem, slopes, seen, stays)

    def _matrix(self, path: str) -> np.ndarray:
        """[inputs, window, outputs] of a kernel as pruned so far, in float64; a copy."""
        kernel = Net(self.task).leaves(self.variables)[path]
        return np.array(self.layers[path].matrix(np.asarray(kernel, np.float64)))

    def refit(
        self, step: Step, problems: Sequence[Problem], chosen: np.ndarray, masks: Masks, key: Any
    ) -> list[float]:
        """Refits the consumers in order; relative errors of their outputs afterwards.

        On a residual stream a later consumer reads what an earlier one adds. Where targets are the
        dense net's, its inputs are observed again once the earlier consumer is refitted.
        """
        errors_left = []
        for problem, (path, index) in zip(problems, step.kernels.items()):
            if errors_left and self.stage.refit is not None and self.dense:
                self.variables = apply_masks(self.variables, masks)
                problem = self._problem(path, index, problem.keep, self._seen(self.sites[path]))
            # The refit sees the units that were chosen; the
            # error is that of the old problem's targets.
            smaller = problem._replace(keep=chosen)
            weight, bias = np.asarray(problem.weight) * chosen[:, None, None], None
            if self.stage.refit is not None:
                weight, bias = self.stage.refit(problem.keep, key)(smaller)
                self.write(path, index, weight, bias)
            errors_left.append(relative_error(problem, weight, bias))
        self.variables = apply_masks(self.variables, masks)
        return errors_left

    def write(self, path: str, index: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
        """Writes a consumer's new weights for some units, and the change of its bias."""
        leaves = Net(self.task).leaves(self.variables)
        rows = self._matrix(path)
        rows[index] = weight.reshape(*index.shape, *rows.shape[1:])
        leaves[path] = jnp.asarray(self.layers[path].array(rows), leaves[path].dtype)
        if path in self.biases:
            leaf, sign = self.biases[path]
            # Where a norm's mean takes the constant, it is subtracted there: sign = -1.
            leaves = Net(self.task).shifted(leaves, leaf, sign * bias)
        self.variables = Net(self.task).tree(leaves)


def _look(net: Net, sites: tuple[str, ...], points: int, inputs: bool) -> Look:
    return look(net.task.fn, net.groups, sites, points, inputs)


@dataclasses.dataclass(frozen=True)
class ByLasso:
    """Chooses the units with the largest LASSO coefficients.

    Attributes:
        start: the first penalty, as a fraction of the smallest one that leaves no unit.
        tolerance: how many units beyond the width LASSO may leave, as a fraction of the width.
    """

    start: float = 1e-3
    tolerance: float = 0.1

    def __post_init__(self):
        if not (self.start > 0 and self.tolerance >= 0):
            raise errors.ArgumentError(
                f"LASSO with start={self.start}, tolerance={self.tolerance}; the first penalty is "
                "above 0, the tolerance 0 or more."
            )

    def __call__(self, problems: Sequence[Problem], width: int, key: jax.Array) -> np.ndarray:
        """Bool [units]."""
        del key
        return lasso(problems, width, self.start, self.tolerance)


def by_least_squares(before: np.ndarray, key: jax.Array):
    """Refits all weights of the units that stay."""
    del before, key
    return least_squares


@dataclasses.dataclass(frozen=True)
class ByThiNet:
    """Chooses greedily; `scales` then refits one scale for every unit that stays.

    Attributes:
        greedy: "remove", "omp" or "grow".
        filters: "one" output a position, or "all".
    """

    greedy: str = "remove"
    filters: str = "one"

    def __post_init__(self):
        if self.greedy not in GREEDY or self.filters not in FILTERS:
            raise errors.ArgumentError(
                f"thinet with greedy={self.greedy!r}, filters={self.filters!r}; write one of "
                f"{', '.join(GREEDY)}, and one of {', '.join(FILTERS)}."
            )

    def __call__(self, problems: Sequence[Problem], width: int, key: jax.Array) -> np.ndarray:
        """Bool [units]."""
        return chosen(problems, width, key, self.greedy, self.filters)

    def scales(self, before: np.ndarray, key: jax.Array) -> Reconstructor:
        """The reconstructor that goes with the choice, on the same outputs."""
        return channel_scales(before, key, self.filters)
