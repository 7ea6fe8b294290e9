"""A particle filter over masks, at three scales: maps, kernels, and strided taps within kernels.

Particles are masks that prune as much; their weights are 1 - the rate of errors on held-out images.
They are resampled by these (systematically), crossed and mutated, and the best one stays. Layer by
layer, and scale by scale: maps before kernels before taps. A map is a unit with all that is coupled
with it; a kernel, the window of one input and one output; taps keep every stride-th weight of a
window, at an offset that all outputs of an input share, so that whole columns of the lowered matrix
go (`jprune.forms.compact` holds such kernels thin).

Only the abstract of the paper was at hand: the numbers of particles and generations, mutation and
crossover are ours.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Anwar, Hwang, Sung, Structured pruning of deep convolutional neural networks, 2017, ACM Journal
    on Emerging Technologies in Computing Systems 13, arXiv 1512.08571 [12].
"""

from collections.abc import Sequence

from jprune.base import Budget, Recipe
from jprune.blocks.kinds import words_of
from jprune.stages.frame import framed
from jprune.stages.particles import SCALES, FilterParticles
from jprune.stages.rounds import evenly
from jprune.stages.train import Train


def particle_filter(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    scales: str | Sequence[str] = "maps",
    particles: int = 32,
    generations: int = 20,
    rate: float = 0.1,
    crossover: float = 0.5,
    temperature: float = 0.0,
    stride: int | None = None,
    examples: int = 512,
) -> Recipe:
    """Searches masks at one scale or several, and fine-tunes what is left.

    Args:
        budget: what is kept; of several scales, each keeps the same fraction of what is left.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks.
        scales: "maps", "kernels", "taps", or a tuple of several (maps+taps on the command line),
            which go in this order.
        particles: masks in a generation.
        generations: of a layer; 1 is random search: the best of so many masks.
        rate: the share of a mask that a mutation changes; what is pruned is conserved.
        crossover: probability that a particle has two parents.
        temperature: 0: weights are 1 - the rate of errors, as in the paper, which hardly differ;
            above 0 they are softmax(standardised / temperature).
        stride: of taps; None: the smallest that meets the budget.
        examples: of the validation split, the same for all particles.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = particle_filter(Budget(macs=0.25), None, Train(8, 0.05, name="finetune"),
        ...                          scales=("maps", "kernels"))
        >>> [(stage.scale, stage.budget.macs) for stage in recipe if stage.name == "search"]
        [('maps', 0.5), ('kernels', 0.25)]
    """
    words = sorted(words_of(scales, SCALES, "scales"), key=SCALES.index)
    goals = evenly(budget, len(words))
    before = [1.0, *(float(goal.value) for goal in goals)]
    searches = [
        FilterParticles(
            goal,
            word,
            particles,
            generations,
            rate,
            crossover,
            temperature,
            stride,
            examples,
            earlier,
        )
        for word, goal, earlier in zip(words, goals, before)
    ]
    return framed(train, *searches, finetune=finetune)


METHODS = {"particle_filter": particle_filter}
