"""Runs a recipe in a directory: finished stages are skipped, a stopped one goes on."""

import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jprune import errors
from jprune.base import Pruned, Records, Stage, Task
from jprune.forms.leaf_type import is_leaf_type
from jprune.recipes import LongStage, evaluate, unrolled
from jprune.runs import checkpoint, devices, loop
from jprune.runs.directory import RunDirectory
from jprune.runs.files import make_folder, read_json, read_lines, write_json, write_lines
from jprune.runs.progress import Progress, Silent
from jprune.train.net import Net
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
        CheckpointError: a checkpoint is damaged, or the directory cannot be written to.
        DivergenceError: training met a loss that is not finite.
    """
    stages = tuple(unrolled(stages))
    # Names tell stages apart in the records, so two of one name get numbers.
    names = numbered([_name(stage) for stage in stages])
    home = directory.path / "stages"
    folders = [home / f"{number:02d}-{name}" for number, name in enumerate(names, start=1)]
    if not devices.is_first():
        # All processes run the same program; one of them talks.
        progress = Silent()
    done, pruned = devices.from_first(lambda: _resumed(home, folders, task, start))
    pruned = devices.gathered(pruned)
    for number in range(done, len(stages)):
        place = _Place(directory, folders[number], names[: number + 1], len(stages), progress)
        # By number, not by splitting along the way: a stage draws the same whether the stages
        # before it ran in this process or an earlier one.
        stage_key = jax.random.fold_in(key, number + 1)
        pruned = _run(place, stages[number], pruned, task, stage_key, save_seconds)
    return pruned


def _resumed(
    home: pathlib.Path, folders: Sequence[pathlib.Path], task: Task, start: Callable[[], Pruned]
) -> tuple[int, Pruned]:
    """How many stages are done, and the net after them; deletes folders of all other stages."""
    done = next((n for n, f in enumerate(folders) if not (f / "DONE").exists()), len(folders))
    # `start` trains or reads nothing if there is a net: it may be a large file.
    pruned = _latest(folders[:done], task) or start()
    # They began with a net that is about to change, or are of a recipe that has changed since.
    for folder in {*home.glob("*")} - {*folders[: done + 1]}:
        shutil.rmtree(folder, ignore_errors=True)
    return done, pruned


class _Place(NamedTuple):
    """Where a stage stands in its run."""

    directory: RunDirectory
    folder: pathlib.Path
    names: list[str]
    """Of the stages up to this one."""
    of: int
    progress: Progress

    @property
    def name(self) -> str:
        return self.names[-1]

    def begin(self, steps: int, done: int) -> None:
        """Shows the stage, and deletes records of steps that are about to be done again."""
        dropped = lambda: _keep_records(self.directory, {*self.names[:-1]}, self.name, done)
        devices.from_first(dropped)
        self.progress.begin(self.name, len(self.names), self.of, steps, done)

    def append(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        entry = {"stage": self.name, "step": step, "metrics": metrics}
        devices.from_first(lambda: self.directory.append(entry, seconds))

    def finish(self, before: Pruned, after: Pruned, seconds: float, records: Records) -> None:
        """Writes the net, if the stage has changed it, and then `DONE`."""
        if after is not before:
            # First the net, then DONE: a kill in between does the stage again, never skips it.
            checkpoint.save(self.folder / "state", 0, after._asdict(), {})
        outcome = {"wall_s": round(seconds, 3), "records": records, "net": after is not before}
        write_json(self.folder / "DONE", outcome)
        # Checkpoints are of use until DONE is there; they are as large as the net and its
        # optimizer.
        shutil.rmtree(self.folder / "steps", ignore_errors=True)


def _run(
    place: _Place, stage: Stage, pruned: Pruned, task: Task, key: jax.Array, save_seconds: float
) -> Pruned:
    if isinstance(stage, LongStage):
        after = _long(place, stage, pruned, task, key, save_seconds)
    else:
        place.begin(0, 0)
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
    steps = place.folder / "steps"
    # Made anew after a kill: only its state comes from the checkpoint.
    learner = stage.learner(pruned, task, key)
    restored = loop.restore(steps, learner, key)
    place.begin(learner.steps, restored.step)
    validate = lambda variables: evaluate(task, variables, "validation")
    hooks = loop.Hooks(place.append, validate, place.progress, save_seconds)
    after, seconds = loop.fit(learner, restored, steps, key, hooks)
    devices.from_first(lambda: place.finish(pruned, after, seconds, []))
    return after


def _short(
    place: _Place, stage: Stage, pruned: Pruned, task: Task, key: jax.Array
) -> Pruned | None:
    """A stage without steps, on the devices of the first process; None if the net is unchanged."""
    make_folder(place.folder)
    placed_net = pruned
    if not getattr(stage, "alone", False):
        task = devices.spread(task, local=True)
        placed = devices.everywhere((pruned.variables, dict(pruned.saved)), local=True)
        placed_net = pruned._replace(variables=placed[0], saved=placed[1])
    # The time of the stage's work alone: moving arrays to the devices is none of it.
    began = time.perf_counter()
    after, records = stage(placed_net, task, key)
    seconds = time.perf_counter() - began
    after = pruned if after is placed_net else devices.gathered(after)
    for entry in records:
        place.directory.append({**entry, "stage": place.name}, seconds)
    place.finish(pruned, after, seconds, records)
    return None if after is pruned else after


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


def _keep_records(directory: RunDirectory, done: set[str], stage: str, step: int) -> None:
    """Deletes records of stages that are not done, and of steps behind the checkpoint."""
    lines = read_lines(directory.records)
    records = [
        record
        for record in lines.records
        if (name := record.get("stage")) in done
        or (name == stage and 0 < record.get("step", 0) <= step)
    ]
    if lines.dropped or len(records) < len(lines.records):
        write_lines(directory.records, records)


def _latest(folders: Sequence[pathlib.Path], task: Task) -> Pruned | None:
    """The net after the last of these stages."""
    for folder in reversed(folders):
        with loop.advised(folder):
            saved = checkpoint.load(folder / "state")
        if saved is None and read_json(folder / "DONE").get("net"):
            raise errors.CheckpointError(
                f"{folder / 'state'} is missing: the net after a stage that is over. Delete the "
                f"folder {folder}: the same command then does this stage again."
            )
        if saved is None:
            continue
        pruned = Pruned(**saved.state)
        # Shapes, not values: leaf types count as one leaf, with the shape of the kernel that they
        # stand for.
        shapes = lambda tree: jax.tree.map(
            lambda leaf: (leaf.shape, str(leaf.dtype)), tree, is_leaf=is_leaf_type
        )
        if shapes(pruned.variables) != shapes(Net(task).shapes):
            raise errors.CheckpointError(
                f"the net in {folder / 'state'} is not {task.name}: its arrays have other names or "
                f"shapes. Delete the folder {folder}, or start anew with --overwrite."
            )
        return pruned
    return None
