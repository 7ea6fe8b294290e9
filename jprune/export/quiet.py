"""Two habits of LiteRT's libraries dealt with: they may be missing, and they log to stderr."""

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
    """Suppresses output to standard error; if an exception passes, it gets the output as a note.

    LiteRT logs from C++ into the file descriptor, out of reach of Python's `logging`, and would
    break progress bars. The descriptor belongs to the whole process: other threads cannot write to
    it meanwhile either.
    """
    with tempfile.TemporaryFile() as held_back:
        # dup keeps the console open under another number; dup2 lets 2 point to the file and back.
        console = os.dup(2)
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException as error:
            held_back.seek(0)
            if log := held_back.read().decode(errors="replace").strip():
                error.add_note(log)
            raise
        finally:
            os.dup2(console, 2)
            os.close(console)
