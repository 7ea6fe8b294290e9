"""Comparing: runs side by side under a protocol, and a label on what breaks it.

Here belongs what turns finished runs (rows) into tables, curves and warnings; nothing is trained
here, except by the main job. Read `protocol.py` first (what is fair), then `rows.py` (what a row
is), `summary.py` (means, fronts, order). `figures.py` and `page.py` show a comparison, `sweep.py`
makes one: methods x budgets x seeds (not imported here, since it needs all the other leaves).
"""

from jprune.compare.page import html, write
from jprune.compare.protocol import BASELINES, Breach, breaches
from jprune.compare.rows import Read, Row, arms, read, row_of
from jprune.compare.summary import (
    METRICS,
    Comparison,
    Spread,
    find_metric,
    pareto,
    plain,
    rank_changes,
    spread,
    summarize,
)

__all__ = [
    "BASELINES",
    "METRICS",
    "Breach",
    "Comparison",
    "Read",
    "Row",
    "Spread",
    "arms",
    "breaches",
    "find_metric",
    "html",
    "pareto",
    "plain",
    "rank_changes",
    "read",
    "row_of",
    "spread",
    "summarize",
    "write",
]
