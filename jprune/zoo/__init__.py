"""The zoo: the nets of the pruning papers, as pure functions.

Here belong architectures, one short file per family, and nothing about pruning: a net of the zoo is
an ordinary Flax NNX module, and every method sees only the `Net` that `net.py` makes of it. Trained
weights are read by `pretrained.py`. Read `net.py` first, then `resnet.py` for a typical family;
`table.py` holds the names, `layers.py` what the families share, `own.py` brings in nets of the
user's own.
"""

from jprune.zoo.net import Net, from_module
from jprune.zoo.own import load
from jprune.zoo.table import build, names, options

__all__ = ["Net", "build", "from_module", "load", "names", "options"]
