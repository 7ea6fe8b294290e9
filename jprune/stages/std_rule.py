"""Masks weights below a multiple of their layer's standard deviation."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax

from jprune import criteria, errors
from jprune.allocate.global_topk import global_topk
from jprune.base import Budget, CostModel, Groups, Masks, Pruned, Records, Schedule, Scores, Task
from jprune.blocks import weights
from jprune.sparsify.l1 import l1_decay
from jprune.stages.frame import check_prunable, record
from jprune.stages.prune import Prune
from jprune.train.net import Net


@dataclasses.dataclass(frozen=True)
class StdPrune:
    """Masks the smallest weights, measured in units of q_l std(W_l).

    Attributes:
        budget: what is kept after this stage.
        std_over: see `criteria.std_rule`.
        only: "dense" prunes dense layers alone, as far as they go when all layers are pruned at
            once; "conv" then prunes the convolutions until the budget is met; None: all at once.
        name: of the record: fractions kept, and the `multiplier` of all q that meets the budget.
    """

    budget: Budget
    std_over: str = "alive"
    only: str | None = None
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does."""
        check_prunable(task, self.budget, "weight")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks within the earlier ones; the weights that are kept do not change.

        Raises:
            ArgumentError: weights that are NaN; `only` for a net without both kinds of layers.
            BudgetError: the budget asks for less than one weight a layer.
        """
        criterion = criteria.std_rule(pruned.extra, self.std_over)
        allocator = lambda scores, budget, model: self.masks(task, scores, budget, model)
        # One order for all layers: the score is |w| / (q_l
        # std(W_l)), so a budget is one multiplier of all q.
        prune = Prune(lambda *_: criterion, allocator, self.budget, per="weight")
        after, (line,) = prune(pruned, task, key)
        before = Net(task).prunable(pruned.masks, self.budget)
        scores = Net(task).leaves(criterion.score((), pruned.variables))
        masks, alive = Net(task).leaves(after.masks), Net(task).leaves(before)
        # The score of a weight is |w| / (q_l std(W_l)): the largest that goes is the multiplier.
        gone = [scores[path][alive[path] & ~np.asarray(masks[path])] for path in alive]
        multiplier = max((float(score.max()) for score in gone if score.size), default=0.0)
        return after, [record(self.name, {**line["metrics"], "multiplier": multiplier})]

    def masks(self, task: Task, scores: Scores, budget: Budget, model: CostModel | None) -> Masks:
        """Masks by scores, of all layers or of one kind; the other kind stays as it is.

        Raises:
            ArgumentError: `only` for a net without both kinds of layers.
        """
        if self.only is None:
            return global_topk(scores, budget, model)
        by_path, conv = Net(task).leaves(scores), convolutions(Net(task).groups)
        if {path in conv for path in by_path} != {True, False}:
            kind = "convolutional" if conv & {*by_path} else "dense"
            raise errors.ArgumentError(
                f"alternate=true prunes convolutions and dense layers in turn, and this net has "
                f"{kind} layers alone. Leave it out."
            )
        # Alternating as in the paper: dense layers first, then, with them fixed, convolutions.
        # Dense layers never go in that second half: what is alive there scores +inf.
        if self.only == "conv":
            whole = lambda score: np.where(score > -np.inf, np.inf, score)
            fixed = {p: score if p in conv else whole(score) for p, score in by_path.items()}
            return global_topk(Net(task).tree(fixed), budget, model)
        chosen = Net(task).leaves(global_topk(scores, budget, model))
        fixed = {p: by_path[p] > -np.inf if p in conv else mask for p, mask in chosen.items()}
        return Net(task).tree(fixed)


def convolutions(groups: Groups) -> set[str]:
    """Kernels with a window; the others are those of dense layers."""
    return {path for path, layer in groups.layers.items() if layer.window}


@dataclasses.dataclass(frozen=True)
class OnlyMoves:
    """A `Wrap` that trains one kind of layers, and holds all others still.

    Attributes:
        part: "conv", or "dense". Biases and norms move with the layer that they stand behind.
    """

    part: str

    def __call__(
        self, net: Net, rate: Schedule, key: jax.Array
    ) -> Callable[[optax.GradientTransformation], optax.GradientTransformationExtraArgs]:
        """See `jprune.base.Wrap`."""
        del rate, key
        groups, conv = net.groups, convolutions(net.groups)
        owned = {path: {*layer.owned} for path, layer in groups.layers.items()}
        # A leaf that both kinds own goes with the convolutions.
        of_conv = set().union(*(leaves for path, leaves in owned.items() if path in conv))
        of_dense = set().union(*(leaves for path, leaves in owned.items() if path not in conv))
        # What no layer owns, such as a norm on a stream, goes with the convolutions.
        dense = of_dense - of_conv
        still = net.tree({path: (path in dense) == (self.part == "conv") for path in groups.leaves})
        rests = net.task.split(still)[0]
        # Behind the optimizer: its momentum goes on, but moves nothing of the layers that rest.
        return lambda inner: optax.chain(inner, optax.masked(optax.set_to_zero(), rests))


@dataclasses.dataclass(frozen=True)
class L1Penalty:
    """A `Wrap` with an L1 penalty on kernels, by its proximal step (see `sparsify.l1_decay`).

    Under SGD, with any momentum, weights come to rest at a minimum of loss + strength sum |w|.
    Under an optimizer that divides gradients by their size, the penalty is decoupled from them.

    Attributes:
        strength: of the penalty.
    """

    strength: float

    def __call__(
        self, net: Net, rate: Schedule, key: jax.Array
    ) -> Callable[[optax.GradientTransformation], optax.GradientTransformationExtraArgs]:
        """See `jprune.base.Wrap`."""
        del key
        # Kernels alone: biases and norms are not what is pruned.
        penalty = l1_decay(weights(net.groups), self.strength, rate)
        return lambda inner: optax.chain(inner, penalty)
