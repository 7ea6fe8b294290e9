"""Pruning of the layers that a machine runs faster when sparse, within densities that pay there."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jprune import errors
from jprune.allocate import global_topk, refuse_impossible
from jprune.base import Budget, Learner, Pruned, PyTree, Records, Schedule, Task, to_the_end
from jprune.cost import ATOM, XEON, Machine, Work, works
from jprune.execute.machine import this_machine
from jprune.graph.shrink.concrete import copied
from jprune.masks import apply_masks, masks_of
from jprune.sparsify.surgery import begun
from jprune.sparsify.thresholds import layer_numbers
from jprune.sparsify.useful_range import RESTORED, within_range
from jprune.stages.frame import fractions, record
from jprune.stages.surgery import DynamicSurgery, Revised
from jprune.stages.train import Train
from jprune.train.net import Net
from jprune.train.numbers import Numbers
from jprune.train.step import TrainState, plain

MACHINES = {"atom": ATOM, "xeon": XEON}
BY = ("l1", "surgery")


@dataclasses.dataclass(frozen=True)
class PruneWithinRange:
    """Trains and prunes the layers that pay on a machine; the budget is met by the largest weights.

    In the end a layer has a density in its useful range, or it is whole (all of its mask is True).

    Attributes:
        train: how long, and how.
        budget: of weights; a density is that of all kernels, the whole ones counted.
        machine: "measured" (this one, see `execute.this_machine`), "atom", "xeon", a
            `cost.Machine`, or its numbers.
        images: in one call on that machine.
        by: "l1", or "surgery" (`DynamicSurgery`).
        strength: of the penalty; None takes from every weight, over the whole training, what the
            smallest weight that the budget leaves measures.
        gamma: of surgery.
        looks: how many times densities are compared with their ranges.
        tolerance: by how much a density that is steady changes between two looks.
        name: of the records: metrics of the last step, and the fractions kept.
    """

    train: Train
    budget: Budget
    machine: Numbers | str | Machine = "measured"
    images: int = 1
    by: str = "l1"
    strength: float | None = None
    gamma: float = 1e-4
    looks: int = 10
    tolerance: float = 0.01
    name: str = "within_range"

    def __post_init__(self):
        if isinstance(self.machine, str):
            if self.machine not in ("measured", *MACHINES):
                raise errors.ArgumentError(
                    f"machine={self.machine!r}; write measured, {', '.join(MACHINES)}, or numbers: "
                    "operations a second, bytes a second, alpha and, where it is not 2, beta."
                )
        elif not isinstance(self.machine, Machine):
            numbers = tuple(self.machine) if isinstance(self.machine, Sequence) else ()
            if len(numbers) not in (3, 4):
                raise errors.ArgumentError(
                    f"machine={self.machine!r}; write three or four numbers: operations a second, "
                    "bytes a second, alpha, beta."
                )
            object.__setattr__(self, "machine", Machine(*numbers))
        fits = self.by in BY and min(self.images, self.looks) >= 1 and 0 <= self.tolerance < 1
        if not fits or self.gamma < 0 or (self.strength is not None and not self.strength >= 0):
            raise errors.ArgumentError(
                f"by={self.by!r}, images={self.images}, looks={self.looks}, tolerance="
                f"{self.tolerance}, gamma={self.gamma}, strength={self.strength}; by is "
                f"{' or '.join(BY)}, images and looks are 1 or more, tolerance is in [0, 1), the "
                "others are 0 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses a net without a layer that pays, and a budget that ranges put out of reach.

        Raises:
            ArgumentError: no layer can be faster sparse than dense on the machine.
            BudgetError: layers that stay whole, and the least densities of the others, keep more.
            MissingExtraError: the machine is measured, and numba is not installed.
        """
        self.train.takes("this pruning", "optimizer", "warmup", "clip", "accumulate")
        refuse_impossible(*self.bounded(task, self.ranges(task)))

    def ranges(self, task: Task) -> dict[str, tuple[int, int]]:
        """{kernel: (fewest, most) weights that pay}, of the layers that pay.

        Raises:
            ArgumentError: there is none.
        """
        machine = self.machine
        if isinstance(machine, str):
            machine = MACHINES[machine] if machine in MACHINES else this_machine()
        assert isinstance(machine, Machine)  # __post_init__ has made it one
        net, found = Net(task), {}
        each = works(net.fn, net.shapes, task.example, groups=net.groups)
        for path in net.kernels(net.prunable(None, self.budget)):
            one, size = each.get(path, Work(0, 0, 0)), math.prod(net.groups.leaves[path].shape)
            # Of several images activations and arithmetic are more, and weights are the same.
            work = Work(one.macs * self.images, one.activations * self.images, one.weights)
            least, most = work.useful(machine)
            # x_min < x_max, and a number of weights in between
            if work.pays(machine) and max(1, math.ceil(least * size)) <= math.floor(most * size):
                found[path] = max(1, math.ceil(least * size)), math.floor(most * size)
        if not found:
            raise errors.ArgumentError(
                f"no layer of {task.name} can be faster sparse than dense on {machine} with "
                f"images={self.images}: all are bound by memory. Write more images, another "
                "machine, or a method that prunes whole channels."
            )
        return found

    def bounded(self, task: Task, ranges: Mapping[str, tuple[int, int]]) -> tuple[Any, Any, Any]:
        """(ones by kernel, the budget with its floors, the cost of masks by kernel)."""
        net = Net(task)
        whole = net.leaves(net.prunable(None, self.budget))
        floors = {path: ranges.get(path, (mask.size,))[0] for path, mask in whole.items()}
        budget = dataclasses.replace(self.budget.of_weights(), floors=floors)
        return whole, budget, lambda masks: net.cost(net.tree(masks))

    def cut(self, task: Task, sizes: Mapping[str, Any], ranges: Mapping[str, Any]) -> Any:
        """{kernel: mask} that meets the budget by the largest sizes, within the ranges."""
        whole, budget, model = self.bounded(task, ranges)
        scores = {path: np.ones(mask.shape) for path, mask in whole.items()}
        for path, (_, most) in ranges.items():
            flat = np.full(sizes[path].size, -np.inf)
            # x < x_max: what is beyond is never kept
            first = np.argsort(-sizes[path].ravel(), kind="stable")[:most]
            flat[first] = sizes[path].ravel()[first]
            scores[path] = flat.reshape(sizes[path].shape)
        return global_topk(scores, budget, model)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: weights that are NaN, masks from before, or what `check` raises.
        """
        if pruned.masks is not None:
            raise errors.ArgumentError(
                "PruneWithinRange compares densities of a dense net, and this one has masks. Leave "
                "out the stage that masks."
            )
        net, ranges, optimizer = Net(task), self.ranges(task), self.train.optimizer_for(task)
        net.refuse_nan(pruned.variables, tuple(ranges))
        sizes = {path: np.abs(np.asarray(net.leaves(pruned.variables)[path])) for path in ranges}
        cut = self.cut(task, sizes, ranges)
        first = {path: cut[path] for path in ranges}
        every = max(1, optimizer.taken // self.looks)
        surgery = Revised(self.gamma, 1.0, optimizer.taken, True) if self.by == "surgery" else None
        within = tuple(
            (path, counts[0] / sizes[path].size, counts[1] / sizes[path].size)
            for path, counts in ranges.items()
        )
        wrap = Within(within, every, optimizer.taken // 2, self.tolerance, surgery)
        taught = self.train.taught(task, pruned)
        learner = plain(taught, pruned, None, optimizer, key, self.train.batch_size, wrap)

        # Here and not in `init`, of which the shapes alone are asked before a run goes on.
        strength, c_rate, start, layers = self.strength, 0.0, None, None
        if surgery is None:
            if strength is None:
                # t lambda, summed over the steps, is the smallest |w| of the first cut
                least = min(np.min(sizes[path][first[path]]) for path in ranges)
                strength = float(least) / max(float(self.train.rates(task).sum()), 1e-12)
        else:
            ones = net.tree({path: np.ones(mask.shape, bool) for path, mask in first.items()})
            kept = sum(int(mask.sum()) for mask in first.values())
            density = Budget(density=kept / sum(mask.size for mask in first.values()))
            # The c at which the first cut leaves as many weights of these layers as the budget.
            c_rate = float(DynamicSurgery(self.train, density).solved(task, pruned, ones))
            start, layers = (task.split(tree)[0] for tree in (ones, layer_numbers(net.groups)))

        def init() -> TrainState:
            state = learner.init()
            if surgery is None:
                opt_state = state.opt_state._replace(strength=jax.numpy.asarray(strength, float))
                return copied(state._replace(opt_state=opt_state))
            of_inner = begun(state.opt_state.inner, state.params, start, c_rate, layers)
            params = apply_masks(state.params, masks_of(of_inner))
            opt_state = state.opt_state._replace(inner=of_inner)
            return copied(state._replace(params=params, opt_state=opt_state))

        def finish(state: TrainState) -> Pruned:
            return self.finished(pruned, task, state, ranges)

        return learner._replace(init=init, finish=finish)

    def finished(self, pruned: Pruned, task: Task, state: TrainState, ranges: Any) -> Pruned:
        """The net under masks that meet the budget; layers that became dense again are whole."""
        net, done = Net(task), state.opt_state
        none = jax.tree.map(lambda leaf: None, state.rest)
        leaves = lambda tree: net.leaves(task.merge(tree, none))
        phase, values = leaves(done.phase), leaves(state.params)
        worth = {**values}
        if self.by == "surgery":
            # The largest of the masked weights come back, where the budget has room for them.
            worth |= {path: values[path] + hid for path, hid in leaves(done.inner.hidden).items()}
        dense = leaves(done.dense)

        def size(path: str) -> np.ndarray:
            value = np.abs(np.asarray(worth[path], float))
            # Of weights that are all 0 those stay, with their zeros, that were the largest once.
            value = np.where(value == 0, np.abs(np.asarray(dense[path], float)), value)
            # x / (1 + x) is below 1: whatever is alive stands above all that is 0 now.
            return value / (1 + value) + (np.asarray(values[path]) != 0)

        sizes = {path: size(path) for path in ranges}
        pruning = {path: of for path, of in ranges.items() if int(phase[path]) != RESTORED}
        try:
            refuse_impossible(*self.bounded(task, pruning))
        except errors.BudgetError:
            pruning = ranges  # the budget needs them all
        masks = net.tree(self.cut(task, sizes, pruning))
        variables = net.tree({**net.leaves(task.merge(state.params, state.rest)), **worth})
        return pruned._replace(variables=apply_masks(variables, masks), masks=masks)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]


@dataclasses.dataclass(frozen=True)
class Within:
    """How it takes part in training: `within_range` around the optimizer, or around surgery.

    Attributes:
        ranges: (kernel, x_min, x_max) of the layers that pay.
        every: steps between looks.
        begin: step before which no layer becomes dense again.
        tolerance: see `PruneWithinRange`.
        surgery: None: an L1 penalty.
    """

    ranges: tuple[tuple[str, float, float], ...]
    every: int
    begin: int
    tolerance: float
    surgery: Revised | None

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Any:
        """As `jprune.base.Wrap`."""
        ends = {path: np.asarray(each) for path, *each in self.ranges}
        useful: PyTree = net.task.split(net.tree(ends))[0]

        def around(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
            inner = inner if self.surgery is None else self.surgery(net, rate, key)(inner)
            return within_range(
                inner, useful, rate,
                every=self.every, begin=self.begin, tolerance=self.tolerance,
            )  # fmt: skip

        return around
