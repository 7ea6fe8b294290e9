"""AutoCompress: simulated annealing over the rates of all layers, around ADMM; then purification.

Every round keeps the same fraction of what is left. It searches rates that meet its budget: larger
layers have larger ones, a candidate is pruned at once by the norms of the present weights, and what
counts is its quality on held-out images. ADMM makes the best rates true, the cut follows, and
training under its masks. Purification then cuts groups that are near 0 though the cut has left
them, by thresholds that are searched in the same way, as long as the quality does not drop.

Masks meet gradients *prox* while ADMM trains, and *frozen* after the cut.

References:
    Liu, Ma, Xu, Wang, Tang, Ye, AutoCompress: an automatic DNN structured pruning framework for
    ultra-high compression rates, 2020, arXiv 1907.03141 [37]. There is no code of the authors;
    redraws and perturbations are those of Microsoft's NNI. Its temperatures, 100 to 20 for
    accuracies in [0, 1], accept everything; here they are of the order of differences. There the
    search ends with the coldest temperature, here with the evaluations. Rates meet the budget by
    the cost of the net, which knows that a filter is an input of the next layer; ADMM is that of
    `struct_admm` [33].
"""

import dataclasses
from collections.abc import Sequence

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.blocks.kinds import words_of
from jprune.stages.admm import Admm, Cut
from jprune.stages.candidates import Trial
from jprune.stages.frame import Evaluate, opening
from jprune.stages.rates import Annealing, Purify, Searched, SearchRates
from jprune.stages.rounds import evenly, rounds_for
from jprune.stages.train import Train

KINDS = ("filter", "channel", "column")


def autocompress(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    groups: str | Sequence[str] = "filter",
    search: str = "annealing",
    rounds: int | None = None,
    evaluations: int = 150,
    hot: float = 0.05,
    cold: float = 0.002,
    cool: float = 0.9,
    perturbation: float = 0.35,
    redraws: int = 10,
    images: int = 500,
    recalibrate: int = 4,
    admm_rounds: int | None = None,
    rho: float = 1e-3,
    growth: float = 1.2,
    limit: float = 100.0,
    rate: float = 1e-3,
    weight_decay: float = 5e-5,
    stop: float = 0.8,
    purify: bool = True,
    drop: float = 0.0,
) -> Recipe:
    """Search, ADMM, cut, training and purification, round after round.

    Args:
        budget: what is kept after the last round; purification may leave less.
        train: training of the dense net; None where it is trained already.
        finetune: ADMM and the training after it, of all rounds together.
        groups: "filter", "channel" or "column", or two of them: the paper's are filters and columns
            (on the command line "filter+column").
        search: "annealing", or "random" for as many candidates drawn anew.
        rounds: of all; None: as many as keep half each (the paper: moderate ones, such as 2x).
        evaluations: candidates of a search.
        hot: the first temperature, on the scale of accuracy.
        cold: the last is just above it.
        cool: factor between two temperatures.
        perturbation: of rates, at the first temperature; it falls with it.
        redraws: candidates refused at a temperature before it falls.
        images: of the validation split that a candidate is scored on.
        recalibrate: training batches that a candidate's statistics are taken from anew; 0: none.
        admm_rounds: updates of the duals in a round; None: 30, or as many as have 100 steps.
        rho: see `struct_admm`.
        growth: see `struct_admm`.
        limit: see `struct_admm`.
        rate: learning rate while ADMM trains, by AMSGrad.
        weight_decay: of this training, part of the loss.
        stop: fraction of a round's epochs with ADMM.
        purify: whether rounds end with purification.
        drop: of the quality, that purification takes for none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = autocompress(Budget(macs=0.25), None, Train(10, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe][2:]
        ['search', 'admm', 'prune', 'between', 'purify', 'search', 'admm', 'prune',
         'before_finetune', 'finetune', 'purify']
    """
    kinds = words_of(groups, KINDS, "groups")
    errors.check_words("autocompress", ("search", search, ("annealing", "random")))
    errors.check_numbers(
        "autocompress",
        ("stop", stop, 0 < stop < 1, "in (0, 1)"),
        ("rounds", rounds, rounds is None or rounds >= 1, "1 or more"),
        ("admm_rounds", admm_rounds, admm_rounds is None or admm_rounds >= 1, "1 or more"),
        ("rho", rho, rho > 0, "above 0"),
        ("growth", growth, growth >= 1, "1 or more"),
        ("limit", limit, limit > 0, "above 0"),
        ("rate", rate, rate > 0, "above 0"),
        ("weight_decay", weight_decay, weight_decay >= 0, "0 or more"),
        ("perturbation", perturbation, perturbation > 0, "above 0"),
        ("drop", drop, drop >= 0, "0 or more"),
    )
    count = rounds_for(budget, 0.5) if rounds is None else rounds
    size = perturbation if search == "annealing" else None
    annealing = Annealing(evaluations, hot, cold, cool, size, redraws)
    annealing.searcher(1, lambda rates: rates)  # refuses settings out of range
    trial = Trial(images, recalibrate, finetune.batch_size)
    share = lambda part: part * finetune.epochs / count
    # Constant: a rate that falls to 0 within a part would leave its last rounds without a W-step.
    during = dataclasses.replace(finetune, epochs=share(stop), schedule="constant")
    after = dataclasses.replace(finetune, epochs=share(1 - stop))
    stages: Recipe = ()
    for number, goal in enumerate(evenly(budget, count)):
        sets = Searched(goal, kinds)
        last = number == count - 1
        stages += (
            SearchRates(sets, trial, annealing),
            Admm(during, sets, admm_rounds, rho, growth, limit, (rate, weight_decay)),
            Cut(sets),
            *((Evaluate("validation", name="before_finetune"),) if last else ()),
            after if last else dataclasses.replace(after, name="between"),
        )
        if purify:
            still = dataclasses.replace(trial, recalibrate=0)
            stages += (Purify(sets, still, annealing, drop),)
    return (*opening(train), *stages)


METHODS = {"autocompress": autocompress}
