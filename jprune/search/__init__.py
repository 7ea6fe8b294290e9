"""Search: proposes shapes of a net in rounds, and is told their scores.

Here belongs what chooses among shapes (widths, depths, image sizes) by their scores alone: a
`Searcher` (`jprune.base`) proposes candidates, which are rows of genes, and the caller scores them;
a searcher knows nothing of nets. Candidates are made into nets, trained and evaluated in
`jprune.recipes`; what is learned for all candidates at once is in `jprune.learners`.

Read `evolution.py` first. `space.py` has the space of candidates and the window on their cost.
`aging.py` and `annealing.py` search real numbers, one candidate at a time; `rates.py` has
constraints on them.
`forward.py` lets a set of units grow one by one. `particles.py` resamples what `genes.py` draws.
`polynomial.py` fits a model of the score to a few points and solves for its optimum.
"""

from jprune.search.aging import aging
from jprune.search.annealing import AnnealingState, annealing
from jprune.search.evolution import evolution
from jprune.search.forward import Selection, forward
from jprune.search.genes import Offsets, Subsets, strided
from jprune.search.history import SearchState
from jprune.search.particles import Particles, likelihoods, particle_filter, systematic
from jprune.search.polynomial import Polynomial, fit, optimum
from jprune.search.rates import by_size
from jprune.search.space import Space

__all__ = [
    "AnnealingState",
    "Offsets",
    "Particles",
    "Polynomial",
    "SearchState",
    "Selection",
    "Space",
    "Subsets",
    "aging",
    "annealing",
    "by_size",
    "evolution",
    "fit",
    "forward",
    "likelihoods",
    "optimum",
    "particle_filter",
    "strided",
    "systematic",
]
