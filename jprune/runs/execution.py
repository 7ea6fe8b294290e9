"""Runs a recipe in a directory: finished stages are skipped, a stopped one goes on."""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jprune import interrupts
from jprune.base import Batch, Pruned, Records, Stage, Task
from jprune.recipes import LongStage, evaluate, unrolled
from jprune.runs import checkpoint, devices, digests, inside, loop
from jprune.runs.directory import RunDirectory, machines_of
from jprune.runs.files import make_folder
from jprune.runs.progress import Progress, Silent
from jprune.runs.resuming import differences, keep_records, resumed
from jprune.train.task import at_resolution


def execute(
    directory: RunDirectory,
    stages: Sequence[Stage],
    task: Task,
    key: jax.Array,
    start: Callable[[], Pruned],
    progress: Progress,
    save_seconds: float = loop.SAVE_SECONDS,
) -> Pruned:
    """Runs the stages of a recipe that are not done yet.

    Args:
        directory: from `open_directory`.
        stages: a recipe, perhaps with stages of the leaves behind it.
        task: net, loss and data.
        key: the n-th stage gets `fold_in(key, n)`, n from 1.
        start: makes the net that the first stage begins with.
        progress: is shown what happens.
        save_seconds: time between two checkpoints of training.

    Returns:
        The net after the last stage.

    Raises:
        CheckpointError: a net is of another task, or the directory cannot be written to.
        DivergenceError: training met a loss that is not finite.
        Interrupted: the run was asked to end.
    """
    stages = tuple(unrolled(stages))
    # Names tell stages apart in the records, so two of one name get numbers.
    names = numbered([_name(stage) for stage in stages])
    home = directory.path / inside.STAGES
    folders = [home / f"{number:02d}-{name}" for number, name in enumerate(names, start=1)]
    if not devices.is_first():
        # All processes run the same program; one of them talks.
        progress = Silent()
    done, pruned, again = devices.from_first(
        lambda: resumed(directory, folders, task, start, progress.note)
    )
    pruned = devices.gathered(pruned)
    for number in (*again, *range(done, len(stages))):
        if devices.from_first(interrupts.asked):
            raise interrupts.stopped(f"{max(done, number)} of {len(stages)} stages are saved")
        place = _Place(
            directory, folders[number], names[: number + 1], len(stages), progress, [], []
        )
        # By number, not by splitting along the way: a stage draws the same whether the stages
        # before it ran in this process or an earlier one.
        stage_key = jax.random.fold_in(key, number + 1)
        if number < done:
            made = functools.partial(_again, place, stages[number], pruned, task, stage_key)
            devices.from_first(made)
        else:
            pruned = _run(place, stages[number], pruned, task, stage_key, save_seconds)
    if devices.from_first(interrupts.asked):
        raise interrupts.stopped(f"all {len(stages)} stages are saved")
    return pruned


class _Place(NamedTuple):
    """Where a stage stands in its run."""

    directory: RunDirectory
    folder: pathlib.Path
    names: list[str]
    """Of the stages up to this one."""
    of: int
    progress: Progress

    lines: list[dict[str, Any]]
    """Of the records, those of this stage."""
    machines: list[dict[str, Any]]
    """That the stage ran on."""

    @property
    def name(self) -> str:
        return self.names[-1]

    def begin(self, steps: int, restored: loop.Restored | None = None) -> None:
        """Shows the stage, and deletes records of steps that are about to be done again."""
        done = 0
        if restored is not None:
            done = restored.step
            self.lines.extend(restored.facts.get("lines", []))
            self.machines.extend(restored.facts.get("machines", []))
            if restored.damage:
                self.progress.note(restored.damage)
        dropped = lambda: keep_records(
            self.directory, self.names[:-1], self.name, self.lines, self.progress.note
        )
        devices.from_first(dropped)
        self._remember_machine()
        self.progress.begin(self.name, len(self.names), self.of, steps, done)

    def _remember_machine(self) -> None:
        """Adds this machine to those of the stage, and says so if the run was elsewhere before."""
        machine = self.directory.provenance
        earlier = devices.from_first(lambda: machines_of(self.directory.outcomes()))
        before = self.machines or [machine for _, machine in earlier] or [machine]
        if changes := differences(before[-1], machine):
            self.progress.note(
                f"this run was begun elsewhere ({changes}): its numbers may differ in the last "
                "bits from those of a run on one machine."
            )
        if not self.machines or changes:
            self.machines.append(machine)

    def append(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Appends a record of training."""
        entry = {"stage": self.name, "step": step, "metrics": metrics}
        self.lines.append(devices.from_first(lambda: self.directory.append(entry, seconds)))

    def facts(self) -> dict[str, Any]:
        """What every checkpoint of the stage keeps."""
        settings = self.directory.settings
        return {"lines": self.lines, "machines": self.machines, "settings": settings}

    def finish(
        self, before: Pruned, after: Pruned, seconds: float, records: Records, files: Sequence[str]
    ) -> None:
        """Writes the net, if the stage has changed it, and then `DONE`."""
        if after is not before:
            # First the net, then DONE: a kill in between does the stage again, never skips it.
            checkpoint.save(self.folder / inside.STATE, 0, after._asdict(), {})
        self.directory.finish(
            self.folder,
            {
                "wall_s": round(seconds, 3),
                "records": records,
                "net": after is not before,
                "lines": self.lines,
                "files": digests.of_files(self.directory.path, files),
                "of": self.of,
                "machines": self.machines,
            },
        )
        # Checkpoints are of use until DONE is there; they are as large as the net and its
        # optimizer.
        inside.remove_checkpoints(self.folder / inside.STEPS)


def _run(
    place: _Place, stage: Stage, pruned: Pruned, task: Task, key: jax.Array, save_seconds: float
) -> Pruned:
    if isinstance(stage, LongStage):
        after = _long(place, stage, pruned, task, key, save_seconds)
    else:
        place.begin(0)
        # None stands for the net that it was: a copy would not be known as such.
        after = devices.from_first(lambda: _short(place, stage, pruned, task, key)) or pruned
    place.progress.end()
    return after


def _long(
    place: _Place, stage: LongStage, pruned: Pruned, task: Task, key: jax.Array, save_seconds: float
) -> Pruned:
    """A stage of training, on the devices of all processes; returns the trained net."""
    # The resolution first: images are resized on the host, before they are split.
    task = devices.spread(at_resolution(task, pruned))
    steps = place.folder / inside.STEPS
    # Made anew after a kill: only its state comes from the checkpoint.
    learner = stage.learner(pruned, task, key)
    restored = loop.restore(steps, learner, key)
    place.begin(learner.steps, restored)
    validate = lambda variables: evaluate(task, variables, "validation")
    hooks = loop.Hooks(place.append, validate, place.progress, save_seconds, place.facts)
    after, seconds = loop.fit(learner, restored, steps, key, hooks)
    devices.from_first(lambda: place.finish(pruned, after, seconds, [], ()))
    return after


def _short(
    place: _Place, stage: Stage, pruned: Pruned, task: Task, key: jax.Array
) -> Pruned | None:
    """A stage without steps, on the devices of the first process; None if the net is unchanged."""
    make_folder(place.folder)
    after, records, seconds = _called(place, stage, pruned, task, key)
    for entry in records:
        place.lines.append(place.directory.append({**entry, "stage": place.name}, seconds))
    place.finish(pruned, after, seconds, records, getattr(stage, "writes", ()))
    return None if after is pruned else after


def _again(place: _Place, stage: Stage, pruned: Pruned, task: Task, key: jax.Array) -> None:
    """Calls a stage that is over and changed no net, for the files that it leaves."""
    outcome = place.directory.outcomes()[place.name]
    _called(place, stage, pruned, task, key)
    files = digests.of_files(place.directory.path, getattr(stage, "writes", ()))
    place.directory.finish(place.folder, {**outcome, "files": files})


def _called(
    place: _Place, stage: Stage, pruned: Pruned, task: Task, key: jax.Array
) -> tuple[Pruned, Records, float]:
    """Calls a stage without steps; also returns the seconds that it took."""
    saved = f"{len(place.names) - 1} of {place.of} stages are saved"
    # Most of what takes long goes through the data: there a stage is left when the run is asked to
    # end.
    batches = functools.partial(_until_asked, task.data.batches, saved)
    task, placed_net = task._replace(data=task.data._replace(batches=batches)), pruned
    if not getattr(stage, "alone", False):
        task = devices.spread(task, local=True)
        placed = devices.everywhere((pruned.variables, dict(pruned.saved)), local=True)
        placed_net = pruned._replace(variables=placed[0], saved=placed[1])
    # The time of the stage's work alone: moving arrays to the devices is none of it.
    began = time.perf_counter()
    after, records = stage(placed_net, task, key)
    seconds = time.perf_counter() - began
    return pruned if after is placed_net else devices.gathered(after), records, seconds


def _until_asked(
    batches: Callable[..., Iterator[Batch]], saved: str, *args: Any, **options: Any
) -> Iterator[Batch]:
    """The same batches, until the run is asked to end."""
    for batch in batches(*args, **options):
        # With several processes an exception of the first alone would leave the others waiting.
        if jax.process_count() == 1 and interrupts.asked():
            raise interrupts.stopped(saved)
        yield batch


def _name(stage: Stage) -> str:
    return getattr(stage, "name", type(stage).__name__.lower())


def numbered(names: Sequence[str]) -> list[str]:
    """Makes names differ: the second "prune" becomes "prune-2".

    Example:
        >>> numbered(["prune", "train", "prune"])
        ['prune', 'train', 'prune-2']
    """
    numbers: list[str] = []
    for name in names:
        # `startswith`, since the second was renamed already.
        count = sum(other == name or other.startswith(f"{name}-") for other in numbers)
        numbers.append(name if not count else f"{name}-{count + 1}")
    return numbers
