"""Kernels held in another form than an array: leaf types, which slim nets execute directly.

Here belongs one file per form, and what forms share: `slide.py`, and `layout.py` for kernels in
any order of axes. A form has four members: `apply`, `dense`, `shape`, `dtype` (`leaf_type.py`: read
it first); with `plan` and `planned` it can be saved in plans. `choose.py` picks the form that fits
a mask, `opened.py` takes forms apart into arrays; `direct.py` is a sparse convolution as a plain
function. Forms know equations and arrays, but no groups and no method.
"""

from jprune.forms.choose import compact, leaf_of
from jprune.forms.csr import CSR
from jprune.forms.direct import direct_convolution
from jprune.forms.factored import Factored
from jprune.forms.from_menu import FromMenu
from jprune.forms.leaf_type import LeafType, is_leaf_type
from jprune.forms.rows import Rows
from jprune.forms.thin import Thin
from jprune.forms.thresholded import Thresholded
from jprune.forms.winners import Winners

__all__ = [
    "CSR",
    "Factored",
    "FromMenu",
    "LeafType",
    "Rows",
    "Thin",
    "Thresholded",
    "Winners",
    "compact",
    "direct_convolution",
    "is_leaf_type",
    "leaf_of",
]
