"""Static sparse training: a net with random masks of Erdos-Renyi densities, trained from a start.

A random set of weights of every kernel is masked before the first step and stays masked: what every
method that chooses or moves its masks has to beat. Large kernels keep a smaller fraction than small
ones, in proportion to (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w), and layers for which this
is above 1 stay dense. The densities alone, for masks by any scores, are `allocate.erdos_renyi`.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Evci, Gale, Menick, Castro, Elsen, Rigging the lottery: making all tickets winners, 2020, arXiv
    1911.11134 ("static"; the authors' code leaves biases and norms dense, as here, and with
    "uniform" the first layer too: write a floor for that). Densities without windows: Mocanu,
    Mocanu, Stone, Nguyen, Gibescu, Liotta, 2018, arXiv 1707.04780.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.random_masks import RandomMasks
from jprune.stages.reinitialise import BeginAnew
from jprune.stages.train import Train


def erk(
    budget: Budget, train: Train | None, *, densities: str = "erk", times: float = 1.0
) -> Recipe:
    """Masks weights at random, and trains the masked net from new initial values.

    Args:
        budget: of weights (a density is that of all kernels). A floor of its whole size leaves a
            group dense.
        train: training of the dense net, and of the sparse one.
        densities: of the layers: "erk", "er" (windows do not count) or "uniform".
        times: how many times as many epochs the sparse net trains (the paper's 1x and 5x).

    Returns:
        The recipe; it prunes weights and has no fine-tuning. The training of the sparse net is
        named `sparse`.

    Raises:
        ArgumentError: another word, `times` of 0 or less, or a net that is read and not trained
            here.

    Example:
        >>> [stage.name for stage in erk(Budget(density=0.1), Train(10, 0.1))]
        ['train', 'save', 'dense', 'random_masks', 'begin_anew', 'before_finetune', 'sparse']
    """
    if train is None:
        raise errors.ArgumentError(
            "erk trains a sparse net from its start as the dense net is trained, and this one is "
            "read from a file. Leave out --weights."
        )
    if not times > 0:
        raise errors.ArgumentError(f"erk(times={times}); it is above 0.")
    sparse = dataclasses.replace(train, epochs=times * train.epochs, name="sparse")
    return framed(train, RandomMasks(budget, densities), BeginAnew(), finetune=sparse)


METHODS = {"erk": erk}
