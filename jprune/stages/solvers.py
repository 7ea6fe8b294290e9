"""Single weights pruned layer by layer, each layer's outputs held by the weights that stay."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate import refuse_impossible, uniform
from jprune.base import Budget, Masks, Problem, Pruned, Records, Task, Variables
from jprune.masks import intersect
from jprune.reconstruct.elimination import eliminate
from jprune.reconstruct.moments import moments
from jprune.reconstruct.sweep import sweep
from jprune.reconstruct.windows import Look, Windows, collect, look
from jprune.stages.frame import fractions, record
from jprune.stages.walk import plain_layers, refuse_unread
from jprune.train.net import Net
from jprune.train.step import few_batches

INPUTS = ("dense", "now")

Solver = Callable[[np.ndarray, np.ndarray, int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""`(Hessian [n, n], weights [n, outputs], count, alive) -> (weights, bool: those that stay)`."""


@dataclasses.dataclass(frozen=True)
class Eliminate:
    """Deletes a layer's weights one by one: `jprune.reconstruct.eliminate`.

    Attributes:
        damping: added to the diagonal of the Hessian, over its mean.
    """

    damping: float = 0.0

    def __post_init__(self):
        _check_damping(self.damping)

    def __call__(
        self, hessian: np.ndarray, weights: np.ndarray, count: int, alive: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """New weights, and those that stay."""
        return eliminate(hessian, weights, count, alive, self.damping)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Goes through a layer's inputs once: `jprune.reconstruct.sweep`.

    Attributes:
        block: inputs whose weights are chosen together.
        damping: added to the diagonal of the Hessian, over its mean.
    """

    block: int = 128
    damping: float = 0.01

    def __post_init__(self):
        _check_damping(self.damping)
        if self.block < 1:
            raise errors.ArgumentError(f"block={self.block}; it is 1 or more inputs.")

    def __call__(
        self, hessian: np.ndarray, weights: np.ndarray, count: int, alive: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """New weights, and those that stay."""
        return sweep(hessian, weights, count, alive, self.block, self.damping)


def _check_damping(damping: float) -> None:
    if not damping >= 0:
        raise errors.ArgumentError(f"damping={damping}; write 0 or more.")


@dataclasses.dataclass(frozen=True)
class SolveLayers:
    """Prunes the weights of every layer by a solver, all layers by the same fraction.

    Kernels are pruned that are plain convolutions and dense layers: their inputs can be looked at.
    Others (depthwise and grouped ones, those in loops) stay whole, and so do biases. The Hessian of
    a layer is 2 X^T X over the number of rows, X the windows that it reads.

    Attributes:
        budget: what may be kept of the dense net; a density is that of the kernels that are pruned.
        solver: which weights stay, and what they become.
        inputs: what layers read: in the "dense" net, or in the net as it is "now", the layers
            before being pruned.
        batches: of calibration images.
        batch_size: images in one.
        points: sampled positions per image and layer.
        name: of the record.
    """

    budget: Budget
    solver: Solver
    inputs: str = "dense"
    batches: int = 8
    batch_size: int = 128
    points: int = 10
    name: str = "prune"

    def __post_init__(self):
        if self.inputs not in INPUTS or min(self.batches, self.batch_size, self.points) < 1:
            raise errors.ArgumentError(
                f"inputs={self.inputs!r}, batches={self.batches}, batch_size={self.batch_size}, "
                f"points={self.points}; inputs are 'dense' or 'now', numbers 1 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses a net without a plain layer, and a budget out of reach.

        Raises:
            ArgumentError: no kernel of a plain layer may lose weights.
            BudgetError: the budget cannot be met.
        """
        alive = self.prunable(task, None)
        refuse_impossible(alive, self.budget.of_weights(), Net(task).cost)

    def prunable(self, task: Task, masks: Masks) -> Masks:
        """Masks of the weights that may go, True where one is alive; None for other leaves.

        Raises:
            ArgumentError: there is none.
        """
        net = Net(task)
        plain = plain_layers(net.groups)
        alive = {
            path: np.asarray(mask)
            for path, mask in net.leaves(net.prunable(masks, self.budget)).items()
            if path in plain
        }
        refuse_unread(task, [*alive])
        return net.tree(alive)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """New weights and masks, and a record of the fractions kept and the outputs' mean error.

        Raises:
            ArgumentError: the net's activations are not finite.
        """
        net = Net(task)
        alive = self.prunable(task, pruned.masks)
        counts = self.counts(task, pruned.variables, alive)
        there, keeps, errors_left = net.leaves(alive), {}, []
        points, order = jax.random.split(key)
        batches = few_batches(task.data, self.batches, self.batch_size, order)
        images = [batch["image"] for batch in batches]
        variables, dense = pruned.variables, dict[str, Windows]()
        layers = {path: each for path, each in plain_layers(net.groups).items() if path in counts}
        if self.inputs == "dense":
            sites = tuple(site for layer in layers.values() for site in layer.sites)
            dense = collect(net.once(_look, sites, self.points), variables, images, points)
        # In the order of execution: what a layer reads is what those before it make by now.
        for path, layer in layers.items():
            seen: Mapping[str, Windows] = dense
            if not dense:
                see = net.once(_look, layer.sites, self.points)
                seen = collect(see, variables, images, points)
            hessian = hessian_of([seen[site] for site in layer.sites])
            leaves = net.leaves(variables)
            matrix = layer.matrix(np.asarray(leaves[path], np.float64))
            flat = lambda array, n=matrix.shape[-1]: array.reshape(-1, n)
            old = flat(matrix)
            new, keep = self.solver(hessian, old, counts[path], flat(layer.matrix(there[path])))
            errors_left.append(_error(hessian, old, new))
            leaves[path] = jnp.asarray(layer.array(new.reshape(matrix.shape)), leaves[path].dtype)
            keeps[path] = layer.array(keep.reshape(matrix.shape))
            variables = net.tree(leaves)
        masks, before = net.tree(keeps), net.weight_masks(pruned.masks)
        masks = masks if before is None else intersect(before, masks)
        metrics = {**fractions(task, masks), "reconstruction_error": float(np.mean(errors_left))}
        return pruned._replace(variables=variables, masks=masks), [record(self.name, metrics)]

    def counts(self, task: Task, variables: Variables, alive: Masks) -> dict[str, int]:
        """{kernel: how many weights stay}, the same fraction of each."""
        net = Net(task)
        values, there = net.leaves(variables), net.leaves(alive)
        # Which ones they are is the solver's choice; the number is that of any.
        sizes = {
            path: np.where(mask, np.abs(np.asarray(values[path], np.float64)), -np.inf)
            for path, mask in there.items()
        }
        masks = uniform(net.tree(sizes), self.budget.of_weights(), net.cost)
        return {path: int(np.sum(mask)) for path, mask in net.leaves(masks).items()}


def hessian_of(windows: list[Windows]) -> np.ndarray:
    """2 X^T X / n [inputs * window, inputs * window], the rows of all call sites below each other.

    Args:
        windows: of the layer's call sites.

    Example:
        >>> inputs = np.array([[[1.0], [0.0]], [[1.0], [2.0]]])
        >>> hessian_of([Windows(inputs, None)]).tolist()
        [[2.0, 2.0], [2.0, 4.0]]
    """
    x = np.concatenate([np.asarray(each.inputs) for each in windows])
    rows, channels, window = x.shape
    nothing, shape = np.zeros((rows, 1)), np.zeros((channels, window, 1))
    gram = moments(Problem(x, nothing, shape, np.ones(channels, bool))).gram
    # E = sum ||(w - v) X||^2 / n has the Hessian 2 X^T X / n.
    return 2 * gram / rows


def _error(hessian: np.ndarray, old: np.ndarray, new: np.ndarray) -> float:
    """||X (v - w)||^2 / ||X w||^2; 0 where the outputs are 0."""
    square = lambda w: float(np.sum(w * (hessian @ w)))
    size = square(old)
    return max(square(new - old), 0.0) / size if size > 0 else 0.0


def _look(net: Net, sites: tuple[str, ...], points: int) -> Look:
    return look(net.task.fn, net.groups, sites, points)
