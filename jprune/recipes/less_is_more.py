"""Less is more: neurons are brought to exactly 0 while the net trains from scratch.

    F(W) = E_D(W) + sum_l lambda_l g(W_l)

A neuron is a filter with its bias: what makes a unit, over all producers that are coupled. g is the
sum of the neurons' norms ("group"), or the mean over the modes of a kernel of its nuclear norms
("low_rank"). Every step goes down the loss and then takes the proximal step of g (forward-backward
splitting). Masks meet gradients *prox* meanwhile: there is no mask, and a neuron that is 0 has no
gradient behind a ReLU. Then the zeros are read off as masks, and fine-tuning is *frozen*.

The paper chooses every lambda on validation data, and has no budget, no batch norms and no code.
Here a lambda that is not written is one that has the time to act, a budget is met by a cut, the
scales and shifts of norms belong to their neurons, and the proximal step is that of SGD with its
momentum. Low rank counts biases as one more input of a matrix, and leaves them out of tensors,
which have no place for them.

References:
    Zhou, Alvarez, Porikli, Less is more: towards compact CNNs, 2016 [14]. The splitting: Combettes,
    Pesquet, Proximal splitting methods in signal processing, 2011, arXiv 0912.3522.
"""

import dataclasses
from collections.abc import Sequence

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.blocks.kinds import as_words, words_of
from jprune.stages.frame import framed
from jprune.stages.group_lasso import Penalty, RankPenalty, ReadOff, Shrink
from jprune.stages.reinitialise import BeginAnew
from jprune.stages.train import Train
from jprune.train.numbers import Numbers

CONSTRAINTS = ("group", "low_rank")


def less_is_more(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    constraint: str | Sequence[str] = "group",
    strength: Numbers | None = None,
    names: str | Sequence[str] | None = None,
    rank_strength: Numbers | None = None,
    kernels: str | Sequence[str] | None = None,
    every: int = 1,
    how: str = "prox",
    begin: str = "scratch",
    stop: float = 0.6,
    correct: bool = True,
) -> Recipe:
    """Training under the constraints, then training under the masks of the neurons that are 0.

    Args:
        budget: what may be kept. A floor of its whole size leaves a group without a penalty.
        train: training of the dense net, and of the sparse one beside it; None where the dense net
            is trained already, and `begin="dense"`.
        finetune: the training under the masks; with `begin="dense"` also the one before it.
        constraint: "group", "low_rank", or both (on the command line "group+low_rank"). A low rank
            by itself makes no neuron 0: the cut then does that.
        strength: lambda of the norms: of all groups, of each in execution order, or by name. None:
            for every group, what would bring a neuron of mean norm to 0 in half of the training if
            the loss did not hold it; no group then loses more than the budget and the norms at the
            beginning take.
        names: of groups that are penalised; None: all. (On the command line with "+" between.)
        rank_strength: lambda of the nuclear norms: of all kernels, of each in execution order, or
            by name. None: as `strength`, of singular values.
        kernels: whose rank is penalised; None: all but the last layer's.
        every: steps from one proximal step of the nuclear norms to the next, which is so many times
            as long: each takes singular value decompositions.
        how: "prox", or "subgradient", which makes no zeros by itself and shows what the proximal
            step is for.
        begin: "scratch" (the paper: from new initial values) or "dense" (from the dense net).
        stop: with "dense", the fraction of the fine-tuning epochs under the penalty.
        correct: where too few neurons are 0, cut those too that have least of their norm left.
            False is the paper's: only what is 0 goes, and a budget out of reach is an error.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, a number out of range, or a net that is read and not trained,
            with `begin="scratch"`.

    Example:
        >>> recipe = less_is_more(Budget(macs=0.5), Train(10, 0.1), Train(4, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe if stage.name not in ("save", "dense")]
        ['train', 'begin_anew', 'shrink', 'prune', 'before_finetune', 'finetune']
    """
    chosen = words_of(constraint, CONSTRAINTS, "constraint")
    if begin not in ("scratch", "dense") or not 0 < stop < 1:
        raise errors.ArgumentError(
            f"less_is_more(begin={begin!r}, stop={stop}); begin is scratch or dense, stop in "
            "(0, 1)."
        )
    if train is None and begin == "scratch":
        raise errors.ArgumentError(
            "less_is_more trains a net from scratch, and this one is read and not trained here. "
            "Write begin='dense' to begin with its weights, or leave out --weights."
        )
    for name, own, word in (
        ("strength", strength is not None or names is not None or how != "prox", "group"),
        ("rank_strength", rank_strength is not None or kernels is not None, "low_rank"),
    ):
        if own and word not in chosen:
            raise errors.ArgumentError(
                f"less_is_more(constraint={constraint!r}) does not look at {name} and what belongs "
                f"to it. Write constraint={word!r} or both, or leave it out."
            )
    penalty = Penalty(
        ("filter",),
        strength if "group" in chosen else 0.0,
        None if names is None else as_words(names),
        how,
        shifts=True,
    )
    wanted = None if kernels is None else as_words(kernels)
    rank = RankPenalty(rank_strength, wanted, every) if "low_rank" in chosen else None
    # In place of the dense training; from the dense net, it takes a part of the fine-tuning.
    during, after = train or finetune, finetune
    if begin == "dense":
        during = dataclasses.replace(finetune, epochs=stop * finetune.epochs)
        after = dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs)
    return framed(
        train,
        *((BeginAnew(),) if begin == "scratch" else ()),
        Shrink(during, budget, penalty, rank),
        ReadOff(budget, penalty, correct),
        finetune=after,
    )


METHODS = {"less_is_more": less_is_more}
