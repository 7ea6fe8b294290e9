"""Text and files from somebody else: read within limits, checked against a schema, printed safely.

What a stranger has written is data and never more: a file is opened only if it is a regular one,
JSON is parsed within limits of size, depth and digits, `check` compares it with a schema (a
`TypedDict`, where the rest of the program finds the keys), and `shown` makes of it what a terminal
can print. Whoever reads such a file does so through this module and then reads keys without asking.
"""

import functools
import json
import os
import pathlib
import re
import stat
import types
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from jprune import errors

SHOWN = 200
"""Characters of foreign text that are printed at once, at most."""
BYTES = 2**26
"""Of a file of JSON. Parsed it takes up to thirty times the memory."""
LINES = 2**28
"""Bytes of a file of JSON lines, each of which may have `BYTES`."""
DEPTH = 100
DIGITS = 40
"""Of a number of JSON; what is counted and measured here has 20."""
STRING = 2**16
"""Characters of a string of JSON: a command line or an equation of many operands is the longest."""

# Possessive (`++`), so that no text makes the search go back; an unclosed string ends the text.
_STRINGS = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


class Range(NamedTuple):
    """Numbers from `low` to `high`, for `Annotated[int, Range(0, 9)]` in a schema."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"from {self.low} to {self.high}"


Size = Annotated[int, Range(0, 2**53)]
"""Counts, of which a double holds every one exactly."""
Axis = Annotated[int, Range(0, 31)]
Fraction = Annotated[float, Range(0, 1)]


def shown(value: Any, length: int = SHOWN) -> str:
    """Text of a foreign value for a terminal: one line, escaped, and cut.

    Args:
        value: a string, or anything else, of which the `str` is shown.
        length: characters at most.

    Example:
        >>> shown("conv1\\x1b[31m\\nnext"), shown("x" * 500, 10)
        ('conv1\\\\x1b[31m\\\\nnext', 'xxxxxxx...')
    """
    # Cut first: escaping 10 MB to show 200 characters would take its time.
    text = value[: length + 1] if isinstance(value, str) else _text(value, length)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= length else text[: length - 3] + "..."


def _text(value: Any, length: int) -> str:
    """The beginning of a value's `str`, without writing all of a large one."""
    if isinstance(value, list | tuple | dict) and len(value) > length:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        return str(value)[: length + 1]
    # An integer of thousands of digits, or nested too deeply.
    except (ValueError, RecursionError):
        return f"a large {type(value).__name__}"


def line(text: Any, length: int = 300) -> str:
    """A message in one line, escaped; where it is too long, its middle is left out.

    Example:
        >>> line("a\\x1b[0m is\\n no number", 40), line("ab" * 99, 20)
        ('a\\\\x1b[0m is no number', 'ababababab ... babab')
    """
    words = " ".join(str(text).split())
    # The end stays too: there stands what to write instead.
    head, tail = length // 2, length - length // 2 - 5
    if len(words) > length:
        words = f"{words[:head]} ... {words[-tail:]}"
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return escaped if len(escaped) <= length else f"{escaped[:head]} ... {escaped[-tail:]}"


def content(
    path: str | os.PathLike[str], limit: int | None = None, head: int | None = None
) -> bytes:
    """The content of a regular file; pipes, devices and folders are refused without a wait.

    Args:
        path: of a person's own: a link to a file is followed.
        limit: bytes of the file at most; None for any number.
        head: bytes to read from its beginning; None for all.

    Raises:
        CheckpointError: it is no regular file, longer, or cannot be read.
    """
    path = pathlib.Path(path)
    try:
        # O_NONBLOCK: opening a pipe would wait for its other end.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise errors.CheckpointError(f"{shown(path)} is no regular file.")
            if limit is not None and status.st_size > limit:
                raise errors.CheckpointError(
                    f"{shown(path)} has {status.st_size} bytes; expected {limit} at most."
                )
            return file.read(head)
    # A name with a zero byte is a ValueError.
    except (OSError, ValueError) as error:
        if isinstance(error, errors.JpruneError):
            raise
        why = getattr(error, "strerror", None) or error
        raise errors.CheckpointError(f"{shown(path)} cannot be read: {shown(why)}.") from error


def parse(text: bytes | str) -> Any:
    """A value of JSON, within the limits of this module.

    Numbers are finite; strings are Unicode that can be written again.

    Raises:
        ValueError: it is no JSON, or beyond a limit; the message is short, and safe to print.

    Example:
        >>> parse('{"a": [1, null]}')
        {'a': [1, None]}
        >>> parse("[" * 10_000)
        Traceback (most recent call last):
        ValueError: it is nested deeper than 100
    """
    if len(text) > BYTES:
        raise ValueError(f"it has {len(text)} characters; expected {BYTES} at most")
    try:
        decoded = text if isinstance(text, str) else text.decode()
        _require_shallow(decoded)
        value = _DECODER.decode(decoded)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON at character {error.pos}: {error.msg}") from error
    # Escapes can write halves of characters, which no file takes.
    if "\\u" in decoded:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it has a text that is no Unicode") from error
    return value


def _require_shallow(text: str) -> None:
    # Far fewer brackets than the limit, as in most lines: then nothing is searched.
    if len(text) <= STRING and text.count("[") + text.count("{") <= DEPTH:
        return
    depth = 0
    position = 0
    for string in _STRINGS.finditer(text):
        depth = _depth(text, position, string.start(), depth)
        position = string.end()
        if position - string.start() > STRING:
            raise ValueError(f"it has a text of more than {STRING} characters")
    _depth(text, position, len(text), depth)


def _depth(text: str, start: int, stop: int, depth: int) -> int:
    """The depth behind a part of a text that has no strings, from the depth before it."""
    for bracket in _BRACKETS.finditer(text, start, stop):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH}")
    return depth


def _require_digits(digits: str) -> None:
    if len(digits) > DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits; expected {DIGITS} at most")


def _integer(digits: str) -> int:
    _require_digits(digits)
    return int(digits)


def _real(digits: str) -> float:
    _require_digits(digits)
    value = float(digits)
    if not abs(value) < float("inf"):
        raise ValueError(f"it has the number {digits}, which is too large")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it has {name} where a number stands; null says that there is none")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_real, parse_constant=_no_number)


def check(
    value: Any,
    schema: Any,
    source: str,
    advice: str = "",
    error: type[errors.JpruneError] = errors.CheckpointError,
) -> None:
    """Compares a value of JSON with a schema.

    Keys that the schema does not have are no mistake: a later version may write more of them.

    Args:
        value: from `parse`.
        schema: a `TypedDict`, `dict[str, ...]`, `list[...]`, `int`, `float` (an integer is one
            too), `str`, `bool`, `Any`, a `Literal`, a union of them, or one of the numbers with
            `Annotated[..., Range(low, high)]`.
        source: what to call the value, such as the file's name.
        advice: what to do, behind the message.
        error: class of the error.

    Raises:
        CheckpointError: names the key, what came there and what was expected.

    Example:
        >>> check({"axis": [0, "x"]}, dict[str, list[int]], "a.json")
        Traceback (most recent call last):
        jprune.errors.CheckpointError: a.json has 'x' at `axis[1]`; a whole number was expected.
    """
    _Check(source, f" {advice}" if advice else "", error).value(value, schema, "")


class _Check(NamedTuple):
    source: str
    advice: str
    error: type[errors.JpruneError]

    def value(self, value: Any, schema: Any, key: str) -> None:
        """Walks a value and its schema together."""
        origin, inner = get_origin(schema), get_args(schema)
        if origin in (Required, NotRequired):
            self.value(value, inner[0], key)
        elif origin in (Union, types.UnionType):
            self._union(value, inner, key)
        elif origin is Annotated:
            self.value(value, inner[0], key)
            limits = next((limit for limit in inner[1:] if isinstance(limit, Range)), None)
            if limits and not limits.low <= value <= limits.high:
                self._refuse(value, key, f"a number {limits}")
        elif not _is_kind(value, schema):
            self._refuse(value, key, _words(schema))
        elif is_typeddict(schema):
            self._keys(value, schema, key)
        elif origin is dict:
            for name, item in value.items():
                self.value(item, inner[1], _inner(key, name))
        elif origin is list:
            for position, item in enumerate(value):
                self.value(item, inner[0], f"{key}[{position}]")

    def _union(self, value: Any, options: tuple[Any, ...], key: str) -> None:
        fitting = [option for option in options if _is_kind(value, option)]
        if not fitting:
            self._refuse(value, key, " or ".join(map(_words, options)))
        self.value(value, fitting[0], key)

    def _keys(self, value: Mapping[str, Any], schema: Any, key: str) -> None:
        for name, kind in _hints(schema).items():
            if name in value:
                self.value(value[name], kind, _inner(key, name))
            elif name in schema.__required_keys__:
                raise self.error(
                    f"{self.source} has no `{_inner(key, name)}`; {_words(kind)} was expected."
                    f"{self.advice}"
                )

    def _refuse(self, value: Any, key: str, expected: str) -> NoReturn:
        where = f" at `{key}`" if key else ""
        raise self.error(
            f"{self.source} has {_short(value)}{where}; {expected} was expected.{self.advice}"
        )


@functools.cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def _inner(key: str, name: str) -> str:
    name = shown(name, 40)
    # A key of many levels keeps its end.
    return f"{key if len(key) <= 40 else '...' + key[-37:]}.{name}" if key else name


def _short(value: Any) -> str:
    """A value as JSON has it, cut."""
    match value:
        case None | True | False:
            return json.dumps(value)
        case str():
            return f"'{shown(value, 40)}'"
        case dict():
            return "an object {...}"
        case list() | tuple():
            return "a list [...]"
        case _:
            return shown(value, 40)


_KINDS: dict[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a text"),
    bool: (bool, "true or false"),
    type(None): (type(None), "null"),
    None: (type(None), "null"),
    dict: (dict, "an object {...}"),
    list: (list, "a list [...]"),
}


def _plain(schema: Any) -> Any:
    """The schema without what `Annotated`, `Required` and `NotRequired` put around it."""
    while get_origin(schema) in (Annotated, Required, NotRequired):
        schema = get_args(schema)[0]
    return schema


def _is_kind(value: Any, schema: Any) -> bool:
    """Whether a value is of a schema's kind, whatever stands in it."""
    schema = _plain(schema)
    if schema is Any:
        return True
    if get_origin(schema) is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(schema))
    if get_origin(schema) in (Union, types.UnionType):
        return any(_is_kind(value, option) for option in get_args(schema))
    kind = dict if is_typeddict(schema) else get_origin(schema) or schema
    # In Python, True is a number; in a file it is a mistake.
    return isinstance(value, _KINDS[kind][0]) and (kind is bool or not isinstance(value, bool))


def _words(schema: Any) -> str:
    schema = _plain(schema)
    if get_origin(schema) is Literal:
        return " or ".join(map(repr, get_args(schema)))
    if get_origin(schema) in (Union, types.UnionType):
        return " or ".join(map(_words, get_args(schema)))
    if schema is Any:
        return "a value"
    return _KINDS[dict if is_typeddict(schema) else get_origin(schema) or schema][1]
