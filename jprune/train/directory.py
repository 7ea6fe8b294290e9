"""The run directory: stages that are done once, records that are never doubled.

`stages/NN-name/DONE` ends a stage: seconds it took, how many records there were, and what it
found. The same command on the same directory skips finished stages and goes on in the one that
was interrupted. Records of an interrupted stage are cut back to the last checkpoint and written
again, so a killed run leaves the same lines as an undisturbed one, times aside.
"""

import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from jprune import errors
from jprune.train.files import (
    append_line,
    keep_lines,
    make_folder,
    read_json,
    read_lines,
    write_json,
)


class RunDirectory:
    """A run on disk.

    Args:
        folder: where; made if it is not there.
        config: settings that decide the result; another config in the same folder is refused.
        common: what every record carries: run, data, model, method, budget, seed, commit.
        first: what the first record carries beside: versions and device.
        overwrite: start anew where there is a run already.

    Raises:
        CheckpointError: the folder cannot be written, holds something else, or a run with another
            config.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: dict[str, Any],
        common: dict[str, Any],
        first: dict[str, Any],
        overwrite: bool = False,
    ):
        self.folder = pathlib.Path(folder)
        self.common, self.first = common, first
        self.records = self.folder / "records.jsonl"
        self.seconds: dict[str, float] = {}
        self.number = 0
        self.lines = 0
        self.began = time.monotonic()
        marker = self.folder / "config.json"
        if overwrite and marker.exists():
            shutil.rmtree(self.folder)
        strangers = [entry.name for entry in make_folder(self.folder).iterdir()]
        if marker.exists():
            _same_config(read_json(marker), config, self.folder)
        elif strangers:
            raise errors.CheckpointError(
                f"{self.folder} holds {sorted(strangers)[:3]} but no config.json: it is no run of "
                "jprune. Give another --out."
            )
        else:
            write_json(marker, config)

    def stage(self, name: str, run: Callable[[pathlib.Path], dict[str, Any]]) -> dict[str, Any]:
        """Runs a stage unless it is done.

        Args:
            name: of the stage.
            run: `run(folder of the stage) -> what it found`, plain data for JSON.

        Returns:
            What the stage found, now or then.
        """
        folder = self.next_folder(name)
        self.number += 1
        done = folder / "DONE"
        if done.exists():
            entry = read_json(done)
            self.lines = entry["records"]
        else:
            make_folder(folder)
            keep_lines(self.records, self.lines)
            self.began = time.monotonic()
            found = run(folder)
            entry = {"wall_s": round(self.spent(), 3), "records": self.lines, "found": found}
            write_json(done, entry)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + entry["wall_s"], 3)
        return entry["found"]

    def next_folder(self, name: str) -> pathlib.Path:
        """The folder of the next stage, if it has this name."""
        return self.folder / "stages" / f"{self.number + 1:02d}-{name}"

    def spent(self) -> float:
        """Seconds of the current stage so far, those before an interruption included."""
        return time.monotonic() - self.began

    def resume(self, spent: float) -> None:
        """The current stage had taken so many seconds before it was interrupted."""
        self.began -= spent

    def record(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Appends one record."""
        extra = self.first if self.lines == 0 else {}
        line = {
            **self.common,
            "stage": stage,
            "step": step,
            "wall_s": round(self.spent(), 3),
            "metrics": metrics,
            **extra,
        }
        append_line(self.records, line)
        self.lines += 1

    def history(self) -> list[dict[str, Any]]:
        """All records so far."""
        return read_lines(self.records).records


def _same_config(found: Any, wanted: dict[str, Any], folder: pathlib.Path) -> None:
    """Refuses to go on with other settings."""
    if not isinstance(found, dict):
        raise errors.CheckpointError(f"{folder}/config.json is no config of jprune.")
    differ = [
        f"{key} was {found.get(key)!r} and is {wanted.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if differ:
        raise errors.CheckpointError(
            f"{folder} holds a run with other settings: {'; '.join(differ[:4])}. Give another "
            "--out, or write --overwrite to start anew."
        )
