"""How long finding and removing channels takes, against Torch-Pruning.

    JPRUNE_BENCH_PYTHON=PYTHON python -m experiments.benchmarks.trace

`PYTHON` belongs to an environment of its own, `pip install torch torchvision torch-pruning`;
without it only our side runs. Expected: in the geometric mean at least 1.5 times faster than the
peer, the net's own Python (which is traced, not ours) apart; all of ours under 0.15 s for ResNet-50
and MobileNetV2.
"""

import gc
import json
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jprune
from experiments import rows
from experiments.keras_nets import KerasNet, build
from experiments.zoos import random_masks, timed_trace

OUT = rows.RESULTS / "engine" / "trace.jsonl"
MASKED = 0.4
TWINS = {
    "resnet50": ("ResNet50", 224),
    "densenet121": ("DenseNet121", 224),
    "mobilenet_v2": ("MobileNetV2", 224),
    "efficientnet_b0": ("EfficientNetB0", 224),
    "inception_v3": ("InceptionV3", 299),
    "vgg16": ("VGG16", 224),
}
"""{name in torchvision: (name in keras.applications, side of the images)}."""


def main(nets: tuple[str, ...] = tuple(TWINS), repeats: int = 10, out: Path = OUT) -> None:
    """Times both sides in turns, and adds a row per net and one with the geometric means.

    Args:
        nets: names in torchvision.
        repeats: rounds.
        out: file of the rows.
    """
    python = os.environ.get("JPRUNE_BENCH_PYTHON")
    if not python:
        print("JPRUNE_BENCH_PYTHON is not set: no Torch-Pruning beside us")
    peer = Peer(python) if python else None
    found = [against_peer(peer, name, repeats) for name in nets]
    if peer:
        peer.close()
        found.append({"name": "geometric_mean", "nets": list(nets), **geometric_means(found)})
        print(json.dumps(found[-1]))
    source = rows.provenance("keras")
    rows.append(out, *({**row, "repeats": repeats, **source} for row in found))


class Peer:
    """The process that runs Torch-Pruning; idle while our side runs."""

    def __init__(self, python: str):
        script = Path(__file__).with_name("torch_pruning_peer.py")
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self.ask()

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def against_peer(peer: Peer | None, name: str, repeats: int) -> rows.Row:
    """Both sides in turns, for one net; the first round is not counted."""
    twin, side = TWINS[name]
    net = build(twin, side, batch=1)
    variables = zeros(net)
    ours, theirs = [], []
    for seed in range(repeats + 1):
        ours.append(prune_once(net, variables, seed))
        if peer:
            theirs.append(peer.ask(net=name, side=side, masked=MASKED)["seconds"])
    seconds = medians(ours[1:])
    row = {"name": name, "net": twin, "ours_s": seconds, "first_ours_s": ours[0]}
    if peer:
        peer_s = float(np.median(theirs[1:]))
        row |= {"peer_s": peer_s, "first_peer_s": theirs[0], "peer_versions": peer.versions}
        row |= {"times_faster": peer_s / seconds["ours"]}
        row |= {"times_faster_with_library": peer_s / seconds["total"]}
    print(json.dumps(row), flush=True)
    return row


def zeros(net: KerasNet) -> Any:
    """Variables to cut: what is in them does not matter."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), net.shapes)


def prune_once(net: KerasNet, variables: Any, seed: int) -> dict[str, float]:
    """Seconds to trace, to draw masks and to make the small parameters, the library's apart."""
    gc.collect()
    groups, seconds = timed_trace(net)
    start = time.perf_counter()
    masks = random_masks(groups, seed, MASKED)
    jax.block_until_ready(jprune.slim_params(groups, masks, variables))
    cut = time.perf_counter() - start
    ours = seconds["ours"] + cut
    return {
        "trace": seconds["ours"],
        "masks_and_slim_params": cut,
        "ours": ours,
        "library": seconds["library"],
        "total": ours + seconds["library"],
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of every part."""
    return {part: float(np.median([each[part] for each in rounds])) for part in rounds[0]}


def geometric_means(found: Iterable[rows.Row]) -> dict[str, float]:
    """Of both ratios."""
    mean = lambda key: float(np.exp(np.mean([np.log(row[key]) for row in found])))
    return {key: mean(key) for key in ("times_faster", "times_faster_with_library")}


if __name__ == "__main__":
    tyro.cli(main)
