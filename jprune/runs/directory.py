"""The run directory: every stage is done once, however often the run is killed.

    config.json                 the settings, written once
    records.jsonl               a line per look at the training, per evaluation, ...
    stages/01-train/DONE        the stage is over: see `Outcome`
    stages/01-train/state/      the net after it, where it changed the net
    stages/01-train/steps/      the newest checkpoints while it trains

Running the same command again does what is not done, and makes again what is missing or damaged
(`resuming.py`). A stage that was killed is done again, from its newest checkpoint where it has
some; its records from behind that point are dropped first, so the records of a killed and resumed
run are those of an undisturbed one, times aside. All of it lies within the folder (`inside.py`).

Runs use all devices that JAX shows, see `devices.py`. A stage with an attribute `alone` that is
true is given one: what is exported or timed is a net on one device.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Required, TypedDict

from jprune import errors
from jprune.base import Records
from jprune.foreign import shown
from jprune.runs import checkpoint, devices, digests, inside
from jprune.runs.files import (
    PathLike,
    append_line,
    locked,
    make_folder,
    plain,
    read_json,
    write_json,
)
from jprune.runs.schemas import Done

SCHEMA = 1
Note = Callable[[str], None]
"""Told what a person should know."""


class Outcome(TypedDict, total=False):
    """What `DONE` holds. Those of older versions have the first three alone.

    Attributes:
        wall_s: seconds that the stage took.
        records: of a short stage.
        net: whether the stage changed the net, and so has a `state/`.
        lines: the stage's lines of `records.jsonl`.
        files: {path in the run's folder: digest} of what the stage left there.
        of: number of the recipe's stages.
        settings: as in `config.json`.
        machines: versions and device that the stage ran with; several if it went on elsewhere.
    """

    wall_s: Required[float]
    records: Required[Records]
    net: bool
    lines: list[dict[str, Any]]
    files: dict[str, str]
    of: int
    settings: dict[str, Any]
    machines: list[dict[str, Any]]


class RunDirectory(NamedTuple):
    """A directory that was opened for a run.

    Attributes:
        about: in every record: run, data, model, method, budget, seed, commit.
        provenance: in the first record: versions and device.
        settings: what is in `config.json`.
    """

    path: pathlib.Path
    about: dict[str, Any]
    provenance: dict[str, Any]
    settings: dict[str, Any]

    @property
    def records(self) -> pathlib.Path:
        """Path of the records."""
        return self.path / "records.jsonl"

    def append(self, entry: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Appends a record with `about` and its time; the first one with `provenance` too.

        Returns:
            The line.
        """
        # Versions and device stand in the first record alone: `DONE` has them for every stage.
        first = not self.records.exists() or not self.records.stat().st_size
        line = {**self.about, **entry, "wall_s": round(seconds, 3)}
        line |= self.provenance if first else {}
        append_line(self.records, line)
        return line

    def outcomes(self) -> dict[str, Outcome]:
        """Contents of the `DONE` files of all finished stages, in their order.

        Returns:
            {name: outcome}.

        Raises:
            DamagedError: one of them is damaged.
        """
        return outcomes_in(self.path)

    def finish(self, stage: pathlib.Path, outcome: Outcome) -> None:
        """Writes `DONE` of a stage, with the settings."""
        write_json(stage / inside.DONE, {**outcome, "settings": self.settings}, digest=True)

    def adopt(self, stage: pathlib.Path, records: Records) -> None:
        """Takes over a finished stage of another run, as the next one of this run.

        Args:
            stage: its folder in the other run.
            records: of that run; used where the stage is of a version that kept none of its own.
        """
        outcome: Any = read_json(stage / inside.DONE, Done)
        lines = outcome.get("lines") or records
        inside.guarded(stage.parents[1])
        copy = make_folder(self.path / inside.STAGES / stage.name)
        shutil.copytree(stage / inside.STATE, copy / inside.STATE)
        mine = [self.append({**line, **self.about}, line["wall_s"]) for line in lines]
        write_json(
            copy / inside.DONE, {**outcome, "lines": mine, "settings": self.settings}, digest=True
        )


def outcomes_in(folder: pathlib.Path) -> dict[str, Any]:
    """{name of a finished stage: its `Outcome`} of a run's folder, in order.

    Raises:
        DamagedError: one of them is damaged.
    """
    files = [stage / inside.DONE for stage in inside.stages(folder)]
    return {
        file.parent.name.partition("-")[2]: read_json(file, Done) for file in files if file.exists()
    }


def machines_of(outcomes: Mapping[str, Outcome]) -> list[tuple[str, dict[str, Any]]]:
    """The machines of a run, one after the other.

    Returns:
        [(stage that was the first to run there, versions and device)].

    Example:
        >>> one, two = {"device": {"threads": 1}}, {"device": {"threads": 2}}
        >>> machines_of({"train": {"machines": [one]}, "prune": {"machines": [one, two]}})
        [('train', {'device': {'threads': 1}}), ('prune', {'device': {'threads': 2}})]
    """
    machines: list[tuple[str, dict[str, Any]]] = []
    for name, outcome in outcomes.items():
        for machine in outcome.get("machines", []):
            if not machines or machines[-1][1] != machine:
                machines.append((name, machine))
    return machines


def files_of(folder: pathlib.Path) -> dict[str, str]:
    """{path: digest} of the files that stages left in a run's folder, or `jprune.save` in its own.

    Raises:
        DamagedError: what says it is damaged.
    """
    files: dict[str, str] = {}
    for outcome in outcomes_in(folder).values():
        files |= outcome.get("files", {})
    if not files and (folder / "plan.json").exists():
        files = read_json(folder / "plan.json").get("files", {})
    return files


def require(folder: pathlib.Path, *names: str) -> None:
    """Checks what a stage left in a run's folder against its digests, where there are any.

    Args:
        folder: of the run.
        names: of files, or of folders of files.

    Raises:
        DamagedError: a file is missing or damaged.
    """
    files = {
        file: digest for file, digest in files_of(folder).items() if digests.top(file) in names
    }
    damage = digests.damaged(folder, files)
    if damage:
        raise errors.DamagedError(
            f"{folder / damage[0]} is missing or damaged. Run the command of the run again: it "
            "makes this file again."
        )


@contextlib.contextmanager
def held(
    path: PathLike,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    provenance: Mapping[str, Any],
    overwrite: bool = False,
    note: Note = lambda text: None,
) -> Iterator[RunDirectory]:
    """Opens a directory as `open_directory` does, and locks it for this run until it is over.

    If the run ends in an error before anything is done, its settings are taken out again.

    Raises:
        CheckpointError: as `open_directory`; or another run has it, which the message names.
    """
    with contextlib.ExitStack() as stack:
        devices.from_first(lambda: inside.guarded(path) and None)
        # One lock a run: on a shared file system the other processes would lock out the first.
        devices.from_first(lambda: stack.enter_context(locked(path)))
        directory = open_directory(path, config, about, provenance, overwrite, note)
        try:
            yield directory
        except BaseException:
            # Weights that cannot be read, a net that cannot be exported: nothing is there to keep.
            if devices.is_first():
                _release(directory)
            raise


def _release(directory: RunDirectory) -> None:
    """Takes out the settings of a run of which nothing was done, so that another may begin."""
    stages = inside.stages(directory.path)
    done = [file for stage in stages for file in inside.files_under(stage)]
    if not done and not (directory.records.exists() and directory.records.stat().st_size):
        for stage in stages:
            inside.remove_stage(stage)
        inside.remove_empty(directory.path / inside.STAGES)
        inside.remove_files(directory.path, ["records.jsonl", "config.json"])


def open_directory(
    path: PathLike,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    provenance: Mapping[str, Any],
    overwrite: bool = False,
    note: Note = lambda text: None,
) -> RunDirectory:
    """Opens a directory for a run, new or to go on with.

    Args:
        path: the directory; made if it is not there.
        config: the settings, plain data. Whoever comes back has to bring the same.
        about: what every record says.
        provenance: what the first record says.
        overwrite: start anew; only files that runs write are removed.
        note: told what was damaged and is made again.

    Raises:
        CheckpointError: the directory cannot be written to, belongs to something else, or to a run
            with other settings, which the message names; or something in it is a link.
    """
    return devices.from_first(
        lambda: _opened(make_folder(path), config, about, provenance, overwrite, note)
    )


def _opened(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    provenance: Mapping[str, Any],
    overwrite: bool,
    note: Note,
) -> RunDirectory:
    inside.guarded(folder)
    settings, path = plain({"schema": SCHEMA, **config}), folder / "config.json"
    before, damage = _settings_of(folder)
    if before is None and not damage:
        # A file system may add hidden files of its own.
        strange = sorted(f.name for f in folder.iterdir() if not f.name.startswith("."))
        if strange:
            raise errors.CheckpointError(
                f"{folder} is not empty and no run of jprune (it has {strange[0]} and no "
                "config.json). Choose an empty or new directory with --out DIR."
            )
    elif overwrite:
        inside.remove_run(folder)
    elif before is None:
        if any((stage / inside.DONE).exists() for stage in inside.stages(folder)):
            raise errors.CheckpointError(
                f"{damage} Nothing else says with which settings the stages of this run were made, "
                "so none can be kept. Choose another --out, or write --overwrite to start anew."
            )
    else:
        # The settings decide every number: a run that went on with others would be two runs in one.
        _check_same(folder, before, settings)
    if damage and not overwrite:
        note(f"{damage} It is written again, with the settings of this command.")
    # Written once: every later opening is compared with it.
    if damage or not path.exists():
        write_json(path, settings, digest=True)
    inside.remove_halves(folder)
    about = {"run": folder.resolve().name, **about}
    return RunDirectory(folder, about, dict(provenance), settings)


def _settings_of(folder: pathlib.Path) -> tuple[dict[str, Any] | None, str]:
    """The settings of the run in a folder, and what is wrong with its `config.json`.

    Every finished stage and every checkpoint of training has them too.

    Returns:
        None where nothing says them; no text where nothing is wrong, or nothing there.

    Raises:
        CheckpointError: `config.json` is somebody else's.
    """
    path = folder / "config.json"
    try:
        settings = read_json(path)
        if "schema" in settings:
            return settings, ""
        damage = f"{path} has no `schema`: it is none of jprune's."
    except errors.DamagedError as error:
        damage = str(error).partition(". ")[0] + "."
    for stage in inside.stages(folder):
        with contextlib.suppress(errors.DamagedError):
            if settings := read_json(stage / inside.DONE, Done).get("settings"):
                return settings, damage
        if settings := checkpoint.facts_of(stage / inside.STEPS).get("settings"):
            return settings, damage
    # Overwriting is for runs, not for somebody's file of this name.
    if path.exists() and _is_of_a_person(path):
        raise errors.CheckpointError(f"{damage} Choose another --out.")
    return None, damage if path.exists() else ""


def _is_of_a_person(path: pathlib.Path) -> bool:
    """Whether a `config.json` that is not whole does not even begin as those of runs."""
    return b'"schema"' not in inside.read(path)[:100]


def _check_same(folder: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = _flat(old), _flat(new)
    # Settings of both: a newer version may have more, and their absence counts as None.
    names = [name for name in {**after, **before} if before.get(name) != after.get(name)]
    if names:
        # Cut: the folder's settings may be somebody else's.
        differing = "; ".join(
            f"{shown(name, 40)} is {shown(repr(before.get(name)), 40)} there and "
            f"{shown(repr(after.get(name)), 40)} here"
            for name in names[:2]
        ) + (f"; and {len(names) - 2} more" if len(names) > 2 else "")
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
