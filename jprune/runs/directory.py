"""The run directory: every stage is done once, however often the run is killed.

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
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jprune import errors
from jprune.runs import devices
from jprune.runs.files import (
    TEMPORARY,
    PathLike,
    append_line,
    locked,
    make_folder,
    plain,
    read_json,
    write_json,
)

SCHEMA = 1
OURS = (
    "config.json",
    "records.jsonl",
    "result.json",
    "plan.json",
    "params",
    "net.stablehlo",
    "model.stablehlo",
    "model.tflite",
    "report.html",
    "report.png",
    "stages",
)
"""All that a run writes into its directory."""


class RunDirectory(NamedTuple):
    """A directory that was opened for a run.

    Attributes:
        about: in every record: run, data, model, method, budget, seed, commit.
        provenance: in the first record: versions and device.
    """

    path: pathlib.Path
    about: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def records(self) -> pathlib.Path:
        """Path of the records."""
        return self.path / "records.jsonl"

    def append(self, entry: Mapping[str, Any], seconds: float) -> None:
        """Appends a record with `about` and its time; the first one with `provenance` too."""
        # Versions and device stand in the first record alone: they are the same for the whole run.
        first = not self.records.exists() or not self.records.stat().st_size
        line = {**self.about, **entry, "wall_s": round(seconds, 3)}
        append_line(self.records, {**line, **self.provenance} if first else line)

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Contents of the `DONE` files of all finished stages, in their order.

        Returns:
            {name: {"wall_s": seconds that it took, "records": those of a short stage}}.
        """
        # Folders begin with two digits, so the order of names is that of the stages.
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
    """Opens a directory as `open_directory` does, and locks it for this run until it is over.

    If the run ends in an error before anything is done, its settings are taken out again.

    Raises:
        CheckpointError: as `open_directory`; or another run has it, which the message names.
    """
    with contextlib.ExitStack() as stack:
        # One lock a run: on a shared file system the other processes would lock out the first.
        devices.from_first(lambda: stack.enter_context(locked(path)))
        directory = open_directory(path, config, about, provenance, overwrite)
        try:
            yield directory
        except BaseException:
            # Weights that cannot be read, a net that cannot be exported: nothing is there to keep.
            if devices.is_first():
                _release(directory)
            raise


def _release(directory: RunDirectory) -> None:
    """Takes out the settings of a run of which nothing was done, so that another may begin."""
    stages = directory.path / "stages"
    done = [file for file in stages.rglob("*") if file.is_file()]
    if not done and not (directory.records.exists() and directory.records.stat().st_size):
        shutil.rmtree(stages, ignore_errors=True)
        directory.records.unlink(missing_ok=True)
        (directory.path / "config.json").unlink(missing_ok=True)


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
        # The settings decide every number: a run that went on with others would be two runs in one.
        _check_same(folder, read_json(folder / "config.json"), settings)
    # Written once: every later opening is compared with it.
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
    """Deletes files that a kill left half written."""
    for pattern in (f".*{TEMPORARY}", f"stages/*/.*{TEMPORARY}"):
        for file in folder.glob(pattern):
            file.unlink()
    for half in folder.glob("params.orbax-checkpoint-tmp*"):
        shutil.rmtree(half)


def _check_same(folder: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = _flat(old), _flat(new)
    # Settings of both: a newer version may have more, and their absence counts as None.
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
