"""Edge-popup: prune a random net, and train none of its weights.

Every weight of a random net has a score, and the net keeps the weights with the largest |s| of
every layer. The scores are learned; the weights stay as they were drawn, bit for bit. Masks meet
gradients *straight-through*: with y = (w * m) x the score of every weight, masked or not, gets the
gradient sign(s) w dL/d(w * m).

References:
    Malach, Yehudai, Shalev-Shwartz, Shamir, Proving the lottery ticket hypothesis: pruning is all
    you need, 2020, arXiv 2002.00585 [10]. The method: Ramanujan, Wortsman, Kembhavi, Farhadi,
    Rastegari, What's hidden in a randomly weighted neural network?, 2020, arXiv 1911.13299.
"""

import dataclasses

import jax

from jprune import errors
from jprune.base import Budget, Learner, Masks, Pruned, Recipe, Records, Task, Variables
from jprune.learners import (
    DRAWS,
    draw_scores,
    draw_weights,
    popup_task,
    to_the_end,
    top_masks,
)
from jprune.masks import apply_masks, is_none
from jprune.recipes._layers import kernels_in_order
from jprune.recipes._nets import prunable_weights
from jprune.recipes._training import Sgd, TrainState, plain
from jprune.recipes._widths import fraction_of
from jprune.recipes.stages import Evaluate, Save, Train, fractions, record


def edge_popup(
    budget: Budget,
    train: Train | None,
    *,
    init: str = "signed_constant",
    scaled: bool = False,
    weight_decay: float | None = None,
) -> Recipe:
    """Learns which weights of a random net to keep.

    Every layer keeps n - int((1 - k) n) of its n weights (truncated, not rounded, as in the
    authors' code). A density is k itself; params and MACs are met by the largest k that fits. The
    paper's best k is near a half.

    Biases stay 0 and norms keep their initial scale and shift (the paper's are non-affine): they
    are not trained. The statistics of norms follow the data.

    Args:
        budget: of weights.
        train: training of the scores, and of the dense net beside it. The paper's has SGD with
            momentum 0.9, learning rate 0.1, a cosine (taken here whatever `train` says) and weight
            decay 1e-4 on scores, and 100 epochs.
        init: of the weights: "signed_constant" (+-sqrt(2 / fan in), the paper's best) or
            "kaiming_normal".
        scaled: sqrt(2 / (k fan in)), which keeps variances right under the masks.
        weight_decay: of the scores; None takes that of `train`.

    Returns:
        The recipe; it prunes weights and has no fine-tuning.

    Raises:
        ArgumentError: another `init`, or a net that is read and not trained here.

    Example:
        >>> [stage.name for stage in edge_popup(Budget(density=0.5), Train(14, 0.1))]
        ['train', 'save', 'dense', 'redraw', 'popup', 'before_finetune']
    """
    if train is None:
        raise errors.ArgumentError(
            "edge_popup prunes a random net, and this one is read from a file. Leave out --weights."
        )
    if init not in DRAWS:
        raise errors.ArgumentError(f"edge_popup(init={init!r}); write one of {', '.join(DRAWS)}.")
    decay = train.weight_decay if weight_decay is None else weight_decay
    scores = dataclasses.replace(train, schedule="cosine", weight_decay=decay, name="popup")
    return (
        train,
        Save("dense"),
        Evaluate("test", name="dense"),
        Redraw(budget, init, scaled),
        Popup(budget, scores),
        Evaluate("validation", name="before_finetune"),
    )


def where_masked(masks: Masks, variables: Variables) -> Variables:
    """The leaves that have a mask; None for the others."""
    only = lambda mask, leaf: None if mask is None else leaf
    return jax.tree.map(only, masks, variables, is_leaf=is_none)


@dataclasses.dataclass(frozen=True)
class Redraw:
    """A new random net: kernels drawn as the paper has them, all else as at the beginning.

    Attributes:
        budget: for `scaled`; layers that its floors leave whole are drawn too.
        init: see `edge_popup`.
        scaled: see `edge_popup`.
        name: of the stage.
    """

    budget: Budget
    init: str
    scaled: bool = False
    name: str = "redraw"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The random net, nothing pruned."""
        first, second = jax.random.split(key)
        variables = task.init(first)
        kernels = prunable_weights(task, None, Budget(density=1.0))
        k = fraction_of(task, self.budget) if self.scaled else None
        drawn = draw_weights(second, where_masked(kernels, variables), self.init, k)
        variables = jax.tree.map(
            lambda new, old: old if new is None else new, drawn, variables, is_leaf=is_none
        )
        return pruned._replace(variables=variables, masks=None), []


@dataclasses.dataclass(frozen=True)
class Popup:
    """Trains the scores. Afterwards the net is w * m, and `extra` has the scores.

    Attributes:
        budget: of weights.
        train: how long, and how.
        name: of the records.
    """

    budget: Budget
    train: Train
    name: str = "popup"

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: nothing is prunable.
            BudgetError: the budget asks for less than one weight a layer.
        """
        kernels = prunable_weights(task, None, self.budget)
        kernels_in_order(task, kernels)  # refuses a net without any
        k = fraction_of(task, self.budget)
        weights = where_masked(kernels, pruned.variables)
        scores = draw_scores(jax.random.fold_in(key, 1), weights)
        given, popup = self.train, popup_task(task, k)
        steps = given.steps(task.data.sizes["train"])
        sgd = Sgd(given.learning_rate, given.schedule, steps, given.momentum, given.weight_decay)
        start = pruned._replace(variables={"scores": scores, "fixed": pruned.variables})
        learner = plain(popup, start, None, sgd, key, given.batch_size)

        def masked(state: TrainState) -> tuple[Variables, Masks]:
            masks = top_masks(state.params, k)
            return apply_masks(state.rest, masks), masks

        def finish(state: TrainState) -> Pruned:
            return Pruned(*masked(state), state.params, pruned.saved)

        return learner._replace(variables=lambda state: masked(state)[0], finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains the scores to the end, in memory; the last step's metrics and fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]


METHODS = {"edge_popup": edge_popup}
