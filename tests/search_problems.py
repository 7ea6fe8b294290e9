"""Problems for searchers that cost nothing: a chain of layers of which some matter more."""

from typing import NamedTuple

import numpy as np

from jprune.search import Ratios

FLOPS = np.array([10.0, 20.0, 10.0])


def chained(ratios, flops=FLOPS):
    """MACs [p] of layers in a row, over the whole, by their ratios [p, layers]."""
    before = np.concatenate([np.ones((len(ratios), 1)), ratios[:, :-1]], axis=1)
    return (flops * before * ratios).sum(axis=1) / flops.sum()


def chained_own(ratios, flops=FLOPS):
    """[layers]: what each of them costs."""
    return flops * np.array([1.0, *ratios[:-1]]) * ratios / flops.sum()


def read_by_inputs(ratios, flops=FLOPS):
    """The same chain by the shares of its layers' inputs: the last layer's outputs are whole."""
    after = np.concatenate([ratios[:, 1:], np.ones((len(ratios), 1))], axis=1)
    return (flops * ratios * after).sum(axis=1) / flops.sum()


def chain(flops, sizes, goals, steps=1, shown=True, least=0.2, own=True) -> Ratios:
    """The environment of a chain of layers."""
    flops, sizes = np.asarray(flops, float), np.asarray(sizes, int)
    steps = np.full(len(sizes), steps)
    price = lambda widths: chained(widths / sizes, flops)
    number = np.arange(len(sizes)) / len(sizes)
    return Ratios(
        names=tuple(map(str, range(len(sizes)))),
        sizes=sizes,
        steps=steps,
        lowest=np.ceil(np.maximum(1, np.round(sizes * least)) / steps).astype(int) * steps,
        features=np.stack([number, flops / flops.max(), sizes / sizes.max()], axis=1),
        later=np.array([flops[place + 1 :].sum() for place in range(len(flops))]) / flops.sum(),
        price=price,
        goals=tuple(goals),
        least=least,
        own=(lambda widths: chained_own(widths / sizes, flops)) if own else None,
        shown=shown,
    )


class Dial(NamedTuple):
    """One number; which one is right says the goal, which may be shown."""

    shown: bool = True
    decisions: int = 1
    width: int = 1
    least: float = 0.0

    def look(self, genes, goal):
        return np.array([float(goal) if self.shown else 0.0])

    def decide(self, genes, goal, proposal):
        return round(1000 * proposal)

    def actions(self, genes):
        return np.asarray(genes) / 1000
