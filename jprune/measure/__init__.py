"""Measuring: how long a net takes, on what machine, with which versions of what.

Here belongs whatever is read off a clock or off the machine. Counts that follow from shapes (MACs,
parameters, bytes moved) are in `jprune.cost`. Read `clock.py` first: one loop times everything, in
turns, so that a ratio of two latencies comes from one run. `nets.py` brings nets to that loop,
`provenance.py` says where the numbers come from.
"""

from jprune.measure.clock import MINIMUM_REPEATS, Latency, interleaved
from jprune.measure.nets import latency, tflite_latency, xla_latency
from jprune.measure.provenance import Device, commit, device, versions

__all__ = [
    "MINIMUM_REPEATS",
    "Device",
    "Latency",
    "commit",
    "device",
    "interleaved",
    "latency",
    "tflite_latency",
    "versions",
    "xla_latency",
]
