"""Exporting: a net with its variables in a file that other programs run.

Both forms take `fn(variables, x)` and compile the variables in. `xla.py` writes one file for all
backends of JAX and any batch size; `litert.py` writes .tflite files, which `quantize.py` makes
smaller and `runtime.py` runs. Read `xla.py` first. Checkpoints of training are in `jprune.runs`.
"""

from jprune.export.litert import tflite
from jprune.export.quantize import QUANTIZATIONS
from jprune.export.runtime import run_tflite
from jprune.export.xla import (
    load_net,
    load_stablehlo,
    stablehlo,
    stablehlo_of_net,
    stablehlo_text,
)

__all__ = [
    "QUANTIZATIONS",
    "load_net",
    "load_stablehlo",
    "run_tflite",
    "stablehlo",
    "stablehlo_of_net",
    "stablehlo_text",
    "tflite",
]
