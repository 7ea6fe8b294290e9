"""From arguments to options; mistakes become an error of one sentence."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import tyro

from jprune import errors

# Tyro draws a box around what it has to say; the sentence stands above the first inner line.
_FRAME = ("╭", "╰")
_INNER = "───"


def parse(options: type, arguments: Sequence[str], prog: str) -> Any:
    """Reads a verb's options.

    Args:
        options: one of the dataclasses of `options.py`.
        arguments: what stands behind the verb.
        prog: what stands before them, for the help text.

    Raises:
        ArgumentError: an unknown option, one without its value, or a value that it cannot have.
        SystemExit: --help was asked for and printed.
    """
    # Tyro suggests options of all kinds in several lines: names are looked at before it comes to
    # that.
    _check_names(options, arguments, prog)
    complaint = io.StringIO()
    try:
        # Tyro prints its box and exits; both are caught, as every mistake is one line here.
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=list(arguments), prog=prog, config=CONFIG)
    except SystemExit as stop:
        # --help exits with 0, its text is on standard output already.
        if not stop.code:
            raise
    raise errors.ArgumentError(f"{sentence(complaint.getvalue())} See `{prog} --help`.")


CONFIG = (tyro.conf.FlagCreatePairsOff,)


def sentence(complaint: str) -> str:
    """The text of one of Tyro's boxes, in one line.

    Example:
        >>> sentence("╭─ Value error ──╮\\n│ Argument --n:  │\\n│ no number.     │\\n"
        ...          "│ ──────────── │\\n│ For help, ... │\\n╰───╯")
        'Argument --n: no number.'
    """
    texts = []
    for line in complaint.splitlines():
        text = line.strip().strip("│").strip()
        if text.startswith(_INNER):
            break
        if text and not text.startswith(_FRAME):
            texts.append(text)
    # The box breaks lines anywhere, so they are joined and split anew.
    words = " ".join(" ".join(texts).split()) or "the arguments cannot be read"
    return words if words.endswith((".", "?")) else f"{words}."


def _check_names(options: type, arguments: Sequence[str], prog: str) -> None:
    """Refuses unknown options and suggests the nearest name: most mistakes are typing errors."""
    flags = {"help"} | {_flag(field) for field in dataclasses.fields(options)}
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("_", "-")
        if argument.startswith("--") and name and name not in flags:
            others = [f"--{other}" for other in sorted(flags)]
            hint = errors.nearest(f"--{name}", others, cutoff=0.5)
            raise errors.ArgumentError(f"there is no option --{name}; {hint}See `{prog} --help`.")


def _flag(field: dataclasses.Field[Any]) -> str:
    return {"source": "from"}.get(field.name, field.name).replace("_", "-")
