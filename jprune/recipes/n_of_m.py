"""N:M: of every M consecutive inputs of an output N weights are kept, 2:4 as some hardware reads.

By default the net is trained from its start under the pattern (SR-STE): the N largest are chosen
anew in every step, and masked weights are drawn towards 0. Or the dense net is cut at once by
magnitude and fine-tuned. Kernels whose inputs are no multiple of M, or have several axes, stay
dense; a group is M consecutive channels of one tap and one output, in every layout.

Masks meet gradients *straight-through* while the pattern is learned: the net runs on w * m, and all
of w takes the step, masked weights with strength * w more. After a cut by magnitude they are
*frozen*: a masked weight is exactly 0 and takes no step.

References:
    Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li, Learning N:M fine-grained structured sparse neural
    networks from scratch, 2021, arXiv 2102.04010. Groups are those of the authors' present code and
    of the hardware, along the inputs; the paper's own nets had them along the window. Dense layers
    have the strength that is asked for (the authors' code takes its default there, whatever is).
    By magnitude: Mishra, Latorre, Pool, Stosic, Stosic, Venkatesh, Yu, Micikevicius, Accelerating
    sparse deep neural networks, 2021, arXiv 2104.08378.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.n_of_m import Pattern, PruneNOfM, RefineNOfM
from jprune.stages.reinitialise import BeginAnew
from jprune.stages.train import Train

WAYS = ("sr_ste", "magnitude")
BEGINNINGS = ("anew", "dense")
STRENGTH = 2e-4


def n_of_m(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    how: str = "sr_ste",
    n: int | None = None,
    m: int = 4,
    strength: float = STRENGTH,
    begin: str = "anew",
) -> Recipe:
    """Trains a net under an N:M pattern, or cuts the trained one to it.

    Args:
        budget: that the pattern meets. A density is N/M of the kernels that have the pattern;
            parameters and MACs are those of the whole net, of which 2:4 keeps a little more than a
            half, for a first layer of three channels stays dense. A floor of its whole size leaves
            a group dense.
        train: training of the dense net, and of the sparse one where that begins anew; None where
            the dense net is trained already.
        finetune: training of the sparse net where it begins with the dense one. Training from new
            values takes no fine-tuning.
        how: "sr_ste" (the pattern is learned) or "magnitude" (the trained net is cut).
        n: how many weights are kept of every m; None: as many as the budget allows.
        m: of how many consecutive inputs.
        strength: of the pull on masked weights, beside their gradient; 0 is the plain
            straight-through estimator.
        begin: where the pattern is learned, from "anew" (new initial values, as in the paper) or
            the "dense" net, within the fine-tuning.

    Returns:
        The recipe; it prunes weights, not units. Training under the pattern is named `refine`.

    Raises:
        ArgumentError: another word, a number out of range, or new values for a net that is read
            and not trained here.

    Example:
        >>> short = Train(10, 0.1), Train(5, 0.01, name="finetune")
        >>> [stage.name for stage in n_of_m(Budget(density=0.5), *short)]
        ['train', 'save', 'dense', 'begin_anew', 'refine', 'before_finetune']
        >>> [stage.name for stage in n_of_m(Budget(density=0.5), *short, how="magnitude")]
        ['train', 'save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    if how not in WAYS or begin not in BEGINNINGS:
        raise errors.ArgumentError(
            f"nm(how={how!r}, begin={begin!r}); how is {' or '.join(WAYS)}, begin "
            f"{' or '.join(BEGINNINGS)}."
        )
    if how == "magnitude" and (strength != STRENGTH or begin != "anew"):
        raise errors.ArgumentError(
            "nm(how='magnitude') learns no pattern: strength and begin do nothing. Leave them out."
        )
    pattern = Pattern(budget, n, m)
    if how == "magnitude":
        return framed(train, PruneNOfM(pattern), finetune=finetune)
    if begin == "dense":
        return framed(train, RefineNOfM(finetune, pattern, strength))
    if train is None:
        raise errors.ArgumentError(
            "nm trains a sparse net from its start as the dense net is trained, and this one is "
            "read from a file. Write begin=dense or how=magnitude, or leave out --weights."
        )
    anew = RefineNOfM(dataclasses.replace(train, name="refine"), pattern, strength)
    return framed(train, BeginAnew(), anew)


METHODS = {"nm": n_of_m}
