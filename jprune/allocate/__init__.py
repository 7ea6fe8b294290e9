"""Allocators: scores and a budget in, masks out.

`uniform` keeps the same fraction everywhere, `global_topk` lets all groups compete. Both take
scores of units {group: [n]} or of weights (a tree), honour -inf (gone already) and +inf (never
pruned), count exactly, and meet budgets in parameters or MACs by asking the cost model about the
masks themselves.

Read `counts.py` first (how many are kept), then `select.py` (which ones), then `budgets.py`
(until the budget is met).
"""

from jprune.allocate.global_topk import global_topk
from jprune.allocate.normalize import normalized
from jprune.allocate.uniform import uniform

__all__ = ["global_topk", "normalized", "uniform"]
