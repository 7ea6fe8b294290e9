"""Sparse training with masks that move: weights are dropped, and as many grow elsewhere.

The net is sparse from its first step to its last: a random set of weights is masked, at densities
that large kernels have less of (see `erk`). Now and then the smallest weights of every layer are
dropped. In their place grow, in the same layer,
- set: weights drawn at random;
- rigl: those whose gradient is the largest, masked as they are. It costs nothing that the gradient
  is dense here, where all gradients are.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step until it grows, from
0. What is dropped and grown in one exchange keeps its value and its momentum.

References:
    set: Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, Scalable training of artificial neural
    networks with adaptive sparse connectivity inspired by network science, 2018, arXiv 1707.04780.
    Its authors drop the smallest positive and the largest negative weights apart, and draw what
    grows; here, as in the code of rigl, the smallest |w| go and weights grow from 0.
    rigl: Evci, Gale, Menick, Castro, Elsen, Rigging the lottery: making all tickets winners, 2020,
    arXiv 1911.11134. Its ImageNet nets exchange 0.3 of the weights at first, every 100 of the first
    25,000 of 32,000 steps, by a cosine; the default of its code is constant.
"""

import dataclasses
from functools import partial

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.drop_grow import DropGrow
from jprune.stages.frame import framed
from jprune.stages.random_masks import RandomMasks
from jprune.stages.reinitialise import BeginAnew
from jprune.stages.train import Train


def drop_grow(
    grow: str,
    budget: Budget,
    train: Train | None,
    *,
    fraction: float = 0.3,
    every: int | None = None,
    stop: float = 0.75,
    anneal: str = "cosine",
    densities: str = "erk",
    times: float = 1.0,
) -> Recipe:
    """Masks weights at random, and trains the net from new values under masks that move.

    Args:
        grow: "gradient" or "random".
        budget: of weights (a density is that of all kernels). A floor of its whole size leaves a
            group dense.
        train: training of the dense net, and of the sparse one.
        fraction: of the weights of a layer, that go in the first exchange.
        every: steps from one exchange to the next. None: for rigl the paper's 100, or a fiftieth of
            the steps if that is less; for set the paper's epoch, or a tenth of the steps if that is
            less.
        stop: fraction of the steps after which the masks are fixed (rigl's 25,000 of 32,000; set
            goes on to the last epoch).
        anneal: of the fraction until `stop`: "cosine" or "constant" (set).
        densities: of the layers: "erk", "er" (windows do not count) or "uniform".
        times: how many times as many epochs the sparse net trains (rigl's 1x and 5x).

    Returns:
        The recipe; it prunes weights and has no fine-tuning. The training of the sparse net is
        named `sparse`.

    Raises:
        ArgumentError: another word, a number out of range, or a net that is read and not trained
            here.

    Example:
        >>> recipe = METHODS["rigl"](Budget(density=0.1), Train(10, 0.1))
        >>> [stage.name for stage in recipe]
        ['train', 'save', 'dense', 'random_masks', 'begin_anew', 'before_finetune', 'sparse']
    """
    if train is None:
        raise errors.ArgumentError(
            "set and rigl train a sparse net from its start as the dense net is trained, and this "
            "one is read from a file. Leave out --weights."
        )
    if not times > 0:
        raise errors.ArgumentError(f"times={times}; it is above 0.")
    sparse = DropGrow(
        dataclasses.replace(train, epochs=times * train.epochs),
        grow, every, fraction, anneal, stop,
    )  # fmt: skip
    return framed(train, RandomMasks(budget, densities), BeginAnew(), finetune=sparse)


METHODS = {
    "set": partial(drop_grow, "random", stop=1.0, anneal="constant"),
    "rigl": partial(drop_grow, "gradient"),
}
