"""The two manners of LiteRT's libraries: they may be missing, and they talk."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from jprune import errors


@contextlib.contextmanager
def missing_extra() -> Iterator[None]:
    """Turns a failed import of LiteRT into a message that names the extra.

    Raises:
        MissingExtraError: the import inside failed.
    """
    try:
        yield
    except ImportError as error:
        raise errors.MissingExtraError(
            f"a .tflite model needs LiteRT, and {error.name or 'it'} cannot be imported. "
            "Run: pip install 'jprune[tflite]'"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what is written to standard error; an exception carries it along as a note.

    LiteRT logs from C++ straight into the file descriptor, out of reach of Python's `logging`, and
    would tear progress bars apart. The descriptor is the whole process's: other threads are silent
    meanwhile too.
    """
    with tempfile.TemporaryFile() as held_back:
        console = os.dup(2)
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException as error:
            held_back.seek(0)
            if said := held_back.read().decode(errors="replace").strip():
                error.add_note(said)
            raise
        finally:
            os.dup2(console, 2)
            os.close(console)
