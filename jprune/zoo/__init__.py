"""The zoo: the nets of the pruning papers, as pure functions.

Here belong architectures, one short file per family, and nothing about pruning: a net of the zoo is
an ordinary Flax NNX module, and every method sees only the `Net` that `net.py` makes of it. Trained
weights are read by `pretrained.py`. Read `net.py` first, then `resnet.py` for a typical family;
`table.py` holds the names, `layers.py` what the families share. `own.py` brings in nets of the
user's own, and `flax_nets.py`, `equinox_nets.py`, `haiku_nets.py` and `keras_nets.py` make a `Net`
of a module of these libraries.
"""

from jprune.zoo.equinox_nets import from_equinox
from jprune.zoo.flax_nets import from_linen, from_nnx
from jprune.zoo.haiku_nets import from_haiku
from jprune.zoo.keras_nets import from_keras
from jprune.zoo.net import Net
from jprune.zoo.own import load
from jprune.zoo.table import build, names, options

__all__ = [
    "Net",
    "build",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "load",
    "names",
    "options",
]
