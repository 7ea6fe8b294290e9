"""Recipes: a survey method whole, its stages put together with the paper's defaults.

Here belongs one short file per method or family; it defines `METHODS`, {name on the command line:
factory}. A factory is called as `factory(budget, train, finetune, **options)` with a `Budget` and
two `Train` stages (the first is None where the net is trained already) and returns a recipe; its
keyword-only arguments are the options that the command line may pass on. Nothing here touches
files: `jprune.train` runs recipes with checkpoints, `run` runs them in memory.

Read `stages.py` first (what recipes are made of), then `three_step.py`. `_training.py` has the
training step that all of them share, `_nets.py` what they ask about a net.
"""

import inspect
from collections.abc import Callable

from jprune import errors
from jprune.base import Learner, Recipe
from jprune.recipes import three_step
from jprune.recipes._nets import (
    cost_of,
    groups_of,
    shapes_of,
    slim_net,
    unit_masks,
    weight_masks,
)
from jprune.recipes._training import Sgd, evaluate, plain
from jprune.recipes.stages import (
    Evaluate,
    LongStage,
    Prune,
    Recalibrate,
    Repeat,
    Rewind,
    Save,
    Train,
    run,
    unrolled,
)

METHODS: dict[str, Callable[..., Recipe]] = {
    **three_step.METHODS,
}


def find(name: str) -> Callable[..., Recipe]:
    """The factory of a method.

    Args:
        name: as on the command line.

    Raises:
        ArgumentError: there is no such method; the message suggests the nearest.

    Example:
        >>> find("tailor")
        Traceback (most recent call last):
        jprune.errors.ArgumentError: There is no method 'tailor'; did you mean taylor? ...
    """
    if name not in METHODS:
        hint = errors.nearest(name, METHODS)
        raise errors.ArgumentError(
            f"There is no method {name!r}; {hint}The methods are {', '.join(METHODS)}; see "
            "`jprune methods`."
        )
    return METHODS[name]


def options(name: str) -> tuple[str, ...]:
    """Options that a method takes beyond budget, training and fine-tuning.

    Example:
        >>> options("l1")
        ('allocator', 'schedule', 'rounds', 'recalibrate')
    """
    parameters = inspect.signature(find(name)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "criterion")


__all__ = [
    "METHODS",
    "Evaluate",
    "Learner",
    "LongStage",
    "Prune",
    "Recalibrate",
    "Repeat",
    "Rewind",
    "Save",
    "Sgd",
    "Train",
    "cost_of",
    "evaluate",
    "find",
    "groups_of",
    "options",
    "plain",
    "run",
    "shapes_of",
    "slim_net",
    "unit_masks",
    "unrolled",
    "weight_masks",
]
