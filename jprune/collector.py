"""Python's search for reference cycles, put off while something runs."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Switches Python's search for reference cycles off for a block, if it was on.

    Tracing makes many objects and few cycles: the search would walk over the caller's whole heap
    again and again and free next to nothing. While a call is timed, it would count as its time.

    Example:
        >>> with uncollected():
        ...     gc.isenabled()
        False
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
