"""The engine: what is coupled in a network, and the same network with less of it.

A network is any pure function. Its jaxpr is flattened into a short list of equations and
interpreted with labels instead of numbers: one integer per position of every axis. Rules forward
labels or tie them; connected labels are units. The same list of equations is then run again, on
smaller arrays.

Its rooms, in the order in which they stand on each other: `couple/` (what is tied to what), `look/`
(where methods look and act: sites, handlers, branches), `shrink/` (the smaller net, and plans of
it). `trace.py` puts the first two together: read it first. Equations come from `jprune.jaxprs`,
kernels in other forms from `jprune.forms`.

Nothing here knows a neural-network library, a training loop or a criterion.
"""

from jprune.forms.csr import CSR
from jprune.forms.factored import Factored
from jprune.forms.rows import Rows
from jprune.forms.thin import Thin
from jprune.graph.look.intercept import Site, gateable, gated, intercept, perturbed, taps
from jprune.graph.shrink.depthwise import shift_depthwise
from jprune.graph.shrink.slim import slim, slim_params
from jprune.graph.trace import trace

__all__ = [
    "CSR",
    "Factored",
    "Rows",
    "Site",
    "Thin",
    "gateable",
    "gated",
    "intercept",
    "perturbed",
    "shift_depthwise",
    "slim",
    "slim_params",
    "taps",
    "trace",
]
