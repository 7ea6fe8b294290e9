"""Compiled kernels that XLA calls on its own buffers, on CPUs: no copies, no C compiler.

Here belongs what makes sparse execution fast on a CPU. `call.py` is the room's door, a function of
arrays: read it first. `lines.py` lays a contraction out (plain arithmetic); `handler.py`,
`sparse_lines.py` and `micro.py` are compiled by numba, from the outside in, and are imported when a
kernel is first used. Kernels know arrays, but neither nets nor masks; `jprune.forms.CSR` calls
them, and has the plain form for all other devices, and the derivatives.
"""

from jprune.kernels.call import DTYPES, available, portable, require, sparse_convolution, wanted

__all__ = ["DTYPES", "available", "portable", "require", "sparse_convolution", "wanted"]
