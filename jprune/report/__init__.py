"""Reporting: the results of a run as pages and pictures.

Here belongs what turns the files of a run directory into pages and pictures; nothing is measured
again, and no number is typed. `schema.py` defines `result.json`, which other programs read too.
`read.py` reads a run, `page.py` makes `report.html` of it (with `markup.py`, `text.py` and
`template.html`), `figures.py` draws. Read `schema.py` first, then `page.py`.
"""

from jprune.report.page import html
from jprune.report.read import Run, read_run
from jprune.report.schema import (
    LAW_BOUND,
    SCHEMA,
    Achieved,
    LatencyTable,
    Measured,
    Result,
    check,
    law_warnings,
    measured,
    missed,
)

__all__ = [
    "LAW_BOUND",
    "SCHEMA",
    "Achieved",
    "LatencyTable",
    "Measured",
    "Result",
    "Run",
    "check",
    "html",
    "law_warnings",
    "measured",
    "missed",
    "read_run",
]
