"""Options of a method as text: what it takes, and how a word becomes a value."""

import inspect
import json
from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args

from jprune import errors
from jprune.recipes.methods import find


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
