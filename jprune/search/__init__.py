"""Search: which shapes a net might have, asked for in rounds and told how good they were.

Here belongs what chooses among shapes (widths, depths, image sizes) by their scores alone: a
`Searcher` (`jprune.base`) asks for candidates, rows of genes, whoever runs it scores them, and what
a net is is none of its business. What makes candidates into nets, and trains or evaluates them,
stands in `jprune.recipes`; what is learned for all candidates at once in `jprune.learners`.

Read `evolution.py` first. `_space.py` says where is searched, and under which budget.
`polynomial.py` searches by a model of the score: fitted to a few points, solved for its optimum.
"""

from jprune.search._space import Space
from jprune.search.evolution import SearchState, evolution
from jprune.search.polynomial import Polynomial, fit, optimum

__all__ = ["Polynomial", "SearchState", "Space", "evolution", "fit", "optimum"]
