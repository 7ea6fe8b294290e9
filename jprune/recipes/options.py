"""Options of a method as text: what it takes, how a word becomes a value, and back.

This is the one place that reads numbers typed as "0.4:1:1" or "0.4:1+0.3"; recipes and stages take
numbers, sequences of them, or {name: number} (`jprune.train.numbers`).
"""

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jprune import errors
from jprune.recipes.methods import find

SCALARS = (int, float, bool, str, NoneType)


def options(name: str) -> dict[str, Any]:
    """Options that a method takes beyond budget, training and fine-tuning, with their types.

    Example:
        >>> list(options("l1"))
        ['allocator', 'schedule', 'rounds', 'recalibrate', 'per']
    """
    parameters = inspect.signature(find(name), eval_str=True).parameters.values()
    taken = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: kind for name, kind in taken.items() if _is_written(kind)}


def read_options(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a method from texts.

    Args:
        name: of the method.
        texts: "option=value" each. A value is a number, true, false, null or a word; where an
            option takes several numbers, ":" stands between them, and "+" between the numbers of
            one kind and those of the next, and between words.

    Raises:
        ArgumentError: a text without "=", an option that the method does not have, or a value of
            another type than it takes.

    Example:
        >>> read_options("l1", ["rounds=3", "schedule=cubic"])
        {'rounds': 3, 'schedule': 'cubic'}
        >>> read_options("ssl", ["families=filter+shape"])
        {'families': ('filter', 'shape')}
        >>> read_options("han", ["q=0.4:1:1"]), read_options("han", ["q=scan"])
        ({'q': (0.4, 1.0, 1.0)}, {'q': 'scan'})
    """
    taken = options(name)
    return dict(_read_option(name, taken, text) for text in texts)


def read_values(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Values from texts, where no signature says of which type they are.

    Args:
        texts: "name=value" each: a number, numbers with ":" between, true, false, null or a word.
        option: where they come from, for the message.

    Raises:
        ArgumentError: a text without "=", or a name that comes twice.

    Example:
        >>> read_values(["size=32", "mean=0.5:0.4:0.5", "nesterov=false"], "--data-options")
        {'size': 32, 'mean': (0.5, 0.4, 0.5), 'nesterov': False}
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, word = text.partition("=")
        name = name.replace("-", "_")
        if not (equals and name and word) or name in values:
            raise errors.ArgumentError(
                f"{option} {text}: write NAME=VALUE, each name once, with commas between."
            )
        try:
            values[name] = json.loads(word)
        except json.JSONDecodeError:
            try:
                values[name] = numbers(word)
            except ValueError:
                values[name] = word
    return values


def written(value: Any) -> Any:
    """An option's value as the command line has it; what is no sequence or mapping stays.

    Example:
        >>> written(((0.4, 1.0), (0.3,))), written((0.4, 1.0)), written(None)
        ('0.4:1+0.3', '0.4:1', None)
    """
    if isinstance(value, Mapping):
        return {name: written(inner) for name, inner in value.items()}
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    nested = any(isinstance(inner, Sequence) for inner in value)  # words are sequences, too
    words = (_text(inner) if isinstance(inner, int | float) else written(inner) for inner in value)
    return ("+" if nested else ":").join(words)


def _text(value: float) -> str:
    """A number without ".0", and with all its digits."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def numbers(word: str) -> float | tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """Numbers from text.

    Raises:
        ValueError: something in it is no number.

    Example:
        >>> numbers("0.5"), numbers("0.4:1:1"), numbers("0.4:1+0.3")
        (0.5, (0.4, 1.0, 1.0), ((0.4, 1.0), (0.3,)))
    """
    kinds = re.split(r"(?<![eE])\+", word)  # the plus of 1e+3 is no "+" between
    rows = [tuple(map(_number, part.split(":"))) for part in kinds]
    if len(rows) > 1:
        return tuple(rows)
    (row,) = rows
    return row[0] if len(row) == 1 else row


def _number(word: str) -> float:
    value = float(word)
    if math.isnan(value):
        raise ValueError(word)
    return value


def _is_written(kind: Any) -> bool:
    """Whether an option's value can be written as text."""
    plain = (*SCALARS, Sequence, Mapping, Literal)
    return all((get_origin(part) or part) in plain for part in _parts(kind))


def _parts(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    alone = get_origin(kind) in (Sequence, Mapping, Literal)
    return (kind,) if alone else get_args(kind) or (kind,)


def _read_option(method: str, taken: dict[str, Any], text: str) -> tuple[str, Any]:
    option, equals, word = text.partition("=")
    # As on the command line, where options are written with "-".
    option = option.replace("-", "_")
    if not equals and option in taken:
        raise errors.ArgumentError(
            f"the option {option} of {method} wants a value: write {option}=... with "
            f"{_wanted(_parts(taken[option]))}."
        )
    if option not in taken:
        raise errors.ArgumentError(
            f"the method {method} has no option {text!r}; {errors.nearest(option, taken)}"
            f"it has {', '.join(f'{name}=...' for name in taken) or 'none'}."
        )
    parts = _parts(taken[option])
    value = _value(word, parts)
    if not any(_is_of(value, part) for part in parts):
        raise errors.ArgumentError(
            f"{text!r}: the option {option} of {method} takes {_wanted(parts)}, not {word!r}."
        )
    return option, value


def _wanted(parts: Sequence[Any]) -> str:
    """What an option of these types takes, in words."""
    return " or ".join(dict.fromkeys(filter(None, map(_said, parts))))


def _value(word: str, parts: Sequence[Any]) -> Any:
    """The value of a word, for an option of these types."""
    of_several = [get_args(part)[0] for part in parts if get_origin(part) is Sequence]
    if str in of_several and "+" in word:
        return tuple(word.split("+"))
    if {*of_several} - {str}:
        try:
            return numbers(word)
        except ValueError:
            pass
    try:
        value = json.loads(word)
    except json.JSONDecodeError:
        value = word
    # "rounds=3" is an int, "stop=1" a float: the annotation says which.
    return float(value) if float in parts and type(value) is int else value


def _is_of(value: Any, part: Any) -> bool:
    """Whether a value is of a type of a union."""
    if get_origin(part) is Literal:
        return value in get_args(part)
    if get_origin(part) is Sequence:
        (inner,) = get_args(part)
        inside = _parts(inner)
        return isinstance(value, tuple) and all(
            any(_is_of(each, one) for one in inside) for each in value
        )
    # Not `isinstance`: True is an int for Python.
    return type(value) is part


def _said(part: Any) -> str:
    """A type in words; empty for one that cannot be typed as text."""
    if get_origin(part) is Literal:
        return " or ".join(map(str, get_args(part)))
    if get_origin(part) is Sequence:
        (inner,) = get_args(part)
        nested = inner is not float
        return "such numbers with '+' between" if nested else "numbers with ':' between"
    if get_origin(part) is Mapping:
        return ""
    return "null" if part is NoneType else part.__name__
