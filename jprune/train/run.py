"""The run directory: stages one after the other, each done once, whatever kills the run.

    config.json                 the settings, written once
    records.jsonl               a line per look at the training, per evaluation, ...
    stages/01-train/DONE        the stage is over: its seconds, and its records if it is short
    stages/01-train/state/      the net after it, where it changed the net
    stages/01-train/steps/      the newest checkpoint while it trains

Running the same command again does what is not done. A stage that was killed is done again, from
its newest checkpoint where it has some; its records from behind that point are dropped first, so
the records of a killed and resumed run are those of an undisturbed one, times aside.

Runs use all devices that JAX shows, see `devices.py`. A stage with an attribute `alone` that is
true is given one: what is exported or timed is a net on one device.
"""

import contextlib
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jprune import errors
from jprune.base import Pruned, Records, Stage, Task
from jprune.graph.leaves import is_leaf_type
from jprune.recipes import LongStage, evaluate, shapes_of, unrolled
from jprune.recipes._resolution import at_resolution
from jprune.train import checkpoint, devices, loop
from jprune.train.files import (
    TEMPORARY,
    PathLike,
    append_line,
    locked,
    make_folder,
    plain,
    read_json,
    read_lines,
    write_json,
    write_lines,
)
from jprune.train.progress import Progress, Silent

SCHEMA = 1
OURS = (
    "config.json",
    "records.jsonl",
    "result.json",
    "plan.json",
    "params",
    "model.stablehlo",
    "model.tflite",
    "report.html",
    "report.png",
    "stages",
)
"""All that a run writes into its directory."""


class RunDirectory(NamedTuple):
    """A directory that was opened for a run."""

    path: pathlib.Path
    about: dict[str, Any]
    """In every record: run, data, model, method, budget, seed, commit."""
    provenance: dict[str, Any]
    """In the first record: versions and device."""

    @property
    def records(self) -> pathlib.Path:
        """Path of the records."""
        return self.path / "records.jsonl"

    def append(self, entry: Mapping[str, Any], seconds: float) -> None:
        """Writes a record, with where it comes from."""
        first = not self.records.exists() or not self.records.stat().st_size
        line = {**self.about, **entry, "wall_s": round(seconds, 3)}
        append_line(self.records, {**line, **self.provenance} if first else line)

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """What the `DONE` of every finished stage says, by name, in order.

        Returns:
            {name: {"wall_s": seconds that it took, "records": those of a short stage}}.
        """
        files = sorted((self.path / "stages").glob("*/DONE"))
        return {file.parent.name.partition("-")[2]: read_json(file) for file in files}


@contextlib.contextmanager
def held(
    path: PathLike,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> Iterator[RunDirectory]:
    """Opens a directory as `open_directory` does, and keeps it to this run until it is over.

    Raises:
        CheckpointError: as `open_directory`; or another run has it, which the message names.
    """
    with contextlib.ExitStack() as stack:
        devices.from_first(lambda: stack.enter_context(locked(path)))
        yield open_directory(path, config, about, provenance, overwrite)


def open_directory(
    path: PathLike,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> RunDirectory:
    """Opens a directory for a run, new or to go on with.

    Args:
        path: the directory; made if it is not there.
        config: the settings, plain data. Whoever comes back has to bring the same.
        about: what every record says.
        provenance: what the first record says.
        overwrite: start anew; only files that runs write are removed.

    Raises:
        CheckpointError: the directory cannot be written to, belongs to something else, or to a run
            with other settings, which the message names.
    """
    return devices.from_first(
        lambda: _opened(make_folder(path), config, about, provenance, overwrite)
    )


def _opened(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    provenance: Mapping[str, Any],
    overwrite: bool,
) -> RunDirectory:
    settings = plain({"schema": SCHEMA, **config})
    if not (folder / "config.json").exists():
        # A file system may add hidden files of its own.
        strange = sorted(f.name for f in folder.iterdir() if not f.name.startswith("."))
        if strange:
            raise errors.CheckpointError(
                f"{folder} is not empty and no run of jprune (it has {strange[0]} and no "
                "config.json). Choose an empty or new directory with --out DIR."
            )
    elif overwrite:
        _clear(folder)
    else:
        _check_same(folder, read_json(folder / "config.json"), settings)
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", settings)
    _sweep(folder)
    return RunDirectory(folder, {"run": folder.resolve().name, **about}, dict(provenance))


def _clear(folder: pathlib.Path) -> None:
    # The configuration goes last: without it the rest would look like somebody else's.
    for name in reversed(OURS):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _sweep(folder: pathlib.Path) -> None:
    """Removes what a kill left half written."""
    for pattern in (f".*{TEMPORARY}", f"stages/*/.*{TEMPORARY}"):
        for file in folder.glob(pattern):
            file.unlink()
    for half in folder.glob("params.orbax-checkpoint-tmp*"):
        shutil.rmtree(half)


def _check_same(folder: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = _flat(old), _flat(new)
    names = [name for name in {**after, **before} if before.get(name) != after.get(name)]
    if names:
        differing = "; ".join(
            f"{name} is {before.get(name)!r} there and {after.get(name)!r} here" for name in names
        )
        raise errors.CheckpointError(
            f"{folder} holds a run with other settings: {differing}. Choose another --out, or "
            "write --overwrite to start anew."
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {path with dots: value}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def execute(
    directory: RunDirectory,
    stages: Sequence[Stage],
    task: Task,
    key: jax.Array,
    start: Callable[[], Pruned],
    progress: Progress,
    save_seconds: float = loop.SAVE_SECONDS,
) -> Pruned:
    """Runs the stages that are not done.

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
    names = numbered([_name(stage) for stage in stages])
    home = directory.path / "stages"
    folders = [home / f"{number:02d}-{name}" for number, name in enumerate(names, start=1)]
    if not devices.is_first():
        progress = Silent()
    done, pruned = devices.from_first(lambda: _resumed(home, folders, task, start))
    pruned = devices.gathered(pruned)
    for number in range(done, len(stages)):
        place = _Place(directory, folders[number], names[: number + 1], len(stages), progress)
        stage_key = jax.random.fold_in(key, number + 1)
        pruned = _run(place, stages[number], pruned, task, stage_key, save_seconds)
    return pruned


def _resumed(
    home: pathlib.Path, folders: Sequence[pathlib.Path], task: Task, start: Callable[[], Pruned]
) -> tuple[int, Pruned]:
    """How many stages are done, and the net after them; removes what is left of others."""
    done = next((n for n, f in enumerate(folders) if not (f / "DONE").exists()), len(folders))
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
        """Shows the stage, and drops records of what is about to be done again."""
        dropped = lambda: _keep_records(self.directory, {*self.names[:-1]}, self.name, done)
        devices.from_first(dropped)
        self.progress.begin(self.name, len(self.names), self.of, steps, done)

    def append(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        entry = {"stage": self.name, "step": step, "metrics": metrics}
        devices.from_first(lambda: self.directory.append(entry, seconds))

    def finish(self, before: Pruned, after: Pruned, seconds: float, records: Records) -> None:
        """Writes down that the stage is over, and the net if it is another one now."""
        if after is not before:
            checkpoint.save(self.folder / "state", 0, after._asdict(), {})
        outcome = {"wall_s": round(seconds, 3), "records": records, "net": after is not before}
        write_json(self.folder / "DONE", outcome)
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
    """Training, on the devices of all processes."""
    task = devices.spread(at_resolution(task, pruned))
    steps = place.folder / "steps"
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
    """What is done at a stroke, on the devices of the first process; None if the net stays."""
    make_folder(place.folder)
    given = pruned
    if not getattr(stage, "alone", False):
        task = devices.spread(task, local=True)
        placed = devices.everywhere((pruned.variables, dict(pruned.saved)), local=True)
        given = pruned._replace(variables=placed[0], saved=placed[1])
    began = time.perf_counter()
    after, records = stage(given, task, key)
    seconds = time.perf_counter() - began
    after = pruned if after is given else devices.gathered(after)
    for entry in records:
        place.directory.append({**entry, "stage": place.name}, seconds)
    place.finish(pruned, after, seconds, records)
    return None if after is pruned else after


def _name(stage: Stage) -> str:
    return getattr(stage, "name", type(stage).__name__.lower())


def numbered(names: Sequence[str]) -> list[str]:
    """Names that differ: the second "prune" is "prune-2".

    Example:
        >>> numbered(["prune", "train", "prune"])
        ['prune', 'train', 'prune-2']
    """
    found: list[str] = []
    for name in names:
        count = sum(other == name or other.startswith(f"{name}-") for other in found)
        found.append(name if not count else f"{name}-{count + 1}")
    return found


def _keep_records(directory: RunDirectory, done: set[str], stage: str, step: int) -> None:
    """Drops records of what is not done: other stages, and steps behind the checkpoint."""
    found = read_lines(directory.records)
    kept = [
        record
        for record in found.records
        if (name := record.get("stage")) in done
        or (name == stage and 0 < record.get("step", 0) <= step)
    ]
    if found.dropped or len(kept) < len(found.records):
        write_lines(directory.records, kept)


def _latest(folders: Sequence[pathlib.Path], task: Task) -> Pruned | None:
    """The net after the last of these stages."""
    for folder in reversed(folders):
        found = checkpoint.load(folder / "state")
        if found is None and read_json(folder / "DONE").get("net"):
            raise errors.CheckpointError(
                f"{folder / 'state'} is missing: the net after a stage that is over. Delete the "
                f"folder {folder}: the same command then does this stage again."
            )
        if found is None:
            continue
        pruned = Pruned(**found.state)
        shapes = lambda tree: jax.tree.map(
            lambda leaf: (leaf.shape, str(leaf.dtype)), tree, is_leaf=is_leaf_type
        )
        if shapes(pruned.variables) != shapes(shapes_of(task)):
            raise errors.CheckpointError(
                f"the net in {folder / 'state'} is not {task.name}: its arrays have other names or "
                f"shapes. Delete the folder {folder}, or start anew with --overwrite."
            )
        return pruned
    return None
