"""Edge-popup: learns scores that choose a subnet of frozen random weights."""

import dataclasses

import jax

from jprune.allocate.widths import fraction_of
from jprune.base import Budget, Learner, Masks, Pruned, Records, Task, Variables, is_none
from jprune.learners import (
    draw_scores,
    draw_weights,
    popup_task,
    to_the_end,
    top_masks,
)
from jprune.masks import apply_masks
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.train import Train
from jprune.train.net import Net
from jprune.train.step import TrainState, plain


def where_masked(masks: Masks, variables: Variables) -> Variables:
    """The leaves of variables that have a mask; None for the others."""
    only = lambda mask, leaf: None if mask is None else leaf
    return jax.tree.map(only, masks, variables, is_leaf=is_none)


def shared_fraction(task: Task, budget: Budget) -> float:
    """The fraction k of its weights that every layer keeps, so that a budget is met."""
    return fraction_of(Net(task).prunable(None, budget), budget, Net(task).cost)


@dataclasses.dataclass(frozen=True)
class Redraw:
    """A new random net: kernels drawn as the paper has them, all else as at the beginning.

    Attributes:
        budget: gives k for `scaled`; layers that its floors leave whole are drawn too.
        init: see `edge_popup`.
        scaled: see `edge_popup`.
        name: of the stage.
    """

    budget: Budget
    init: str
    scaled: bool = False
    name: str = "redraw"

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does."""
        check_prunable(task, self.budget, "weight")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The random net, nothing pruned."""
        # Everything else (norms, biases) is as at the beginning of a training.
        first, second = jax.random.split(key)
        variables = task.init(first)
        # All kernels, whatever is frozen: a whole layer is random too.
        kernels = Net(task).prunable(None, Budget(density=1.0))
        # std = sqrt(2 / (k fan-in)): under masks, the variance
        # of the outputs is then that of the inputs
        k = shared_fraction(task, self.budget) if self.scaled else None
        layers = Net(task).groups.layers
        drawn = draw_weights(second, where_masked(kernels, variables), layers, self.init, k)
        variables = jax.tree.map(
            lambda new, old: old if new is None else new, drawn, variables, is_leaf=is_none
        )
        return pruned._replace(variables=variables, masks=None), []


@dataclasses.dataclass(frozen=True)
class Popup:
    """Trains the scores s. Afterwards the net is w * m, and `extra` has the scores.

    Attributes:
        budget: of weights.
        train: how long, and how.
        name: of the records.
    """

    budget: Budget
    train: Train
    name: str = "popup"

    def check(self, task: Task) -> None:
        """Refuses an average of scores: the masks are those of the last ones."""
        del task
        self.train.takes("edge_popup", "optimizer", "warmup", "clip", "accumulate")

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: nothing is prunable.
            BudgetError: the budget asks for less than one weight a layer.
        """
        kernels = Net(task).prunable(None, self.budget)
        Net(task).kernels(kernels)  # refuses a net without any
        k = shared_fraction(task, self.budget)
        weights = where_masked(kernels, pruned.variables)
        scores = draw_scores(jax.random.fold_in(key, 1), weights, Net(task).groups.layers)
        popup, batch_size = popup_task(task, k), self.train.batch_size
        start = pruned._replace(variables={"scores": scores, "fixed": pruned.variables})
        # Optimizer and weight decay see scores alone: the
        # weights are in the part that is not trained.
        learner = plain(
            popup, start, None, self.train.optimizer_for(task), key, batch_size, decayed=True
        )

        def masked(state: TrainState) -> tuple[Variables, Masks]:
            # m = 1 for the largest k |s| of every layer
            masks = top_masks(state.params, k)
            return apply_masks(state.rest, masks), masks

        def finish(state: TrainState) -> Pruned:
            return Pruned(*masked(state), state.params, pruned.saved)

        return learner._replace(variables=lambda state: masked(state)[0], finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains the scores to the end, in memory; the last step's metrics and fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]
