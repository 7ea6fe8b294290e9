"""E10's nets, and random nets whose scores have been learned."""

from typing import Any

import jax
import numpy as np

from experiments.claims.claim import Case, Net
from experiments.claims.nets import dense
from jprune import zoo
from jprune.base import Budget, Pruned
from jprune.stages.popup import Popup, Redraw

NETS = {
    "lenet300": Net("lenet300"),
    "wide": Net("wide", build=dense("wide", 600, 200)),
    "lenet5": Net(
        "lenet5",
        build=lambda shape, classes: zoo.build("lenet5", classes, shape, conv_relu=True),
    ),
    "small": Net("small", build=dense("small", 50)),
}
"""LeNet-5 with ReLU behind its convolutions; twice as wide as LeNet-300-100; 784-50-10."""


def popped(case: Case[Any], how: str, k: float) -> tuple[Pruned, int]:
    """A random net whose scores have been learned, and how many of its weights moved."""
    used, budget = case.settings, Budget(density=k)
    start, _ = Redraw(budget, how)(Pruned(None, None), case.task, case.fold(2))
    if k == 1:
        return start, 0
    epochs = used.epochs / (2 if case.net.name == "lenet5" else 1)
    scores = case.train(
        epochs, used.learning_rate, weight_decay=used.weight_decay, schedule="cosine"
    )
    done = case.apply(start, 3, Popup(budget, scores))
    moved = lambda a, b: int(np.sum((np.asarray(a) != 0) & (np.asarray(a) != np.asarray(b))))
    return done, sum(jax.tree.leaves(jax.tree.map(moved, done.variables, start.variables)))
