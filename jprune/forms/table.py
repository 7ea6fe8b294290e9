"""All forms by the names that plans and files give them."""

from typing import Any

from jprune.forms.csr import CSR
from jprune.forms.factored import Factored
from jprune.forms.from_menu import FromMenu
from jprune.forms.rows import Rows
from jprune.forms.thin import Thin
from jprune.forms.thresholded import Thresholded
from jprune.forms.winners import Winners

FORMS: dict[str, Any] = {
    "thin": Thin,
    "rows": Rows,
    "factored": Factored,
    "csr": CSR,
    "winners": Winners,
    "thresholded": Thresholded,
    "from_menu": FromMenu,
}
"""{name: leaf type}: each has `plan` and `planned`; those of arrays alone name their `parts`."""
