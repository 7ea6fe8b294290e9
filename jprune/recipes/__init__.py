"""Recipes: a survey method whole, its stages put together with the paper's defaults.

Here belongs one short file per method or family; it defines `METHODS`, {name on the command line:
factory}. A factory is called as `factory(budget, train, finetune, **options)` with a `Budget` and
two `Train` stages (the first is None where the net is trained already) and returns a recipe; one
that has no fine-tuning takes no `finetune`. Its keyword-only arguments are the options that the
command line may pass on. Nothing here touches files: `jprune.train` runs recipes with checkpoints,
`run` runs them in memory.

Read `stages.py` first (what recipes are made of), then `three_step.py`. `_training.py` has the
training step that all of them share, `_nets.py` what they ask about a net, `_distill.py` a teacher
in the loss, `_controls.py` what experiments are compared with, `_forms.py` how nets run whose
kernels are held in another form, `_deformed.py` scores on images that are not as usual.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, get_args

from jprune import errors
from jprune.base import Learner, Recipe
from jprune.recipes import (
    channel_lasso,
    csgd,
    data_free,
    dns,
    edge_popup,
    eigendamage,
    fbs,
    gal,
    han,
    kronecker,
    lottery_ticket,
    metapruning,
    obd,
    obs,
    scratch,
    ssl,
    struct_admm,
    subset_sum,
    thinet,
    three_dimensions,
    three_step,
    variational,
)
from jprune.recipes._distill import distilled
from jprune.recipes._nets import (
    cost_of,
    groups_of,
    shapes_of,
    slim_net,
    unit_masks,
    weight_masks,
)
from jprune.recipes._running import CheckedStage, LongStage, Repeat, run, unrolled
from jprune.recipes._training import Sgd, evaluate, plain
from jprune.recipes.stages import (
    Evaluate,
    Prune,
    Recalibrate,
    Rewind,
    Save,
    Train,
)

METHODS: dict[str, Callable[..., Recipe]] = {
    **three_step.METHODS,
    **han.METHODS,
    **dns.METHODS,
    **edge_popup.METHODS,
    **subset_sum.METHODS,
    **lottery_ticket.METHODS,
    **scratch.METHODS,
    **metapruning.METHODS,
    **three_dimensions.METHODS,
    **obd.METHODS,
    **obs.METHODS,
    **eigendamage.METHODS,
    **kronecker.METHODS,
    **data_free.METHODS,
    **channel_lasso.METHODS,
    **thinet.METHODS,
    **ssl.METHODS,
    **struct_admm.METHODS,
    **gal.METHODS,
    **fbs.METHODS,
    **csgd.METHODS,
    **variational.METHODS,
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


def options(name: str) -> dict[str, Any]:
    """Options that a method takes beyond budget, training and fine-tuning, with their types.

    Example:
        >>> list(options("l1"))
        ['allocator', 'schedule', 'rounds', 'recalibrate', 'per']
    """
    parameters = inspect.signature(find(name), eval_str=True).parameters.values()
    taken = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: kind for name, kind in taken.items() if _plain(kind)}


def _plain(kind: Any) -> bool:
    """Whether an option's value can be written as text."""
    return all(part in (int, float, bool, str, NoneType) for part in get_args(kind) or (kind,))


def read_options(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a method from texts.

    Args:
        name: of the method.
        texts: "option=value" each; a value is a number, true, false, null or a word.

    Raises:
        ArgumentError: a text without "=", an option that the method does not have, or a value of
            another type than it takes.

    Example:
        >>> read_options("l1", ["rounds=3", "schedule=cubic"])
        {'rounds': 3, 'schedule': 'cubic'}
    """
    taken = options(name)
    return dict(_read_option(name, taken, text) for text in texts)


def _read_option(method: str, taken: dict[str, Any], text: str) -> tuple[str, Any]:
    option, given, word = text.partition("=")
    option = option.replace("-", "_")
    if not given or option not in taken:
        raise errors.ArgumentError(
            f"the method {method} has no option {text!r}; {errors.nearest(option, taken)}"
            f"it has {', '.join(f'{name}=...' for name in taken) or 'none'}."
        )
    kinds = get_args(taken[option]) or (taken[option],)
    try:
        value = json.loads(word)
    except json.JSONDecodeError:
        value = word
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds:
        wanted = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
        raise errors.ArgumentError(
            f"{text!r}: the option {option} of {method} takes {wanted}, not {word!r}."
        )
    return option, value


__all__ = [
    "METHODS",
    "CheckedStage",
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
    "distilled",
    "evaluate",
    "find",
    "groups_of",
    "options",
    "plain",
    "read_options",
    "run",
    "shapes_of",
    "slim_net",
    "unit_masks",
    "unrolled",
    "weight_masks",
]
