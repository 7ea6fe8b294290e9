"""Criteria: variables and data in, scores out. One method, one short file.

A criterion is three functions (`jprune.base.Criterion`): `init`, `update` per batch, `score`.
Scores are a tree like the variables, None for statistics, or `{group: [units]}`;
`jprune.to_units` turns the first into the second. `masked` wraps any of them so that pruned entries
score -inf. Read `magnitude.py` first, then `taylor.py`. Code that several criteria share is in
files with an underscore.
"""

from jprune.criteria.distances import distances
from jprune.criteria.kronecker import kronecker
from jprune.criteria.magnitude import magnitude
from jprune.criteria.masked import masked
from jprune.criteria.obd import obd
from jprune.criteria.random import random
from jprune.criteria.std_rule import std_rule
from jprune.criteria.taylor import taylor

__all__ = [
    "distances",
    "kronecker",
    "magnitude",
    "masked",
    "obd",
    "random",
    "std_rule",
    "taylor",
]
