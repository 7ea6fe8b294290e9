"""Approximates every weight of a net by the sum of a subset of random numbers."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Budget, Pruned, Records, Task
from jprune.graph import Site, intercept
from jprune.search.subset_sums import best_subsets
from jprune.stages.frame import check_prunable, record
from jprune.train.net import Net
from jprune.train.step import stream


def products_of(tolerance: float, c: float) -> int:
    """How many random products approximate a weight: int(c round(log2(1 / tolerance))).

    Raises:
        ArgumentError: fewer than 1, or more than 30, whose subsets are too many to look at.

    Example:
        >>> products_of(0.01, 3)
        21
    """
    # n = int(c round(log2(1 / epsilon)))
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

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` and `refuse_other_layers` do."""
        check_prunable(task, Budget(density=1.0), "weight")
        refuse_other_layers(task)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The approximating net.

        Raises:
            ArgumentError: a net that has more than dense layers, one that reads negative values, or
                weights that are NaN.
        """
        n = products_of(self.tolerance, self.c)
        # All kernels: the construction is of the whole net, whatever is frozen.
        kernels = Net(task).kernels(Net(task).prunable(None, Budget(density=1.0)))
        refuse_unfit(task, pruned, kernels, key)
        leaves = Net(task).leaves(pruned.variables)
        draws = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        count, misses = 0, []
        for path in kernels:
            layer = Net(task).groups.layers[path]
            # [inputs, outputs] in float64: errors are compared with the tolerance.
            weights = layer.matrix(np.asarray(leaves[path], np.float64))[:, 0]
            sums = np.empty_like(weights)
            for output, column in enumerate(weights.T):
                # p_k ~ U[min w, max w], k = 1..n
                products = draws.uniform(column.min(), column.max(), n)
                # w is approximated by the sum of p_k = a_k u_k over the best subset of k.
                chosen = best_subsets(products, column)
                sums[:, output] = chosen @ products
                count += int(chosen.sum())
            # |w - sum p_k|, for all weights: epsilon is a bound on each of them
            misses.append(np.abs(sums - weights).ravel())
            leaves[path] = jnp.asarray(layer.array(sums[:, None]), leaves[path].dtype)
        error = np.concatenate(misses)
        metrics = {
            "products": n,
            "random": n * error.size,
            "kept": count,
            "within": float(np.mean(error <= self.tolerance)),
            "error": float(error.max()),
        }
        pruned = pruned._replace(variables=Net(task).tree(leaves))
        return pruned, [record(self.name, metrics)]


def refuse_other_layers(task: Task) -> None:
    """Refuses nets with more than dense layers.

    Raises:
        ArgumentError: it is one; the message says what it has.
    """
    net = Net(task)
    layers = net.groups.layers
    dense = [path for path, layer in layers.items() if layer.plain and not layer.window]
    others = [path for path in net.groups.kernels if path not in dense]
    # A norm, or another kind of layer, would need a gadget of its own.
    norms = {role for layer in layers.values() for role in layer.affine.values()} - {"shift"}
    if others or norms or jax.tree.leaves(task.split(net.shapes)[1]):
        raise errors.ArgumentError(
            f"subset_sum fits nets of dense layers alone, such as lenet300; {task.name} has "
            f"{others[0] if others else 'norms'}."
        )


def refuse_unfit(task: Task, pruned: Pruned, kernels: tuple[str, ...], key: jax.Array) -> None:
    """Refuses nets of other layers, that read negative values, or with weights that are NaN.

    Raises:
        ArgumentError: it is one; the message says why.
    """
    refuse_other_layers(task)
    Net(task).refuse_nan(pruned.variables, kernels)
    least: dict[str, float] = {}

    def look(site: Site, value: jax.Array, carry: None) -> tuple[jax.Array, None]:
        least[site.layer] = float(value.min())
        return value, carry

    size = min(256, task.data.sizes["train"])
    (batch,) = itertools.islice(stream(task.data, size, key), 1)
    # relu(a x) = a x only for a, x >= 0: x is checked on a batch, its range is not in the weights.
    intercept(task.fn, Net(task).groups, look)(pruned.variables, None, batch["image"])
    negative = [layer for layer, value in least.items() if value < 0]
    if negative:
        raise errors.ArgumentError(
            f"subset_sum needs values that are not negative, and {negative[0]} reads "
            f"{least[negative[0]]:.3g}: the construction stands on images in [0, 1] and on ReLU."
        )
