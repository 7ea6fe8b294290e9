"""P39's nets: what a hypernetwork says of random widths, and what a search finds with it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.claims.claim import Case, Made
from jprune import allocate
from jprune.base import Budget, Pruned
from jprune.learners import hypernetwork, width_masks
from jprune.masks import apply_masks
from jprune.recipes import Train, evaluate
from jprune.search.space import draw
from jprune.search.widths import Widths
from jprune.stages.hypernetwork import Rounds, Search, TrainHypernetwork
from jprune.stages.reinitialise import BeginAnew, TrainAnew
from jprune.train.net import Net as TaskNet

MACS = 0.265
"""The budget, of which candidates cost 0.88 to 1: 25 % +- 1.5 % of the dense net."""
WIDTHS = Widths(Budget(macs=MACS), options=10, window=0.113)
"""Ten a group."""
RANDOM = 10
"""Random nets."""


def training(case: Case[Any], epochs: float) -> Train:
    """So many epochs."""
    return case.train(epochs, case.settings.learning_rate, 64 if case.smoke else 128)


def from_scratch(case: Case, masks: dict[str, np.ndarray], epochs: float, number: int) -> Pruned:
    """The net of some widths, trained."""
    start, _ = BeginAnew()(Pruned(None, masks), case.task, case.fold(number, 0))
    stage = TrainAnew(training(case, epochs), "epochs")
    return stage(start, case.task, case.fold(number, 1))[0]


def search(case: Case[Any], rounds: Rounds, images: int) -> Search:
    """Searches with the statistics of the norms made anew."""
    return Search(WIDTHS, rounds, images, 1 if case.smoke else 20, 64 if case.smoke else 128)


def ranks(case: Case[Any], meta: Pruned) -> Iterator[Made]:
    """Random widths: by the hypernetwork, and from scratch."""
    task, groups, key = case.task, TaskNet(case.task).groups, case.fold(3)
    hyper = hypernetwork(task, groups, WIDTHS.menu(groups))
    fresh = search(case, Rounds(), case.settings.rank_images)
    settled = fresh.scorer(task, hyper, key)
    stale = dataclasses.replace(fresh, recalibrate=0).scorer(task, hyper, key)
    space, widths = WIDTHS.space(groups, TaskNet(task).cost)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    genes = draw(space._replace(low=0.0, high=1.0), rng, 2 if case.smoke else RANDOM)
    for number, row in enumerate(widths(genes), start=10):
        small = from_scratch(case, width_masks(hyper.menu, row), case.settings.rank_epochs, number)
        yield (
            {
                "part": "rank",
                "arm": "random",
                "widths": row.tolist(),
                "score": float(settled(meta.extra, meta.variables, row)),
                "unsettled": float(stale(meta.extra, meta.variables, row)),
                "accuracy": case.score(small, "validation"),
            },
            None,
        )


def searches(case: Case[Any], meta: Pruned) -> Iterator[Made]:
    """The search beside random search, and what it finds beside uniform widths."""
    settings, task, groups = case.settings, case.task, TaskNet(case.task).groups
    count, population = (2, 6) if case.smoke else (settings.generations, settings.population)
    half, best = population // 2, {}
    for arm, mutants, crossovers in (("evolution", half, half), ("random", 0, 0)):
        rounds = Rounds(count, population, min(10, half), mutants, crossovers)
        best[arm], (record,) = search(case, rounds, settings.images)(meta, task, case.fold(4))
        metrics = record["metrics"]
        row = {"part": "search", "arm": arm, "score": metrics["best"]}
        yield {**row, "evaluated": metrics["evaluated"], "macs": metrics["macs"]}, None
    searched = best["evolution"].masks
    # Scores that keep the first units of every layer, the same fraction of all.
    scores = {name: -np.arange(size, dtype=float) for name, size in groups.sizes.items()}
    budget = Budget(macs=case.macs(best["evolution"]))
    uniform: Any = allocate.uniform(scores, budget, TaskNet(task).cost)
    for number, (arm, masks) in enumerate((("searched", searched), ("uniform", uniform))):
        small = from_scratch(case, masks, settings.epochs, 50 + number)
        variables = apply_masks(small.variables, TaskNet(task).weight_masks(masks))
        yield (
            {
                "part": "net",
                "arm": arm,
                "macs": case.macs(small._replace(masks=masks)),
                "widths": [int(np.sum(mask)) for mask in masks.values()],
                "accuracy": evaluate(task, variables, "test")["accuracy"],
            },
            None,
        )


def trained_hypernetwork(case: Case[Any]) -> Pruned:
    """The hypernetwork of a seed."""
    train = training(case, case.settings.meta_epochs)
    stage = TrainHypernetwork(WIDTHS, train, 0.1, 1 if case.smoke else 20)
    return case.apply(Pruned(case.task.init(case.fold(1)), None), 2, stage)
