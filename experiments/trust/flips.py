"""Turns single bits over in the files of runs, and goes on with them.

    python -m experiments.trust.flips --count 500 --seed 0

The runs: one that is finished, one that was stopped in its training, one in its fine-tuning. A flip
is noticed (somebody is told, or the run ends with an error of jprune's) or harmless; what must hold
besides: the run that goes on is bit-identical to one that was never damaged.
"""

import functools
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from experiments import rows
from experiments.trust.compared import differences
from jprune import Budget, errors
from jprune.base import Task
from jprune.job import main as jobs
from jprune.job.nets import net_for
from jprune.runs import loop
from jprune.runs.progress import Silent
from jprune.runs.whole import verdicts

OUT = rows.RESULTS / "engine" / "flips.jsonl"
JOB = jobs.Job(
    model="tests.toys:tiny",
    data="digits",
    method="taylor",
    budget=Budget(macs=0.5, multiple_of=4),
    epochs=1,
    finetune_epochs=1,
    batch_size=128,
    options={"rounds": 2},
)
STOPS = {"training": ("train", 9), "finetuning": ("finetune", 4)}
UNREAD = ("report.html", "report.png")
"""Files that nothing reads again."""


class Stop(BaseException):
    """Stands for a kill."""


class StopAt(Silent):
    """Stops a run at a step of a stage."""

    def __init__(self, stage: str, step: int):
        self._where, self._step, self._stage = stage, step, ""

    def begin(self, stage: str, number: int, of: int, steps: int, done: int) -> None:
        """Remembers the stage."""
        self._stage = stage

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        """Stops."""
        if self._stage == self._where and step >= self._step:
            raise Stop


class Told(Silent):
    """Counts what people are told."""

    def __init__(self):
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """One more."""
        self.notes.append(text)


class Flip(NamedTuple):
    """What became of a flip.

    Attributes:
        run: `finished`, or where it was stopped.
        kind: of the file.
        file: path below the run.
        outcome: `noticed`, `harmless`, or a fault.
        detail: what was told.
        checked: whether `jprune check` said so.
    """

    run: str
    kind: str
    file: str
    outcome: str
    detail: str
    checked: bool


def go_on(out: Path, task: Task, progress: Silent) -> None:
    """Runs the command of the run."""
    jobs.prune(JOB, out, "command", progress, save_seconds=0.0, measure_seconds=0.0, task=task)


def runs(folder: Path, task: Task) -> dict[str, Path]:
    """{name: folder of a run}."""
    made = {"finished": folder / "finished"}
    go_on(made["finished"], task, Silent())
    for name, where in STOPS.items():
        made[name] = folder / name
        try:
            go_on(made[name], task, StopAt(*where))
        except Stop:
            continue
        raise RuntimeError(f"the run went past {where}")
    return made


def kind_of(file: Path) -> str:
    """`DONE`, `state`, `steps`, or the first name of the path."""
    parts = file.parts
    return parts[2] if parts[0] == "stages" else parts[0]


def flip(name: str, run: Path, whole: Path, place: Path, task: Task, draw: np.random.Generator):
    """Copies a run, turns one bit over, goes on, and compares."""
    shutil.copytree(run, place)
    files: dict[str, list[Path]] = {}
    for path in sorted(place.rglob("*")):
        file = path.relative_to(place)
        if path.is_file() and path.stat().st_size and file.name not in UNREAD:
            files.setdefault(kind_of(file), []).append(file)
    # Kinds first: a run has a hundred times as many files of checkpoints as plans.
    kind = sorted(files)[int(draw.integers(len(files)))]
    file = files[kind][int(draw.integers(len(files[kind])))]
    content = bytearray((place / file).read_bytes())
    bit = int(draw.integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    (place / file).write_bytes(content)
    seen, told = not all(verdict.stands for verdict in verdicts(place)), Told()
    try:
        go_on(place, task, told)
        wrong = differences(place, whole)
        outcome = f"differs: {wrong}" if wrong else "noticed" if told.notes else "harmless"
        detail = told.notes[0] if told.notes else ""
    except errors.JpruneError as error:
        outcome, detail = "noticed", str(error)
    # Whatever else comes is a fault of ours.
    except Exception as error:
        outcome, detail = f"traceback: {type(error).__name__}", str(error)
    return Flip(name, kind, f"{file} bit {bit}", outcome, detail, seen)


def main(count: int = 500, seed: int = 0, minutes: float = 60.0, out: Path = OUT) -> int:
    """Flips, compares, prints what is wrong, and adds a row.

    Args:
        count: of flips.
        seed: that files and bits are drawn from.
        minutes: after which there are no more flips.
        out: file of the rows.
    """
    loop.EVERY = 2
    # The same functions for all runs: compiled once.
    jobs.net_for = functools.lru_cache(net_for)
    task, draw, began = jobs.task_for(JOB), np.random.default_rng(seed), time.monotonic()
    flips: list[Flip] = []
    with tempfile.TemporaryDirectory() as name:
        made = runs(Path(name), task)
        while len(flips) < count and time.monotonic() - began < 60 * minutes:
            which = sorted(made)[int(draw.integers(len(made)))]
            place = Path(name) / "copy"
            shutil.rmtree(place, ignore_errors=True)
            flips.append(flip(which, made[which], made["finished"], place, task, draw))
            if flips[-1].outcome not in ("noticed", "harmless"):
                print(flips[-1], flush=True)
            if len(flips) % 20 == 0:
                print(len(flips), Counter(each.outcome for each in flips), flush=True)
    faults = [each for each in flips if each.outcome not in ("noticed", "harmless")]
    row = {
        "name": "flips",
        "seed": seed,
        "flips": len(flips),
        "outcomes": dict(Counter(each.outcome.partition(":")[0] for each in flips)),
        "noticed_by_check": sum(each.checked for each in flips),
        "by_kind": {
            kind: dict(Counter(each.outcome for each in flips if each.kind == kind))
            for kind in sorted({each.kind for each in flips})
        },
        "harmless": sorted({each.file.split(" ")[0] for each in flips if not each.detail}),
        "faults": [each._asdict() for each in faults],
    }
    print(row)
    rows.append(out, {**row, **rows.provenance()})
    return bool(faults)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
