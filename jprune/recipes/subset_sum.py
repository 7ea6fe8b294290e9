"""A trained net inside a random one: every weight is the sum of a subset of random numbers.

Nothing is trained. A weight w of the target is approximated by hidden units that read one input
each, x -> relu(a_k x) -> u_k for k = 1 .. n, of which a subset is kept. With x >= 0 and a_k > 0
they say (sum of kept a_k u_k) x: the question is which subset of the products p_k = a_k u_k adds up
to w, and n ~ log(1 / tolerance) products are enough. No gradient meets a mask here.

References:
    Malach, Yehudai, Shalev-Shwartz, Shamir, Proving the lottery ticket hypothesis: pruning is all
    you need, 2020, arXiv 2002.00585 [10]. Subset sums: Pensia, Rajput, Nagle, Vishwakarma,
    Papailiopoulos, Optimal lottery tickets via SubsetSum, 2020, arXiv 2006.07990; the constants are
    those of their code. Theirs measured the target net; here it is the approximating one.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Budget, Pruned, Recipe, Records, Task
from jprune.graph import Site, intercept
from jprune.recipes._layers import as_tree, by_path, kernels_in_order, refuse_nan
from jprune.recipes._nets import groups_of, prunable_weights
from jprune.recipes._subset_sums import best_subsets
from jprune.recipes._training import stream
from jprune.recipes.stages import Evaluate, Save, Train, record


def subset_sum(
    budget: Budget,
    train: Train | None,
    *,
    tolerance: float = 0.01,
    c: float = 3.0,
) -> Recipe:
    """Replaces every weight of a net of dense layers by the nearest subset sum.

    The result is the net that the pruned random one computes: its weights are the sums. Biases are
    kept (the paper's nets have none).

    Args:
        budget: has to be 1: this proves that a random net holds the trained one, and makes no net
            smaller. The records say how many random weights there are and how many are kept.
        train: of the target net; None where it is trained already.
        tolerance: to which a weight should be met; it says how many products there are.
        c: n = int(c round(log2(1 / tolerance))) products a weight, 21 by default.

    Returns:
        The recipe.

    Raises:
        ArgumentError: a budget below 1, or a tolerance or c out of range.

    Example:
        >>> [stage.name for stage in subset_sum(Budget(density=1.0), Train(10, 0.1))]
        ['train', 'save', 'dense', 'approximate', 'before_finetune']
    """
    if float(budget.value) != 1:
        raise errors.ArgumentError(
            f"subset_sum got Budget({budget.kind}={budget.value}), and it makes no net smaller: it "
            f"finds the trained net inside a random one. Write --{budget.kind} 1."
        )
    products_of(tolerance, c)
    return (
        *(() if train is None else (train,)),
        Save("dense"),
        Evaluate("test", name="dense"),
        Approximate(tolerance, c),
        Evaluate("validation", name="before_finetune"),
    )


def products_of(tolerance: float, c: float) -> int:
    """How many random products stand for a weight: int(c round(log2(1 / tolerance))).

    Raises:
        ArgumentError: fewer than 1, or more than 30, whose subsets are too many to look at.

    Example:
        >>> products_of(0.01, 3)
        21
    """
    if not 0 < tolerance < 1 or not 1 <= (n := int(c * round(math.log2(1 / tolerance)))) <= 30:
        raise errors.ArgumentError(
            f"subset_sum(tolerance={tolerance}, c={c}); the tolerance is in (0, 1), and c round("
            "log2(1 / tolerance)) products are from 1 to 30. Write c=3."
        )
    return n


@dataclasses.dataclass(frozen=True)
class Approximate:
    """Puts the nearest subset sum in place of every weight.

    The products are drawn evenly between the smallest and the largest weight of an output, one set
    an output, as in the authors' code.

    Attributes:
        tolerance: see `subset_sum`.
        c: see `subset_sum`.
        name: of the record: `products` a weight, `random` weights and those `kept`, the fraction of
            weights `within` the tolerance, and the largest `error`.
    """

    tolerance: float
    c: float
    name: str = "approximate"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The approximating net.

        Raises:
            ArgumentError: a net that has more than dense layers, one that reads negative values, or
                weights that are NaN.
        """
        n = products_of(self.tolerance, self.c)
        kernels = kernels_in_order(task, prunable_weights(task, None, Budget(density=1.0)))
        refuse_unfit(task, pruned, kernels, key)
        leaves = by_path(task, pruned.variables)
        draws = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        kept, misses = 0, []
        for path in kernels:
            weights = np.asarray(leaves[path], np.float64)
            sums = np.empty_like(weights)
            for output, column in enumerate(weights.T):
                products = draws.uniform(column.min(), column.max(), n)
                chosen = best_subsets(products, column)
                sums[:, output] = chosen @ products
                kept += int(chosen.sum())
            misses.append(np.abs(sums - weights).ravel())
            leaves[path] = jnp.asarray(sums, leaves[path].dtype)
        error = np.concatenate(misses)
        metrics = {
            "products": n,
            "random": n * error.size,
            "kept": kept,
            "within": float(np.mean(error <= self.tolerance)),
            "error": float(error.max()),
        }
        pruned = pruned._replace(variables=as_tree(task, leaves))
        return pruned, [record(self.name, metrics)]


def refuse_unfit(task: Task, pruned: Pruned, kernels: tuple[str, ...], key: jax.Array) -> None:
    """Refuses nets that the construction does not fit.

    Raises:
        ArgumentError: it is one; the message says why.
    """
    leaves = by_path(task, pruned.variables)
    others = [path for path in kernels if leaves[path].ndim != 2]
    if others or task.split(pruned.variables)[1]:
        raise errors.ArgumentError(
            f"subset_sum fits nets of dense layers alone, such as lenet300; {task.name} has "
            f"{others[0] if others else 'norms'}."
        )
    refuse_nan(task, pruned.variables, kernels)
    least: dict[str, float] = {}

    def look(site: Site, value: jax.Array, carry: None) -> tuple[jax.Array, None]:
        least[site.layer] = float(value.min())
        return value, carry

    size = min(256, task.data.sizes["train"])
    (batch,) = itertools.islice(stream(task.data, size, key), 1)
    intercept(task.fn, groups_of(task), look)(pruned.variables, None, batch["image"])
    negative = [layer for layer, value in least.items() if value < 0]
    if negative:
        raise errors.ArgumentError(
            f"subset_sum needs values that are not negative, and {negative[0]} reads "
            f"{least[negative[0]]:.3g}: the construction stands on images in [0, 1] and on ReLU."
        )


METHODS = {"subset_sum": subset_sum}
