"""Reading a finished run directory."""

import json
import os
import pathlib
from typing import Any, NamedTuple

from jprune import errors
from jprune.report import schema


class Run(NamedTuple):
    """What a run directory says about its run."""

    result: schema.Result
    records: list[dict[str, Any]]
    plan: dict[str, Any]
    config: dict[str, Any]


def read_run(run_dir: str | os.PathLike[str]) -> Run:
    """Reads `result.json`, `records.jsonl`, `plan.json` and `config.json` of a run.

    A last line of `records.jsonl` that was torn by a kill is left out.

    Args:
        run_dir: the `--out` of a finished `jprune prune`.

    Raises:
        CheckpointError: a file is missing or damaged; the message names it.
    """
    folder = pathlib.Path(run_dir)
    result = _json(folder / "result.json")
    # Checked here, once: all that follows reads keys without asking.
    schema.check(result, str(folder / "result.json"))
    plan = _json(folder / "plan.json")
    for key in ("groups", "frozen"):
        if key not in plan:
            raise errors.CheckpointError(f"{folder / 'plan.json'} has no `{key}`: it is no plan.")
    return Run(result, _records(folder / "records.jsonl"), plan, _json(folder / "config.json"))


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.CheckpointError(
            f"{path} cannot be read ({error}). A report needs the directory of a finished run: "
            "write `jprune report DIR`, DIR being the --out of `jprune prune`."
        ) from error


def _json(path: pathlib.Path) -> Any:
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise errors.CheckpointError(
            f"{path} is no JSON ({error}). Run the command of the run again."
        ) from error
    if not isinstance(content, dict):
        raise errors.CheckpointError(
            f"{path} holds a {type(content).__name__}; an object {{...}} was expected."
        )
    return content


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = _read(path).splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            # The last line alone may be torn; any other damage is no kill's.
            if number < len(lines):
                raise errors.CheckpointError(
                    f"{path}, line {number}, is no JSON ({error}). Only the last line can be torn "
                    "by a kill: take that line out, or run the command of the run again."
                ) from error
    return records
