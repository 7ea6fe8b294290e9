"""Executing a pruned net fast on the machine at hand.

Here belongs what decides, from what the machine can do, how the layers of a net are run. Read
`choice.py` first: one call from masks to a fast net, and the roofline's verdict on each layer.
`machine.py` measures the constants of the roofline, once. The kernels themselves are in
`jprune.kernels`, the forms of a kernel in `jprune.forms`, the roofline in `jprune.cost`.
"""

from jprune.execute.choice import Verdict, compact, verdict, verdicts
from jprune.execute.machine import measured, this_machine

__all__ = ["Verdict", "compact", "measured", "this_machine", "verdict", "verdicts"]
