"""Optimal brain surgeon: delete a weight, move all others, until the budget is met.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Hassibi, Stork, Second order derivatives for network pruning: optimal brain surgeon, 1993,
    Advances in Neural Information Processing Systems 5 [2].
"""

import dataclasses
import itertools

import jax
import numpy as np

from jprune import errors
from jprune.allocate import price_of
from jprune.base import Budget, Masks, Pruned, Recipe, Records, Task
from jprune.curvature import Rows
from jprune.masks import intersect
from jprune.recipes._nets import cost_of, of_single_weights, prunable_weights, weight_masks
from jprune.recipes._rounds import in_rounds
from jprune.recipes._training import stream
from jprune.recipes.stages import Evaluate, Save, Train, fractions, record
from jprune.reconstruct.obs import obs as operate


def obs(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    block: int | None = 128,
    alpha: float = 1e-4,
    curvature: str = "gauss_newton",
    samples: int | None = 1,
    stop: float | None = None,
    rounds: int = 1,
    batches: int = 30,
    batch_size: int = 64,
) -> Recipe:
    """Surgery on single weights of the whole net, in one round or with training in between.

    The paper prunes until a deletion costs too much, and only then trains on: that is `stop` with
    several rounds. The last round goes down to the budget whatever it costs.

    Args:
        budget: what is kept after the last round, of weights (a density is that of all kernels).
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        block: largest block of the inverse Hessian, within a layer; None is the paper's inverse of
            all weights, for nets of up to some 4,000.
        alpha: damping; 1e-8 to 1e-4 in the paper.
        curvature: "gauss_newton", or "fisher" (the empirical one).
        samples: rows of the Gauss-Newton matrix an example, drawn; None: all, one an output. The
            empirical Fisher has one row an example and takes None.
        stop: the paper's rule, for all rounds but the last: go no further once a deletion raises
            the loss by more than this fraction; None: go down to the round's budget.
        rounds: how often is pruned.
        batches: that the Hessian is made of.
        batch_size: examples in one.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: less than one round; what cannot be said of blocks and rows is refused when
            it runs.

    Example:
        >>> recipe = obs(Budget(density=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    if rounds < 1:
        raise errors.ArgumentError(f"obs(rounds={rounds}); it is 1 or more.")
    kept = float(budget.value)
    goals = [*(kept ** (number / rounds) for number in range(1, rounds)), kept]
    surgery = Surgery(budget, block, alpha, curvature, samples, stop, batches, batch_size)

    def prune(wanted: Budget) -> Surgery:
        last = wanted.value == budget.value
        return dataclasses.replace(surgery, budget=wanted, stop=None if last else stop)

    pruning, last = in_rounds(prune, budget, goals, finetune)
    return (
        *(() if train is None else (train,)),
        Save("dense"),
        Evaluate("test", name="dense"),
        *pruning,
        Evaluate("validation", name="before_finetune"),
        last,
    )


@dataclasses.dataclass(frozen=True)
class Surgery:
    """Deletes single weights and moves the others, until a budget is met or the stop rule says so.

    Attributes:
        budget: what may be kept, of the dense net.
        block: largest block of the inverse Hessian; None: all weights.
        alpha: damping.
        curvature: "gauss_newton" or "fisher".
        samples: rows an example; None: all.
        stop: largest increase of the loss by one deletion, over the loss; None: any.
        batches: that the Hessian is made of.
        batch_size: examples in one.
        name: of the record.
    """

    budget: Budget
    block: int | None = 128
    alpha: float = 1e-4
    curvature: str = "gauss_newton"
    samples: int | None = 1
    stop: float | None = None
    batches: int = 30
    batch_size: int = 64
    name: str = "prune"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """New weights and masks, and a record of the fractions kept and the loss predicted."""
        alive = prunable_weights(task, pruned.masks, self.budget)
        before = weight_masks(task, pruned.masks)
        data, draws = jax.random.split(key)
        size = min(self.batch_size, task.data.sizes["train"])
        rows = Rows(self.curvature, self.samples, None if self.samples is None else draws)
        done = operate(
            task.fn,
            task.loss,
            pruned.variables,
            itertools.islice(stream(task.data, size, data), self.batches),
            lambda masks: self.more(masks, alive, task),
            candidates=alive,
            masks=before,
            alpha=self.alpha,
            block=self.block,
            rows=rows,
            stop=self.stop,
        )
        masks = done.masks if before is None else intersect(before, done.masks)
        predicted = {"predicted_increase": float(done.losses.sum()), "loss": done.loss}
        seen = record(self.name, {**fractions(task, masks), **predicted})
        return pruned._replace(variables=done.variables, masks=masks), [seen]

    def more(self, masks: Masks, alive: Masks, task: Task) -> int:
        """How many weights to delete before asking again."""
        sizes = [np.size(mask) for mask in jax.tree.leaves(masks)]
        left = sum(int(np.sum(mask)) for mask in jax.tree.leaves(masks))
        if self.budget.kind == "density":
            goal = sum(sizes) - round((1 - float(self.budget.value)) * sum(sizes))
            return left - goal
        price = price_of(alive, of_single_weights(self.budget), cost_of(task))(masks)
        excess = price - float(self.budget.value) - 1e-9
        # Prices differ from layer to layer: half of the way each time, and one by one at the end.
        return 0 if excess <= 0 else max(1, int(left * excess / price / 2))


METHODS = {"obs": obs}
