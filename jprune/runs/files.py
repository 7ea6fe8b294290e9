"""Writing files so that a kill at any moment leaves the old file or the new one, whole."""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import io
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO, TypedDict

from jprune import errors, foreign
from jprune.runs import inside
from jprune.runs.inside import LOCK, TEMPORARY, PathLike

DIGEST = "digest"
"""Key of a JSON object that holds the digest of its other entries."""
AGAIN = (
    "The command of the run makes again what can be made; `jprune check DIR` says what is whole."
)
LOCK_BEGINS = '{"pid": '
# What `flock` answers on file systems that know no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Holder(TypedDict):
    """What stands in a lock's file: which process has it."""

    pid: int
    host: str
    since: str


class Lines(NamedTuple):
    """The records of a file.

    Attributes:
        records: one for each whole line.
        dropped: the last line where a kill tore it; empty where it is whole.
    """

    records: list[dict[str, Any]]
    dropped: str


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
    """Turns an operating system's refusal into an error that says what to do.

    Raises:
        CheckpointError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise errors.CheckpointError(
            f"{path} cannot be written ({error.strerror or error}). Free some space or choose a "
            "folder that you may write to with --out DIR; the same command then goes on."
        ) from error


def make_folder(path: PathLike) -> pathlib.Path:
    """Makes a folder and its parents, if they are not there.

    Raises:
        CheckpointError: it cannot be made, or a file has its name.
    """
    folder = pathlib.Path(path)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(path: PathLike) -> Iterator[None]:
    """Locks a folder for this process.

    The kernel holds the lock (`flock`), and releases it when the process ends, however it ends.
    On a file system without locks (some cluster mounts) it has no effect.

    Args:
        path: the folder; made if it is not there.

    Raises:
        InUseError: another process has it; the message says which, where, and since when.
        CheckpointError: the folder cannot be written to, or something else has the lock's name.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, locked(folder):
        ...     os.listdir(folder)
        ['.lock']
    """
    with locked_name(make_folder(path) / LOCK, str(path)):
        yield


@contextlib.contextmanager
def locked_name(lock: pathlib.Path, what: str) -> Iterator[None]:
    """Locks a file for this process, and so whatever the file stands for, as `locked` a folder.

    Args:
        lock: the file, in a folder that is there; it is removed in the end.
        what: it stands for, in messages.

    Raises:
        InUseError: another process has it.
        CheckpointError: the file cannot be written to.
    """
    with explained(lock):
        file = _take(lock, what)
    try:
        yield
    finally:
        # Removed while it is locked: whoever has opened this file and locks it later sees that it
        # has no name any more, and takes a new one (see `_take`).
        inside.remove_files(lock.parent, [lock.name])
        file.close()


def _take(lock: pathlib.Path, what: str) -> TextIO:
    """Opens and locks the file, and writes into it which process has it."""
    while True:
        # Without O_TRUNC: before the lock is held the content is another's.
        file = os.fdopen(inside.opened(lock, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise errors.InUseError(
                f"{what} is in use by another run: {_holder(lock)}. Wait until it is over, "
                "stop it, or choose another --out."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
        # Whoever held it before has removed the file under our hands: then it locks nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                break
        file.close()
    file.seek(0)
    begins = file.read(len(LOCK_BEGINS))
    # A kill leaves the lock's file, perhaps torn; any other content is a file of somebody's.
    if os.fstat(file.fileno()).st_nlink > 1 or not LOCK_BEGINS.startswith(begins):
        file.close()
        raise errors.CheckpointError(
            f"{lock} is no lock of jprune's, which has one of this name there while it works. Move "
            "it away, or choose another --out."
        )
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    file.truncate(0)
    json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
    file.flush()
    return file


def _holder(lock: pathlib.Path) -> str:
    try:
        owner = foreign.parse(inside.read(lock, foreign.BYTES))
        foreign.check(owner, Holder, str(lock))
        host, since = foreign.shown(owner["host"], 80), foreign.shown(owner["since"], 40)
        return f"process {owner['pid']} on {host}, since {since}"
    except (OSError, ValueError):  # it is being written, or was removed just now
        return "a process that has only just begun"


def atomic_write(path: PathLike, data: bytes | str) -> None:
    """Writes a file under a temporary name beside it, then renames it.

    Args:
        path: what to write; replaced if it is there.
        data: the content; text is written as UTF-8.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to. What was there before
            is untouched, and no temporary file is left.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atomic_write(pathlib.Path(folder) / "note.txt", "kept")
        ...     os.listdir(folder)
        ['note.txt']
    """
    path = pathlib.Path(path)
    content = data.encode() if isinstance(data, str) else data
    with explained(path):
        descriptor, name = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
        temporary = pathlib.Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                # On the disk before the name points to it: some file systems write the name first.
                os.fsync(file.fileno())
            # mkstemp makes files that their owner alone can read; others of the group may want the
            # report.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        # Also when the user interrupts: no half file is left.
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _umask() -> int:
    # The only way to read it is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def append_line(path: PathLike, record: dict[str, Any]) -> None:
    """Appends a record as one line of JSON, in one write.

    Numbers that JSON does not know (NaN, infinities) become null.

    Args:
        path: the file; made if it is not there.
        record: what to append.

    Raises:
        CheckpointError: the disk is full or the file cannot be written to. Part of the line may
            have been written: `read_lines` drops it.
    """
    path = pathlib.Path(path)
    line = (json.dumps(plain(record), allow_nan=False) + "\n").encode()
    with explained(path):
        # O_APPEND: two writers do not tear each other's lines.
        descriptor = inside.opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            # One call of the system: buffered writing may split a line, and a kill falls in
            # between.
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
        if written < len(line):
            raise OSError(errno.ENOSPC, "no space left for the line")


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples as lists, numbers that JSON does not know as None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def read_lines(path: PathLike, schema: Any = None) -> Lines:
    """Reads a run's file of records, one line of JSON each.

    A kill can tear the last line: such a line is no record, and is returned as `dropped`.

    Args:
        path: the file; one that is not there has no records.
        schema: of a record, as in `foreign.check`; None takes any object.

    Raises:
        CheckpointError: another line than the last is no record; or it is a link, a folder, a pipe
            or a device.
    """
    try:
        content = inside.read(path, foreign.LINES)
    except FileNotFoundError:
        return Lines([], "")
    except (OSError, ValueError) as error:
        if isinstance(error, errors.JpruneError):
            raise
        raise errors.CheckpointError(f"{path} cannot be read ({foreign.shown(error)}).") from error
    return lines_of(content, str(path), schema, AGAIN)


def lines_of(content: bytes, name: str, schema: Any = None, advice: str = "") -> Lines:
    """The records in a content, as `read_lines` reads them.

    Args:
        content: of a file.
        name: of the file, for messages.
        schema: of a record; None takes any object.
        advice: what to do about a damaged file.

    Raises:
        CheckpointError: another line than the last is no record, one does not fit the schema, or
            is not as its digest says.
    """
    records = []
    stream = io.BytesIO(content)
    for number, line in enumerate(stream, start=1):
        # Without its newline even a line that parses may be the beginning of a longer one.
        if not line.endswith(b"\n"):
            return Lines(records, line.decode(errors="replace"))
        try:
            record = foreign.parse(line)
            if not isinstance(record, dict):
                raise ValueError(f"it holds a {type(record).__name__}, no object")
        except ValueError as error:
            # The line before the final newline, if only part of the disk's blocks arrived.
            if stream.tell() == len(content):
                return Lines(records, line[:-1].decode(errors="replace"))
            raise errors.CheckpointError(
                f"{name}, line {number}, is no record ({error}). {advice}".rstrip()
            ) from error
        digest = record.pop(DIGEST, None)
        if digest is not None and digest != digest_of(record):
            raise errors.CheckpointError(
                f"{name}, line {number}, is damaged: it is not what was written. {advice}".rstrip()
            )
        if schema is not None:
            foreign.check(record, schema, f"{name}, line {number},", advice)
        records.append(record)
    return Lines(records, "")


def write_lines(path: PathLike, records: list[dict[str, Any]], digest: bool = False) -> None:
    """Replaces a file of records.

    Args:
        path: what to write; replaced if it is there.
        records: plain data, one a line.
        digest: adds a last entry, `digest`, to each, by which `lines_of` sees damage.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to.
    """
    if digest:
        records = [{**record, DIGEST: digest_of(record)} for record in records]
    text = "".join(json.dumps(plain(r), allow_nan=False) + "\n" for r in records)
    atomic_write(path, text)


def write_json(path: PathLike, value: Any, digest: bool = False) -> None:
    """Writes a value as indented JSON, atomically.

    Args:
        path: what to write; replaced if it is there.
        value: plain data.
        digest: adds a last entry, `digest`, by which `read_json` sees damage; for objects.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to.
    """
    if digest:
        value = {**value, DIGEST: digest_of(value)}
    atomic_write(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def digest_of(value: Any) -> str:
    """A digest of plain data, whatever the breaks and blanks of its JSON.

    Example:
        >>> digest_of({"a": (1, 0.5)}) == digest_of({"a": [1, 0.5]}) != digest_of({"a": [1, 0.25]})
        True
    """
    return hashlib.sha256(json.dumps(plain(value), allow_nan=False).encode()).hexdigest()


def read_json(path: PathLike, schema: Any = None) -> dict[str, Any]:
    """Reads an object of JSON; a digest in it is checked, and not returned.

    Args:
        path: of a file in a run's folder.
        schema: as in `foreign.check`; None takes any object.

    Raises:
        DamagedError: the file is missing, no object of JSON, not as it was written, or without
            what the schema needs; the message names the key.
        CheckpointError: it is a link, a folder, a pipe or a device.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "plan.json"
        ...     write_json(file, {"rate": 0.5}, digest=True)
        ...     whole = read_json(file)
        ...     atomic_write(file, file.read_bytes().replace(b"0.5", b"0.7"))
        ...     with contextlib.suppress(errors.DamagedError):
        ...         read_json(file)
        >>> whole
        {'rate': 0.5}
    """
    path = pathlib.Path(path)
    try:
        value = foreign.parse(inside.read(path, foreign.BYTES))
    except FileNotFoundError as error:
        raise errors.DamagedError(f"{path} is missing. {AGAIN}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, errors.JpruneError):
            raise
        why = foreign.shown(error)
        raise errors.DamagedError(f"{path} cannot be read ({why}). {AGAIN}") from error
    foreign.check(value, dict[str, Any], str(path), AGAIN, errors.DamagedError)
    # Files of older versions, and those of a person's own, have no digest.
    digest = value.pop(DIGEST, None)
    if digest is not None and digest != digest_of(value):
        raise errors.DamagedError(f"{path} is damaged: it is not as it was written. {AGAIN}")
    if schema is not None:
        foreign.check(value, schema, str(path), AGAIN, errors.DamagedError)
    return value
