"""Allocators: scores and a budget in, masks out.

`uniform` keeps the same fraction everywhere, `global_topk` lets all groups compete. Both take
scores of units {group: [n]} or of weights (a tree), honour -inf (gone already) and +inf (never
pruned), count exactly, and meet budgets in parameters or MACs by asking the cost model about the
masks themselves.

`lowest_first` removes a few units at a time, within a compiled step. `erdos_renyi(groups)` makes an
allocator of weights that keeps less of large kernels. `toward` keeps numbers that are written down,
and more at higher densities: for training in which masks move.
`Outliers` is a rule in standard deviations; `jointly` meets one budget with groups of several
kinds (`jprune.blocks`). `per_cost` makes scores of units damages per cost, for `global_topk`.

Read `uniform.py` first. Allocators share `budgets.py` (how many entries a density keeps, and the
search for a density that meets a budget) and `jprune/masks/topk.py` (which entries are kept);
methods with a rule of their own use `keep_best`, `price_of`, `largest` and, before anything is
trained, `refuse_impossible`.
"""

from jprune.allocate.budgets import (
    fraction_kept,
    largest,
    price_of,
    refuse_impossible,
    smallest,
)
from jprune.allocate.erdos_renyi import erdos_renyi, erdos_renyi_densities
from jprune.allocate.global_topk import global_topk
from jprune.allocate.jointly import jointly, refuse_impossible_jointly
from jprune.allocate.lowest_first import lowest_first
from jprune.allocate.normalize import normalized
from jprune.allocate.outliers import Outliers, deviations
from jprune.allocate.per_cost import per_cost
from jprune.allocate.toward import toward
from jprune.allocate.uniform import uniform
from jprune.masks import keep_best

ALLOCATORS = {"uniform": uniform, "global_topk": global_topk}
"""By name, as options of methods have them."""

__all__ = [
    "ALLOCATORS",
    "Outliers",
    "deviations",
    "erdos_renyi",
    "erdos_renyi_densities",
    "fraction_kept",
    "global_topk",
    "jointly",
    "keep_best",
    "largest",
    "lowest_first",
    "normalized",
    "per_cost",
    "price_of",
    "refuse_impossible",
    "refuse_impossible_jointly",
    "smallest",
    "toward",
    "uniform",
]
