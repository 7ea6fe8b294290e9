"""What digests and guards cost: their share of a run's time.

    python -m experiments.trust.cost

Expected: under 2 %.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import tyro

from experiments import rows
from jprune import Budget
from jprune.job import main as jobs
from jprune.runs import digests, files, inside
from jprune.runs.progress import Lines

OUT = rows.RESULTS / "engine" / "trust_cost.jsonl"
COUNTED = (
    (digests, "write"),
    (digests, "damage_of"),
    (digests, "damaged"),
    (digests, "of_files"),
    (files, "digest_of"),
    (inside, "guarded"),
)


class Counter:
    """Seconds within the functions, each counted once where one calls another."""

    def __init__(self):
        self.seconds, self._depth = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted."""

        @functools.wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began

        return counted


def main(
    model: str = "resnet8", data: str = "digits", save_seconds: float = 60.0, out: Path = OUT
) -> None:
    """Runs a job, prints the share, and adds a row.

    Args:
        model: name of the net.
        data: name of the data set.
        save_seconds: time between two checkpoints.
        out: file of the rows.
    """
    job, counter = jobs.Job(model, data, "taylor", Budget(macs=0.5, multiple_of=8)), Counter()
    with tempfile.TemporaryDirectory() as folder:
        patches = [
            mock.patch.object(room, name, counter.around(getattr(room, name)))
            for room, name in COUNTED
        ]
        for patch in patches:
            patch.start()
        began = time.perf_counter()
        jobs.prune(job, Path(folder) / "run", progress=Lines(), save_seconds=save_seconds)
        total = time.perf_counter() - began
        mock.patch.stopall()
    row = {"name": "trust_cost", "model": model, "data": data, "save_seconds": save_seconds}
    row |= {"seconds": counter.seconds, "total_s": total, "fraction": counter.seconds / total}
    print(row)
    rows.append(out, {**row, **rows.provenance()})


if __name__ == "__main__":
    tyro.cli(main)
