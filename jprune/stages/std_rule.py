"""Weights below a multiple of their layer's standard deviation go."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from jprune import allocate, criteria, errors
from jprune.base import Budget, CostModel, Masks, Pruned, Records, Scores, Task
from jprune.sparsify.l1 import l1_decay
from jprune.stages.frame import record
from jprune.stages.prune import Prune
from jprune.stages.train import SparsifierOf
from jprune.train.net import Net


@dataclasses.dataclass(frozen=True)
class StdPrune:
    """Masks the smallest weights in units of q_l std(W_l).

    Attributes:
        budget: after this.
        std_over: see `criteria.std_rule`.
        only: "dense" prunes dense layers alone, to the share that they have when all are pruned;
            "conv" then makes the convolutions meet the budget; None prunes all layers at once.
        name: of the record: fractions kept, and the `multiplier` of all q that meets the budget.
    """

    budget: Budget
    std_over: str = "alive"
    only: str | None = None
    name: str = "prune"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks nested in those before; survivors keep their values.

        Raises:
            ArgumentError: weights that are NaN; `only` for a net without both kinds of layers.
            BudgetError: the budget asks for less than one weight a layer.
        """
        criterion = criteria.std_rule(pruned.extra, self.std_over)
        prune = Prune(lambda *_: criterion, self._allocate, self.budget, per="weight")
        after, (seen,) = prune(pruned, task, key)
        before = Net(task).prunable(pruned.masks, self.budget)
        scores = Net(task).leaves(criterion.score((), pruned.variables))
        masks, alive = Net(task).leaves(after.masks), Net(task).leaves(before)
        gone = [scores[path][alive[path] & ~np.asarray(masks[path])] for path in alive]
        multiplier = max((float(score.max()) for score in gone if score.size), default=0.0)
        return after, [record(self.name, {**seen["metrics"], "multiplier": multiplier})]

    def _allocate(self, scores: Scores, budget: Budget, model: CostModel | None) -> Masks:
        if self.only is None:
            return allocate.global_topk(scores, budget, model)
        kinds = {"conv" if leaf.ndim > 2 else "dense" for leaf in jax.tree.leaves(scores)}
        if len(kinds) < 2:
            raise errors.ArgumentError(
                f"alternate=true prunes convolutions and dense layers in turn, and this net has "
                f"{kinds.pop()} layers alone. Leave it out."
            )
        if self.only == "conv":
            whole = lambda leaf: np.where(leaf > -np.inf, np.inf, leaf) if leaf.ndim == 2 else leaf
            return allocate.global_topk(jax.tree.map(whole, scores), budget, model)
        masks = allocate.global_topk(scores, budget, model)
        return jax.tree.map(lambda m, s: s > -np.inf if m.ndim > 2 else m, masks, scores)


def only_moves(part: str) -> SparsifierOf:
    """For `Train`: nothing moves but one kind of layers.

    Args:
        part: "conv", the convolutions and the norms, or "dense".
    """
    conv = part == "conv"

    def still(params: Any) -> Any:
        ranks = {
            path[:-1]: leaf.ndim
            for path, leaf in jax.tree.leaves_with_path(params)
            if leaf.ndim > 1
        }
        # Norms have no kernel of their own and go with the convolutions.
        rests = lambda path, leaf: (ranks.get(path[:-1], 3) > 2) != conv
        return jax.tree_util.tree_map_with_path(rests, params)

    return lambda *_: lambda rate: optax.masked(optax.set_to_zero(), still)


def l1_penalty(strength: float) -> SparsifierOf:
    """For `Train`: an L1 penalty on kernels, by its proximal step (see `sparsify.l1_decay`)."""
    return lambda *_: lambda rate: l1_decay(strength, rate)
