"""SSR: filters are trained towards a copy that is row-sparse, cut where the copy is 0, and trained.

    minimise L(W) + lambda g(F)  with W = F

g is the sum of the norms of all filters (l2,1) or the number of those that are not 0 (l2,0). The
augmented Lagrangian is minimised in turn (AULM): F by a closed form, the multipliers Y by a step, W
by gradient steps on L(W) + rho/2 ||W - F + Y/rho||^2, which is smooth. A filter has its biases, and
its norms' scales and shifts, in it. Masks meet gradients *prox* meanwhile: W is dense, and F has
the zeros. Then the support of F becomes the masks, and training is *frozen*.

The paper has a lambda for every layer, tuned by hand, and no budget; so has `strength`. Without it,
lambda is in every update the smallest one under which as many filters stay as the budget keeps,
which is ours. The authors' code (LeNet-5, l2,1) treats layer by layer, the others held still
(`parts`), updates Y before the first step as well, takes sum(F_j) = 0 for a filter of zeros where
||F_j|| = 0 is meant, and has no momentum of Nesterov's. Y is here rho U, U being the dual of
`jprune.sparsify.admm`.

References:
    Lin, Ji, Li, Deng, Li, Toward compact ConvNets via structure-sparsity regularized filter
    pruning, 2020, arXiv 1901.07827 [36]; settings as in the code for LeNet-5 (ShaohuiLin/SSR). The
    splitting: Boyd, Parikh, Chu, Peleato, Eckstein, 2011.
"""

import dataclasses
from collections.abc import Sequence

from jprune import allocate, errors
from jprune.base import Budget, Recipe
from jprune.blocks.kinds import as_words
from jprune.sparsify.proximal import NORMS
from jprune.stages.frame import framed
from jprune.stages.proximal import CutSupport, Regulariser, Split
from jprune.stages.splitting import Sets
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def ssr(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    norm: str = "l20",
    strength: Numbers | None = None,
    names: str | Sequence[str] | None = None,
    allocator: str = "uniform",
    affine: bool = True,
    parts: int = 1,
    rho: float | None = None,
    rounds: int | None = None,
    stop: float = 0.4,
    correct: bool = True,
) -> Recipe:
    """Training with AULM, the cut, and training under its masks, for every part of the net.

    Args:
        budget: what is kept after the last cut. With a strength it has no `multiple_of`, unless the
            cut is corrected.
        train: training of the dense net; None where it is trained already.
        finetune: AULM and the training after it; AULM at its constant rate, without weight decay.
        norm: "l20", which leaves filters that stay alone (in the paper's tables the better of the
            two at equal cost), or "l21", which is convex and shrinks them too (the code's): it
            takes many rounds, or a strength, until they have grown again.
        strength: lambda of all groups, of each in execution order (on the command line with ":"
            between), or by name; the code has 0.4, 0.15 and 0.02 for LeNet-5, which belong to a
            mean loss and rho = 1. None: what the budget says.
        names: of groups that are pruned; None: all. (On the command line with "+" between.)
        allocator: how the budget is spread where no strength is written, and what corrects a cut:
            "uniform" (every layer the same fraction) or "global_topk" (by the norms of filters).
        affine: whether scales and shifts of norms, and biases, belong to a filter. A kernel's norm
            alone says little behind a batch norm, which divides by it.
        parts: into how many the groups are divided, in execution order. 1: the regulariser is a sum
            over all layers, and everything is trained. More: each part has AULM, in which all else
            is held still, its cut, and training of all. As many as there are groups: layer by
            layer, as the code does.
        rho: of rho/2 ||W - F||^2. None: 1, as in the code, or as much more as draws the weights to
            their copy within a round; the result of l2,1 does not depend on it.
        rounds: updates of F and Y in a part. None: 40 as in the code (every 200 steps), or as many
            as have 20 steps each.
        stop: fraction of the fine-tuning epochs with AULM (code: 8,000 of 20,000 steps).
        correct: with a strength, where the copy's zeros do not meet the budget, the cut takes the
            filters too that have least of their norm left. False: that is an error.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = ssr(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"), parts=2)
        >>> [stage.name for stage in recipe if stage.name not in ("save", "dense")]
        ['split', 'prune', 'between', 'split', 'prune', 'before_finetune', 'finetune']
    """
    errors.check_words("ssr", ("norm", norm, NORMS), ("allocator", allocator, allocate.ALLOCATORS))
    errors.check_numbers(
        "ssr",
        ("stop", stop, 0 < stop < 1, "in (0, 1)"),
        ("parts", parts, parts >= 1, "1 or more"),
        ("rho", rho, rho is None or rho > 0, "above 0"),
        ("rounds", rounds, rounds is None or rounds >= 1, "1 or more"),
    )
    chosen = None if names is None else as_words(names)
    sets = Sets(budget, ("filter",), None, chosen, allocator, affine)
    regulariser = Regulariser(sets, norm, strength, parts)
    share = lambda fraction: fraction * finetune.epochs / parts
    # Constant, or the last rounds would have no W-step; decay would pull at rows beside the copy.
    during = dataclasses.replace(
        finetune, epochs=share(stop), schedule="constant", weight_decay=0.0
    )
    after = dataclasses.replace(finetune, epochs=share(1 - stop))
    stages = []
    for part in range(parts):
        stages += [Split(during, regulariser, part, rho, rounds)]
        stages += [CutSupport(regulariser, part, correct)]
        stages += [dataclasses.replace(after, name="between")]
    return framed(train, *stages[:-1], finetune=after)


METHODS = {"ssr": ssr}
