"""Ctrl-C and TERM on the command line: a flag that a run reads between two steps.

An exception in the middle of anything may be swallowed (JAX's callback at garbage collection is
called by the interpreter, which drops what it raises) or fall into a write. So a signal only sets a
flag while a run is at work; whoever has just done a step asks with `check`. At any other time, the
imports included, and for a second signal, the program ends at once, with one line.

Nothing heavy is imported here: `jprune/__init__.py` imports this module before all else. Other
programs that import jprune keep their own handlers: without `install` no flag is set.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAYING = 0.5
"""Seconds that whoever ends the program waits for another thread's line."""
SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A run that was asked to end, between two steps; `signal` says by which signal.

    Example:
        >>> Interrupted(signal.SIGTERM, "step 3 of train is saved").code
        143
    """

    def __init__(self, number: int, saved: str):
        super().__init__(saved)
        self.signal, self.saved = number, saved

    @property
    def code(self) -> int:
        """The exit code, as shells report it."""
        return 128 + self.signal


class _State:
    """What this process was asked, and whether a run is at work."""

    asked: int | None = None
    working: bool = False
    # Taken by whoever prints the last line: the handler, the thread, or the command line.
    word = threading.Lock()
    said = threading.Event()


def install_for_command_line() -> None:
    """Installs the handlers if this process is `jprune ...` or `python -m jprune.cli ...`."""
    program = getattr(sys, "argv", [""])[0]
    # While `python -m` imports the packages above its module, the program is called "-m".
    module = program == "-m" and "jprune.cli" in sys.orig_argv
    if module or os.path.basename(program) == "jprune":
        install()


def install() -> None:
    """Makes Ctrl-C and TERM set a flag; signals that were ignored stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    # Python runs handlers between two of its own instructions, so not while XLA compiles. The
    # system writes every signal's number into this pipe at once, and a thread reads it.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    # A child would write into the same pipe.
    os.register_at_fork(after_in_child=_uninstall)


def _uninstall() -> None:
    signal.set_wakeup_fd(-1)
    for number, handler in zip(SIGNALS, (signal.default_int_handler, signal.SIG_DFL)):
        if signal.getsignal(number) is _handle:
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    del frame
    if not _State.working or _State.asked is not None:
        _end(number)
    _State.asked = number


def _watch(reader: int) -> None:
    """Ends the program at the second signal, whatever the main thread does."""
    asked = False
    while number := os.read(reader, 1):
        if number[0] in SIGNALS:
            if asked:
                _end(number[0])
            asked = True


def _end(number: int) -> None:
    if may_speak():
        line = "jprune: interrupted; the same command goes on.\n"
        # `os.write`: the stream's own lock may be held by what was interrupted.
        os.write(2, ((SHOW_CURSOR if os.isatty(2) else "") + line).encode())
    else:
        # Another thread is about to print the line; this one must not end the program before.
        _State.said.wait(SAYING)
    spoken()
    os._exit(128 + number)


def may_speak() -> bool:
    """True for the first who asks: one line says that the program ends, whoever ends it."""
    return _State.word.acquire(blocking=False)


def spoken() -> None:
    """Told by whoever was allowed to speak, once the line is out: the program may end."""
    _State.said.set()


def ending() -> None:
    """Told once the exit code is decided: signals that come from now on change it no more.

    As Python ends it gives handlers back to the system, which would kill the process by the signal;
    what is ignored stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """While this lasts, the first signal sets the flag and does nothing else."""
    _State.working = True
    try:
        yield
    finally:
        _State.working = False


def asked() -> bool:
    """Whether the run was asked to end."""
    return _State.asked is not None


def stopped(saved: str) -> Interrupted:
    """The exception that ends a run.

    Args:
        saved: what is saved of it, for people.
    """
    # Of several processes the first alone is asked, and all of them end.
    return Interrupted(_State.asked or signal.SIGINT, saved)


# Here, not in `cli`: the packages above it are imported first, which takes seconds.
install_for_command_line()
