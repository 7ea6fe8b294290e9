"""Hard patterns as small nets; what each is expected to give is derived by hand in its comment.

All axis sizes of a net are different, parameters and statistics are random, and one activation of
each has f(0) != 0: nothing is equal by accident.
"""

from tests.patterns.attention import ATTENTION
from tests.patterns.control import CONTROL
from tests.patterns.convolutions import CONVOLUTIONS
from tests.patterns.foreign import FOREIGN
from tests.patterns.joins import JOINS
from tests.patterns.norms import NORMS
from tests.patterns.primitives import PRIMITIVES
from tests.patterns.shuffles import SHUFFLES
from tests.patterns.streams import STREAMS

PATTERNS = [
    *ATTENTION,
    *CONTROL,
    *CONVOLUTIONS,
    *FOREIGN,
    *JOINS,
    *NORMS,
    *PRIMITIVES,
    *SHUFFLES,
    *STREAMS,
]
