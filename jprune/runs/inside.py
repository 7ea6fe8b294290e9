"""What a run may touch: names of its own, within its folder, and nothing behind a link.

The one module that says what lies in a run's folder. `guarded` is called before anything there is
read, written or removed: it refuses links, and things of another kind than a run puts there, at
every level. `opened` follows no link either and opens regular files alone. The `remove_...`
functions remove what jprune made, by name and by kind, and leave the rest where it is.

The folder itself may be a link: its path is the person's own. Against another program that changes
the folder while a run is at work there is no guard (docs/trust.md).
"""

import contextlib
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterable, Iterator

from jprune import errors

PathLike = str | os.PathLike[str]
TEMPORARY = ".tmp"
"""End of the names of files that are not whole; they begin with a dot."""
LOCK = ".lock"
"""Name of the file that marks a folder as in use."""
FILES = (
    "config.json",
    "records.jsonl",
    "result.json",
    "plan.json",
    "net.stablehlo",
    "model.stablehlo",
    "model.tflite",
    "report.html",
    "report.png",
)
"""The files of a run, beside the folders `params` and `stages`."""
STAGES, PARAMS = "stages", "params"
DONE, STATE, STEPS = "DONE", "state", "steps"
STAGE = re.compile(r"\d{2,}-.+")
STEP = re.compile(r"\d+")
# Orbax writes beside the final name and renames.
HALF = re.compile(r"(\d+|params)\.orbax-checkpoint-tmp.*")
# What Orbax and `digests.py` put into the folder of a checkpoint.
CHECKPOINT = re.compile(
    r"_.*|array_metadatas|commit_success\.txt|d|descriptor|manifest\.ocdbt|ocdbt\..*|meta|state|"
    r"DIGESTS|\..*\.tmp"
)
HALF_FILE = re.compile(rf"\.(lock|DONE|DIGESTS|{'|'.join(map(re.escape, FILES))})\..*\{TEMPORARY}")
KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def kind_of(path: PathLike) -> int | None:
    """The kind of what has this name, as in `stat.S_IFMT`; a link is a link. None for nothing."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    # A file stands where the path has a folder: then there is nothing of this name.
    except (FileNotFoundError, NotADirectoryError):
        return None


def guarded(folder: PathLike) -> pathlib.Path:
    """Checks every name that a run uses in its folder, at every level.

    Args:
        folder: of a run; it need not be there.

    Returns:
        The folder.

    Raises:
        CheckpointError: a name is a link, or of another kind than a run puts there.
    """
    root = pathlib.Path(folder)
    for name in (*FILES, LOCK):
        expect(root / name, stat.S_IFREG)
    _expect_tree(root / PARAMS)
    for folder in (root, *stages(root)):
        for half in _entries(folder, HALF_FILE):
            expect(half, stat.S_IFREG)
    for half in _entries(root, HALF):
        _expect_tree(half)
    for stage in stages(root):
        expect(stage / DONE, stat.S_IFREG)
        for name in (STATE, STEPS):
            _expect_tree(stage / name)
    return root


def expect(path: pathlib.Path, kind: int) -> bool:
    """Checks that a name stands for a thing of a kind, if for anything; returns whether it does.

    Raises:
        CheckpointError: it stands for another thing; a link is one, whatever it points to.
    """
    came = kind_of(path)
    if came not in (None, kind):
        raise errors.CheckpointError(
            f"{path} is {KINDS.get(came, 'no file')}, and jprune has {KINDS[kind]} there: it "
            "neither follows nor replaces what is not its own. Move it away, or choose another "
            "--out."
        )
    return came is not None


def _expect_tree(folder: pathlib.Path) -> None:
    """Checks that a folder, where it is there, holds folders and regular files alone."""
    if expect(folder, stat.S_IFDIR):
        for entry in os.scandir(folder):
            path = pathlib.Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                _expect_tree(path)
            else:
                expect(path, stat.S_IFREG)


def stages(root: pathlib.Path) -> list[pathlib.Path]:
    """Folders of a run's stages, in their order; other things under `stages` are not a run's.

    Raises:
        CheckpointError: `stages`, or what has the name of a stage, is no folder.
    """
    home = root / STAGES
    names = _entries(home, STAGE) if expect(home, stat.S_IFDIR) else []
    # By number: behind the 99th, names are no more in the order of the stages.
    ordered = sorted(names, key=lambda path: (int(path.name.partition("-")[0]), path.name))
    return [path for path in ordered if expect(path, stat.S_IFDIR)]


def steps_of(folder: pathlib.Path) -> list[int]:
    """Numbers of the checkpoints in a folder, oldest first."""
    return sorted(int(path.name) for path in _entries(folder, STEP))


def _entries(folder: pathlib.Path, pattern: re.Pattern[str]) -> list[pathlib.Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder / name for name in os.listdir(folder) if pattern.fullmatch(name))
    return []


def files_under(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A regular file itself, or all regular files below a folder; links are not followed."""
    if kind_of(path) == stat.S_IFREG:
        yield path
    for folder, _, names in os.walk(path):
        for name in sorted(names):
            if kind_of(file := pathlib.Path(folder, name)) == stat.S_IFREG:
                yield file


def opened(path: PathLike, flags: int = os.O_RDONLY) -> int:
    """Opens a regular file and follows no link to it; returns its descriptor.

    Raises:
        CheckpointError: it is a link, a folder, a pipe or a device.
        OSError: it cannot be opened.
    """
    path = pathlib.Path(path)
    expect(path, stat.S_IFREG)
    # O_NOFOLLOW: what was a file may have become a link since. O_NONBLOCK: or a pipe, for whose
    # other end the opening would wait.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        expect(path, stat.S_IFREG)
    return descriptor


def read(path: PathLike, limit: int | None = None) -> bytes:
    """The content of a regular file; no link is followed.

    Args:
        path: of the file.
        limit: bytes at most; None for any number.

    Raises:
        CheckpointError: it is a link, a folder, a pipe or a device, or longer.
        OSError: it cannot be read.
    """
    with os.fdopen(opened(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise errors.CheckpointError(f"{path} has {size} bytes; expected {limit} at most.")
        return file.read()


def remove_files(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Removes regular files; what is of another kind stays.

    Raises:
        CheckpointError: a name is not that of a regular file.
    """
    for name in names:
        if expect(folder / name, stat.S_IFREG):
            (folder / name).unlink(missing_ok=True)


def remove_halves(root: pathlib.Path) -> None:
    """Removes what a kill left half written in the folder of a run and of its stages."""
    for folder in (root, *stages(root)):
        remove_files(folder, (path.name for path in _entries(folder, HALF_FILE)))
    for folder in _entries(root, HALF):
        shutil.rmtree(folder)


def remove_checkpoint(folder: pathlib.Path) -> None:
    """Removes the folder of one checkpoint.

    Raises:
        CheckpointError: something lies in it that neither Orbax nor jprune put there.
    """
    if not expect(folder, stat.S_IFDIR):
        return
    strange = sorted(name for name in os.listdir(folder) if not CHECKPOINT.fullmatch(name))
    if strange:
        raise errors.CheckpointError(
            f"{folder} holds {strange[0]}, which jprune did not write: it is not removed, and so "
            "the folder cannot be written anew. Move it away; the same command then goes on."
        )
    shutil.rmtree(folder)


def remove_checkpoints(folder: pathlib.Path, steps: Iterable[int] | None = None) -> None:
    """Removes checkpoints from a folder, and the folder itself if nothing is in it any more.

    Args:
        folder: `state` or `steps` of a stage.
        steps: which; None removes all of them, and those that are half written.
    """
    if not expect(folder, stat.S_IFDIR):
        return
    for step in steps_of(folder) if steps is None else steps:
        remove_checkpoint(folder / str(step))
    if steps is None:
        for half in _entries(folder, HALF):
            shutil.rmtree(half)
        remove_empty(folder)


def remove_stage(folder: pathlib.Path) -> None:
    """Removes what a stage wrote into its folder, and the folder if nothing else is in it."""
    # DONE first: it says that the rest is whole.
    remove_files(folder, [DONE])
    for name in (STATE, STEPS):
        remove_checkpoints(folder / name)
    remove_empty(folder)


def remove_run(root: pathlib.Path) -> None:
    """Removes what a run wrote into its folder; the folder stays."""
    for stage in stages(root):
        remove_stage(stage)
    remove_empty(root / STAGES)
    remove_checkpoint(root / PARAMS)
    # The configuration goes last: without it the rest would look like somebody else's.
    remove_files(root, reversed(FILES))


def remove_empty(folder: pathlib.Path) -> None:
    """Removes a folder in which nothing is any more."""
    # Something of a person's may lie in it: then it stays.
    with contextlib.suppress(OSError):
        folder.rmdir()
