"""Torch-Pruning as the other side of a benchmark: a process that answers lines on its input.

It runs in an environment of its own (`JPRUNE_BENCH_PYTHON`: torch, torchvision, torch-pruning) and
imports nothing of jprune. A line `{"net": "resnet50", "side": 224, "masked": 0.4}` is answered with
`{"seconds": ..., "params": ..., "params_kept": ...}`: the time to build the dependency graph and to
prune, on a fresh copy of the net. `{}` is answered with the versions.
"""

import copy
import functools
import importlib
import json
import sys
import time
from typing import Any

# By name, since the environment in which this file is checked has none of them.
torch, torchvision, torch_pruning = (
    importlib.import_module(name) for name in ("torch", "torchvision", "torch_pruning")
)


@functools.cache
def dense(net: str) -> Any:
    """The net with random weights; inception_v3 without the head that only training uses."""
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if net == "inception_v3" else {}
    return getattr(torchvision.models, net)(weights=None, **options).eval()


def parameters(model: Any) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def pruned(net: str, side: int, masked: float) -> dict[str, Any]:
    """Builds and prunes once; checks that what comes out runs."""
    model = copy.deepcopy(dense(net))
    example = torch.randn(1, 3, side, side)
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    before = parameters(model)
    start = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=masked,
        ignored_layers=[last],
    )
    pruner.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        assert model(example).shape == (1, 1000)
    return {"seconds": seconds, "params": before, "params_kept": parameters(model)}


def main() -> None:
    """Answers requests until the input ends."""
    versions = {
        module.__name__.replace("_", "-"): module.__version__
        for module in (torch, torchvision, torch_pruning)
    }
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(pruned(**request) if request else versions), flush=True)


if __name__ == "__main__":
    main()
