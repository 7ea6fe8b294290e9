"""Criteria: variables and data in, scores out. One method, one short file.

A criterion is three functions (`jprune.base.Criterion`): `init`, `update` per batch, `score`.
Scores are a tree like the variables, None for statistics, or `{group: [units]}`;
`jprune.to_units` turns the first into the second. `masked` adds to any of them that what is pruned
stays pruned. Read `magnitude.py` first, then `taylor.py`. What several criteria share stands in
files with an underscore.
"""

from jprune.criteria.kronecker import kronecker
from jprune.criteria.magnitude import magnitude
from jprune.criteria.masked import masked
from jprune.criteria.obd import obd
from jprune.criteria.random import random
from jprune.criteria.std_rule import std_rule
from jprune.criteria.taylor import taylor

__all__ = ["kronecker", "magnitude", "masked", "obd", "random", "std_rule", "taylor"]
