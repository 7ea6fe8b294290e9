"""The stages of dynamic network surgery: training with moving masks, and a budget at the end."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import allocate, errors
from jprune.base import Budget, Learner, Masks, Pruned, PyTree, Records, Schedule, Task, is_none
from jprune.graph.shrink.concrete import copied
from jprune.masks import apply_masks
from jprune.sparsify import dynamic_surgery, masks_of
from jprune.sparsify.surgery import CUT, begun
from jprune.sparsify.thresholds import layer_numbers, moments_of
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_name
from jprune.train.step import TrainState, plain


@dataclasses.dataclass(frozen=True)
class DynamicSurgery:
    """Training with masks that are revised as the weights move.

    Afterwards `extra` has, as trees like the variables, the values of the masked weights
    (`hidden`) and the layers' `thresholds`.

    Attributes:
        train: how long, and how.
        budget: met by the first cut where `c_rate` is None; its floors leave groups whole.
        c_rate: see `dns`; one number, or one for each kernel.
        gamma: see `dns`.
        power: see `dns`.
        biases: see `dns`.
        splice: see `dns`.
        name: of the records.
    """

    train: Train
    budget: Budget
    c_rate: Numbers | None = None
    gamma: float = 1e-4
    power: float = 1.0
    biases: bool = True
    splice: bool = True
    name: str = "surgery"

    def check(self, task: Task) -> None:
        """Refuses an average of masks that move; raises what `check_prunable` does."""
        self.train.takes("dynamic surgery", "optimizer", "warmup", "clip", "accumulate")
        check_prunable(task, self.budget, "weight")

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: weights that are NaN, nothing to prune, a c for another number of layers.
            BudgetError: the budget asks for less than one weight a layer.
        """
        start, layers = self.start(task, pruned.masks), layer_numbers(Net(task).groups)
        task = self.train.taught(task, pruned)
        # From the dense weights: thresholds are fixed before the first step, and never follow.
        optimizer, rates = self.train.optimizer_for(task), self.rates(task, pruned, start)
        revised = Revised(self.gamma, self.power, optimizer.taken, self.splice)
        learner = plain(task, pruned, None, optimizer, key, self.train.batch_size, revised)

        def init() -> TrainState:
            state = learner.init()
            of_params, c_rate, numbers = (task.split(tree)[0] for tree in (start, rates, layers))
            # Masks go into the state, which is data: nets with
            # other masks share the compiled step.
            opt_state = begun(state.opt_state, state.params, of_params, c_rate, numbers)
            state = state._replace(
                params=apply_masks(state.params, masks_of(opt_state)), opt_state=opt_state
            )
            return copied(state)  # a step gives them away, masks included

        def finish(state: TrainState) -> Pruned:
            none = jax.tree.map(lambda leaf: None, state.rest)
            whole = lambda tree: task.merge(tree, none)
            done = state.opt_state
            extra = {"hidden": whole(done.hidden), "thresholds": whole(done.thresholds)}
            masks = whole(masks_of(done))
            return Pruned(learner.variables(state), masks, extra, pruned.saved)

        return learner._replace(init=init, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Operates to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)

    def start(self, task: Task, masks: Masks) -> Masks:
        """Masks of what may be cut, all True unless something was pruned before."""
        kernels = Net(task).leaves(Net(task).prunable(masks, self.budget))
        if self.biases:
            groups = Net(task).groups
            # The authors' code masks a bias like a weight of its layer.
            biases = [groups.layers[path].bias for path in kernels]
            kernels |= {
                path: np.ones(groups.leaves[path].shape, bool)
                for path in biases
                # A bias counts only where it is added first behind the
                # kernel: then it is of the layer's scale.
                if path is not None
            }
        return Net(task).tree(kernels)

    def rates(self, task: Task, pruned: Pruned, start: Masks) -> PyTree:
        """The threshold parameter c of every leaf that may be cut, a tree like the variables."""
        kernels = Net(task).kernels(Net(task).prunable(pruned.masks, self.budget))
        Net(task).refuse_nan(pruned.variables, kernels)
        if self.c_rate is None:
            # One c for all layers: layers differ by mu and sd already.
            c = dict.fromkeys(kernels, self.solved(task, pruned, start))
        else:
            c = per_name(self.c_rate, kernels, "c_rate")
        number_of = Net(task).leaves(layer_numbers(Net(task).groups))
        by_layer = {number_of[path]: value for path, value in c.items()}
        paths = Net(task).leaves(start)
        return Net(task).tree({path: by_layer[number_of[path]] for path in paths})

    def solved(self, task: Task, pruned: Pruned, start: Masks) -> float:
        """The c, the same for all layers, with which the first cut meets the budget."""
        mean, std = moments_of(pruned.variables, start, layer_numbers(Net(task).groups))

        def cut_at(mask: Any, weight: Any, mu: Any, sd: Any) -> Any:
            if mask is None:
                return None
            # |w| <= a (mu + c sd) holds from c = (|w| / a - mu) / sd on: the c that cuts a weight
            at = (jnp.abs(weight) / CUT - mu) / jnp.where(sd > 0, sd, 1.0)
            return np.where(mask, at, -np.inf)

        scores = jax.tree.map(cut_at, start, pruned.variables, mean, std, is_leaf=is_none)
        masks = allocate.global_topk(scores, self.budget.of_weights(), Net(task).cost)
        # The largest c among what goes: |w| <= a t with it cuts these, and no more.
        gone = jax.tree.map(
            lambda mask, score: np.max(score[~mask], initial=-np.inf), masks, scores
        )
        return max(jax.tree.leaves(gone))


@dataclasses.dataclass(frozen=True)
class Revised:
    """How surgery takes part in training: around the optimizer, `dynamic_surgery` revises masks.

    Masks, thresholds and the key stand in its state; nothing is masked at first.

    Attributes:
        gamma: see `dns`.
        power: see `dns`.
        stop: step from which the masks are fixed.
        splice: see `dns`.
    """

    gamma: float
    power: float
    stop: int
    splice: bool

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate
        nothing = jax.tree.map(lambda leaf: None, net.task.split(net.shapes)[0])
        layers = net.task.split(layer_numbers(net.groups))[0]
        return lambda inner: dynamic_surgery(
            inner, nothing, 0.0, key,
            gamma=self.gamma, power=self.power, stop=self.stop, splice=self.splice, layers=layers,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SettleSurgery:
    """Fixes the masks after surgery so that they meet a budget.

    If too many weights are alive, those with the smallest |w| / t go. If too few are, the largest
    of the masked ones come back, with the values that surgery has trained for them.

    Attributes:
        budget: that must be met; None leaves the masks as they are.
        name: of the record: fractions kept.
    """

    budget: Budget | None
    name: str = "settle"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its last masks.

        Raises:
            BudgetError: a layer is empty, or the budget asks for less than one weight a layer.
        """
        del key
        masks, hidden = pruned.masks, pruned.extra["hidden"]
        if self.budget is not None:

            def score(mask: Any, weight: Any, worth: Any, threshold: Any) -> Any:
                if mask is None:
                    return None
                size = jnp.abs(jnp.where(mask, weight, worth)) / jnp.where(
                    threshold > 0, threshold, 1.0
                )
                # x / (1 + x) rises from 0 to 1: with 1 more where a weight is alive, all that is
                # alive stands above all that is masked, each in the order of |w| / t.
                return np.asarray(size / (1 + size) + mask)

            scores = jax.tree.map(
                score, masks, pruned.variables, hidden, pruned.extra["thresholds"], is_leaf=is_none
            )
            budget = self.budget.of_weights()
            masks = allocate.global_topk(scores, budget, Net(task).cost)
        by_leaf = Net(task).leaves(masks)
        is_kernel = Net(task).leaves(Net(task).is_kernel)
        # An empty kernel cuts the net; biases may be empty.
        if kernels := [path for path, m in by_leaf.items() if is_kernel[path] and not np.any(m)]:
            raise errors.BudgetError(
                f"surgery has cut all of {kernels[0]}: its thresholds are too high. Write a "
                "smaller c_rate, or correct=true for the budget to be met in the end."
            )
        # Values of alive weights stand in the net, those of
        # masked ones in `hidden`, which is 0 elsewhere.
        whole = jax.tree.map(
            lambda mask, weight, worth: (
                weight if mask is None else jnp.where(worth == 0, weight, worth)
            ),
            masks, pruned.variables, hidden, is_leaf=is_none,
        )  # fmt: skip
        variables = apply_masks(whole, masks)
        line = record(self.name, fractions(task, masks))
        return Pruned(variables, masks, None, pruned.saved), [line]
