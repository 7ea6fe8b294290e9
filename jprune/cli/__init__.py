"""The command line: `jprune VERB`.

Here belongs what turns arguments into calls and results into text; nothing is computed here. Read
`options.py` first (what can be written), then `verbs.py` (what is done with it). `parse.py` turns
mistakes into one sentence, `show.py` draws tables. Libraries that are slow to import are imported
by the verb that needs them.

Exit codes: 0; 1 when something failed, or when the slim net of a run that has written all its
files is not the masked one (a warning says so); 2 when the arguments were wrong, with one line on
the error stream that says what to write; 130 or 143 when a run was ended by Ctrl-C or TERM.
"""

import logging
import sys
from collections.abc import Sequence

from jprune import __version__, errors, foreign, interrupts
from jprune.cli import verbs
from jprune.cli.options import VERBS
from jprune.cli.parse import parse

LONGEST = 2000
"""Characters of a message. What a message says of a foreign file takes 300 at most."""

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: without the name of the program; None takes those of the process.

    Returns:
        The exit code.

    Example:
        >>> main(["--version"])
        jprune 0.1.0
        0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except (errors.ArgumentError, errors.BudgetError) as error:
        return _complain(error, 2)
    except errors.JpruneError as error:
        return _complain(error, 1)
    except interrupts.Interrupted as stop:
        if interrupts.may_speak():  # a second signal, while Python ends, has nothing to add
            line = f"jprune: interrupted, {stop.saved}; the same command goes on."
            print(line, file=sys.stderr, flush=True)
            interrupts.spoken()
        return stop.code
    # 130 is what shells report for a program that was interrupted: 128 + SIGINT.
    except KeyboardInterrupt:
        print("jprune: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    finally:
        interrupts.ending()


def _complain(error: Exception, code: int) -> int:
    # One line, whatever the message's own breaks: scripts read the error stream by lines. And
    # escaped: names in it may be from a file.
    print("jprune:", foreign.line(error, LONGEST), file=sys.stderr)
    return code


def _run(words: list[str]) -> int:
    if not words:
        raise errors.ArgumentError(f"no verb came; write one of {', '.join(VERBS)}.")
    if words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"jprune {__version__}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        # 0.5: verbs are short, and any word is somewhat like one of them.
        hint = errors.nearest(verb, VERBS, cutoff=0.5)
        raise errors.ArgumentError(
            f"there is no verb {foreign.shown(repr(verb), 60)}; {hint}Write one of "
            f"{', '.join(VERBS)}."
        )
    try:
        options = parse(VERBS[verb], words[1:], f"jprune {verb}")
    # The dataclass of a verb is its parser: nothing is read before the verb is known.
    except SystemExit:  # the help text is out
        return 0
    level = getattr(logging, options.log_level.upper())
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_escaped)
    return verbs.TABLE[verb](options, words) or 0


def _escaped(record: logging.LogRecord) -> bool:
    """Escapes a message in the log: names in it may be from a file."""
    record.msg, record.args = foreign.line(record.getMessage(), LONGEST), ()
    return True


def usage() -> str:
    """The help text of the program."""
    lines = ["usage: jprune VERB [OPTIONS]", "", "Pruning of convolutional networks in JAX.", ""]
    for verb, options in VERBS.items():
        lines.append(f"  {verb:<10}{(options.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`jprune VERB --help` explains the options of a verb."])
