"""Keeps native libraries from writing into the console."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what is written to the process's standard error; an exception carries it along.

    LiteRT logs from C++ straight into the file descriptor, out of reach of Python's `logging` and
    `sys.stderr`, and would tear progress bars apart. Standard error is the whole process's: other
    threads are silent meanwhile too.
    """
    with tempfile.TemporaryFile() as held_back:
        console = os.dup(2)
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException as error:
            held_back.seek(0)
            error.add_note(held_back.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(console, 2)
            os.close(console)
