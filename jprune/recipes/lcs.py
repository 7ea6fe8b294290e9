"""LCS: every layer has a menu of channel sets, and chooses one of them for every image.

A head reads a layer's inputs and is a classifier of a few actions; each action is a vector of
numbers for the layer's channels, with exact zeros. Choices are drawn while heads and menus are
learned and are the likeliest ones afterwards, so what the layers choose can be read: a path of
decisions for each image, that differs for images which were changed to fool the net. What comes out
depends on its input: `slim` removes nothing, kernels are held as `jprune.forms.FromMenu`, `params`
are those of the dense net, heads and menus, and `macs` is a mean over the images of a split, with
inputs and outputs that are left out.

Choices are *straight-through*: the forward value is one set, the gradient of a head is that of a
mixture. A channel that the set leaves out is *frozen* for that image: exactly 0, without gradient.

Where this differs: weights, heads and menus move in one pass through the net, where the authors
take one for heads and menus and another one for the weights, at twice the cost; the penalty has no
gradient in the weights here either. With a budget in MACs the smallest entries of all menus are cut
behind the decisions, so that the mean of 512 training images meets it, and once more behind the
fine-tuning, since its features choose otherwise. `actions`, `strength` and the temperatures are the
paper's for CIFAR-10; its code has 40 actions also for layers of 16 channels, 0.5 and a fixed list
of temperatures. A menu has at most as many sets as its layer has channels.

References:
    Wang, Zhang, Hu, Zhang, Su, Dynamic network pruning with interpretable layerwise channel
    selection, AAAI 2020 [35]; details as in the authors' code.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.learners.channel_menu import Menus
from jprune.stages.channel_menu import Choosing, CutMenus, EvaluateChoices, LearnMenus, TrainChosen
from jprune.stages.deformed import DEFORMATIONS, EvaluateDeformed
from jprune.stages.difficulty import EvaluateDifficulty
from jprune.stages.frame import Evaluate, opening
from jprune.stages.input_gates import refuse_budget, split_up
from jprune.stages.train import Train


def lcs(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    gates: str = "",
    actions: int = 5,
    target: float | None = None,
    strength: float = 1.0,
    hot: float = 5.0,
    cold: float = 0.5,
    top: float = 5.0,
    rate: float = 0.01,
    decide: float = 0.4,
    slower: float = 0.1,
) -> Recipe:
    """Heads and menus on the trained net, learned with it; the net fine-tuned for its choices.

    Args:
        budget: in MACs: the mean of an image; or a density: the target itself, as in the paper,
            which the penalty draws menus to. `min_units` and `floors` are the fewest channels of a
            set that is cut; `multiple_of` has no meaning where channels differ by image.
        train: training of the dense net; None where it is trained already.
        finetune: training of net, heads and menus, and fine-tuning. The authors' has 260 epochs.
        gates: patterns of the kernels that get a menu, with ":" between; none: all convolutions but
            the first and those whose outputs are summed with another activation.
        actions: sets of a layer.
        target: of the mean of the chosen entries, r; None: the density at which no image can cost
            more than the budget.
        strength: weight of the penalty on the mean of the chosen entries.
        hot: temperature of the draws at first; it falls in a line.
        cold: temperature at last.
        top: the largest entry of a set.
        rate: learning rate of heads and menus, of Adam.
        decide: the part of `finetune` in which heads and menus are learned.
        slower: factor of the learning rate in the fine-tuning.

    Returns:
        The recipe; it ends with scores on deformed images and on images of rising difficulty, and
        with what the choices say.

    Raises:
        ArgumentError: a budget that an input-dependent net cannot have, or an option out of range.

    Example:
        >>> [s.name for s in lcs(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))][2:6]
        ['decide', 'cut', 'before_finetune', 'finetune']
    """
    refuse_budget("lcs", budget)
    if finetune.distill:
        raise errors.ArgumentError("lcs learns from labels alone; leave out --distill.")
    errors.check_numbers(
        "lcs",
        ("decide", decide, 0 < decide < 1, "in (0, 1)"),
        ("slower", slower, slower > 0, "above 0"),
        ("target", target, target is None or 0 < target <= top, "in (0, top], or None"),
    )
    # Checked here, before anything is trained.
    menus = Menus(actions, strength, hot, cold, top, rate)
    choosing = Choosing(budget, menus, gates, target)
    first, second = split_up(finetune, decide)
    tuned = dataclasses.replace(second, learning_rate=slower * finetune.learning_rate)
    return (
        *opening(train),
        LearnMenus(dataclasses.replace(first, name="decide"), choosing),
        CutMenus(choosing),
        Evaluate("validation", name="before_finetune"),
        TrainChosen(tuned, choosing),
        CutMenus(choosing, last=True, name="settle"),
        *(EvaluateDeformed(name) for name in DEFORMATIONS),
        EvaluateDifficulty(),
        EvaluateChoices(),
    )


METHODS = {"lcs": lcs}
