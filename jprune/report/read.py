"""Reading a finished run directory."""

import os
import pathlib
from typing import Any, NamedTuple

from jprune import errors
from jprune.report import schema
from jprune.runs import files
from jprune.runs.inside import guarded


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
    folder = guarded(run_dir)
    result: Any = _whole(folder / "result.json")
    # Checked here, once: all that follows reads keys without asking.
    schema.check(result, str(folder / "result.json"))
    plan = _whole(folder / "plan.json")
    for key in ("groups", "frozen"):
        if key not in plan:
            raise errors.CheckpointError(f"{folder / 'plan.json'} has no `{key}`: it is no plan.")
    # A run has records from its first stage on.
    if not (folder / "records.jsonl").exists():
        raise errors.DamagedError(f"{folder / 'records.jsonl'} is missing. {files.AGAIN}")
    records = files.read_lines(folder / "records.jsonl").records
    return Run(result, records, plan, _whole(folder / "config.json"))


def _whole(path: pathlib.Path) -> dict[str, Any]:
    try:
        return files.read_json(path)
    except errors.DamagedError as error:
        raise errors.DamagedError(
            f"{error} A report needs the directory of a finished run: write `jprune report DIR`, "
            "DIR being the --out of `jprune prune`."
        ) from error
