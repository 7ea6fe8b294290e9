"""Good files of every kind that is read, and what can be wrong with them."""

import copy
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    is_typeddict,
)
from typing import get_type_hints as hints_of

from jprune import foreign
from tests import compare_rows, run_fixture

DIGITS = "9" * 5000
TEXTS = {
    "empty": "",
    "no_json": "{",
    "no_object": "5",
    "list": "[]",
    "null": "null",
    "nothing_in_it": "{}",
    "nested_lists": "[" * 10_000,
    "nested_objects": '{"a":' * 10_000,
    "nested_and_closed": "[" * 10_000 + "]" * 10_000,
    "digits": f'{{"seed": {DIGITS}}}',
    "digits_of_a_float": f'{{"seed": 0.{DIGITS}}}',
    "infinite": '{"seed": 1e999}',
    "nan": '{"seed": NaN}',
    "minus_infinity": '{"seed": -Infinity}',
    "half_a_character": '{"model": "\\ud800"}',
    "no_utf8": b"\xff\xfe{}",
    "escapes": '{"\x1b[31m\x07": "\x1b]0;owned\x07"}',
    "escapes_in_json": '{"\\u001b[31m": 5}',
    "zero_bytes": b"\0" * 100,
    "long_name": '{"' + "n" * 10_000_000 + '": 5}',
    "long_text": '{"model": "' + "n" * 10_000_000 + '"}',
    "quotes": '{"a": "' + '\\"' * 1_000_000,
}
"""Whole files that no reader takes."""


def plan() -> dict[str, Any]:
    made = run_fixture.plan()
    leaf = "params/conv1/kernel"
    made["leaves"] = {leaf: [3, 5, 4, 16]}
    made["leaf_types"] = {leaf: {"form": "csr", "columns": [0, 3], "pointers": [0, 1, 2]}}
    made["equations"] = ["01234567"]
    return made


def good() -> dict[str, Any]:
    """{name of a file: its object}; of files of lines, a line."""
    return {
        "result.json": run_fixture.result(),
        "plan.json": plan(),
        "config.json": run_fixture.config(),
        "records.jsonl": run_fixture.records()[0],
        "rows.jsonl": compare_rows.row(),
    }


def write(folder: Path, **contents: Any) -> Path:
    """A finished run, with other files in it: `result_json=...`; bytes, text, or an object."""
    run_fixture.write(folder, plan=plan())
    for key, content in contents.items():
        put(folder / key.replace("_json", ".json"), content)
    return folder


def put(path: Path, content: Any) -> Path:
    """Writes bytes, text or an object of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def wrong(document: Any, schema: Any) -> Iterator[tuple[str, Any]]:
    """(what is wrong, a copy of the document) for every key of a schema."""
    for path, kind, needed in _places(document, schema, ()):
        name = ".".join(map(str, path))
        for value in _others(kind):
            yield f"{name}={json.dumps(value)[:20]}", _changed(document, path, value)
        if needed:
            yield f"no {name}", _changed(document, path)


def _places(value: Any, schema: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any, bool]]:
    """(path, kind, whether it has to be there) of all keys, one of a list's or dict's items."""
    schema = _plain(schema)
    if get_origin(schema) in (Union, types.UnionType):
        schema = next(one for one in get_args(schema) if one is not type(None))
    if is_typeddict(schema) and isinstance(value, dict):
        for key, kind in hints_of(schema, include_extras=True).items():
            if key in value:
                yield (*path, key), kind, key in schema.__required_keys__
                yield from _places(value[key], kind, (*path, key))
    elif get_origin(schema) is dict and value:
        key = next(iter(value))
        yield (*path, key), get_args(schema)[1], False
        yield from _places(value[key], get_args(schema)[1], (*path, key))
    elif get_origin(schema) is list and value:
        yield (*path, 0), get_args(schema)[0], False
        yield from _places(value[0], get_args(schema)[0], (*path, 0))


def _plain(schema: Any) -> Any:
    while get_origin(schema) in (Annotated, Required, NotRequired):
        schema = get_args(schema)[0]
    return schema


def _others(kind: Any) -> list[Any]:
    """Values of other kinds: two, to keep the table short; and one out of its range."""
    strange = [value for value in ("x", 5, [], {}, None, True) if not foreign._is_kind(value, kind)]
    return strange[:2] + ([-1] if kind is foreign.Size else [])


def _changed(document: Any, path: tuple[Any, ...], *value: Any) -> Any:
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value:
        inner[path[-1]] = value[0]
    else:
        del inner[path[-1]]
    return changed
