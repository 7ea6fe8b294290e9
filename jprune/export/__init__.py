"""Exporting: a net with its variables in a file that other programs run.

`stablehlo.py` writes one file for every JAX backend, with any batch size; `tflite.py` writes .tflite
files, `quantize.py` makes those smaller. Both take `fn(variables, x)` and compile the variables in.
Read `stablehlo.py` first. Checkpoints of training are not exports: they are in `jprune.train`.
"""

from jprune.export.quantize import QUANTIZATIONS
from jprune.export.stablehlo import load_stablehlo, stablehlo, stablehlo_text
from jprune.export.tflite import run_tflite, tflite

__all__ = [
    "QUANTIZATIONS",
    "load_stablehlo",
    "run_tflite",
    "stablehlo",
    "stablehlo_text",
    "tflite",
]
