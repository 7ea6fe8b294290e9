"""Search: proposes shapes of a net in rounds, and is told their scores.

Here belongs what chooses among shapes (widths, depths, image sizes) by their scores alone: a
`Searcher` (`jprune.base`) proposes candidates, which are rows of genes, and the caller scores them;
a searcher knows nothing of nets. Candidates are made into nets, trained and evaluated in
`jprune.recipes`; what is learned for all candidates at once is in `jprune.learners`.

Read `evolution.py` first. `space.py` has the space of candidates and the window on their cost.
`aging.py` and `annealing.py` search real numbers, one candidate at a time; `narrowing.py` narrows
one group of a net at a time. `forward.py` lets a set of units grow one by one. `particles.py`
resamples what `genes.py` draws. `actor_critic.py` lets a policy (`policy.py`) decide gene by gene,
and `ratios.py` is where it decides the widths of a net.
`aging.py` searches real numbers, one candidate at a time. `forward.py` lets a set of units grow one
by one. `particles.py` resamples what `genes.py` draws.
`partial_order.py` spares what is contained in a candidate that has lost.
`actor_critic.py` lets a policy (`policy.py`) decide gene by gene, and `ratios.py` is where it
decides the widths of a net.
`polynomial.py` fits a model of the score to a few points and solves for its optimum.
"""

from jprune.search.actor_critic import Environment, Episodes, actor_critic
from jprune.search.aging import aging
from jprune.search.annealing import AnnealingState, annealing
from jprune.search.bounds import bound, rounded_up
from jprune.search.evolution import evolution
from jprune.search.forward import Selection, forward
from jprune.search.genes import Offsets, Subsets, strided
from jprune.search.history import SearchState
from jprune.search.narrowing import NarrowingState, narrowing
from jprune.search.partial_order import PartialOrder, cannot_win, contained, frontier
from jprune.search.particles import Particles, likelihoods, particle_filter, systematic
from jprune.search.policy import Agent
from jprune.search.polynomial import Polynomial, fit, optimum
from jprune.search.ratios import Ratios, ratios
from jprune.search.space import Space

__all__ = [
    "Agent",
    "AnnealingState",
    "Environment",
    "Episodes",
    "NarrowingState",
    "Offsets",
    "PartialOrder",
    "Particles",
    "Polynomial",
    "Ratios",
    "SearchState",
    "Selection",
    "Space",
    "Subsets",
    "actor_critic",
    "aging",
    "annealing",
    "bound",
    "cannot_win",
    "contained",
    "evolution",
    "fit",
    "forward",
    "frontier",
    "likelihoods",
    "narrowing",
    "optimum",
    "particle_filter",
    "ratios",
    "rounded_up",
    "strided",
    "systematic",
]
