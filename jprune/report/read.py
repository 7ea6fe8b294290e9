"""Reading a finished run directory."""

import os
import pathlib
from typing import Any, NamedTuple

from jprune import errors
from jprune.report import schema
from jprune.runs import files
from jprune.runs.inside import guarded
from jprune.runs.plans import read_plan
from jprune.runs.schemas import Config, Record


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
    # Checked here, once: all that follows reads keys without asking.
    result: Any = _whole(folder / "result.json")
    schema.check(result, str(folder / "result.json"))
    plan = read_plan(folder)
    # A run has records from its first stage on.
    if not (folder / "records.jsonl").exists():
        raise errors.DamagedError(f"{folder / 'records.jsonl'} is missing. {files.AGAIN}")
    records = files.read_lines(folder / "records.jsonl", Record).records
    return Run(result, records, plan, _whole(folder / "config.json", Config))


def _whole(path: pathlib.Path, kind: Any = None) -> dict[str, Any]:
    try:
        return files.read_json(path, kind)
    except errors.DamagedError as error:
        raise errors.DamagedError(
            f"{error} A report needs a finished run: `jprune report DIR`, the --out of prune."
        ) from error
