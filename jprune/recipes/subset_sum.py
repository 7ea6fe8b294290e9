"""A trained net inside a random one: every weight is the sum of a subset of random numbers.

Nothing is trained. A weight w of the target is approximated by hidden units that read one input
each, x -> relu(a_k x) -> u_k for k = 1 .. n, of which a subset is kept. With x >= 0 and a_k > 0
their output is (sum of kept a_k u_k) x: the question is which subset of the products p_k = a_k u_k
adds up to w, and n ~ log(1 / tolerance) products are enough. No gradient meets a mask here.

References:
    Malach, Yehudai, Shalev-Shwartz, Shamir, Proving the lottery ticket hypothesis: pruning is all
    you need, 2020, arXiv 2002.00585 [10]. Subset sums: Pensia, Rajput, Nagle, Vishwakarma,
    Papailiopoulos, Optimal lottery tickets via SubsetSum, 2020, arXiv 2006.07990; the constants are
    those of their code. Theirs measured the target net; here it is the approximating one.
"""

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.subset_sums import Approximate, products_of
from jprune.stages.train import Train


def subset_sum(
    budget: Budget, train: Train | None, *, tolerance: float = 0.01, c: float = 3.0
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
    return framed(train, Approximate(tolerance, c))


METHODS = {"subset_sum": subset_sum}
