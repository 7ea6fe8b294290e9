"""The exceptions of jprune.

Every message says what came, what was expected, and what to write instead. All of them derive from
`JpruneError`, so that the command line can tell a user's mistake (one line, exit code 2 or 1)
from a fault of ours (a traceback).
"""

import difflib
from collections.abc import Collection, Iterable


class JpruneError(Exception):
    """Base of every error that jprune raises on purpose."""


class ArgumentError(JpruneError, ValueError):
    """An argument that cannot mean anything: wrong range, wrong combination, unknown name."""


class StructureError(JpruneError, ValueError):
    """Trees, masks or plans that do not belong to the net they are used with."""


class TraceError(JpruneError, ValueError):
    """A function that cannot be traced: an unknown primitive, an argument tied to channels."""


class FrozenError(StructureError):
    """Masks that ask for the removal of something the engine has frozen."""


class BudgetError(JpruneError, ValueError):
    """A budget that cannot be met; the message holds the smallest one that can."""


class DivergenceError(JpruneError, FloatingPointError):
    """Training met a loss that is not finite; the last good checkpoint is kept."""


class DataError(JpruneError, ValueError):
    """A data set that is missing, damaged, or of another shape than it should have."""


class CheckpointError(JpruneError, ValueError):
    """A checkpoint or run directory that is corrupt, foreign, or of another version."""


class DamagedError(CheckpointError):
    """A file of a run that is missing, or not as it was written."""


class InUseError(CheckpointError):
    """A run directory, or a file in one, that another process is using."""


class MissingExtraError(JpruneError, ImportError):
    """A feature whose optional dependencies are not installed; the message names the extra."""


class ExportError(JpruneError, RuntimeError):
    """A net that an export format cannot hold, or whose export gives other numbers."""


def nearest(name: str, names: Iterable[str], cutoff: float = 0.4) -> str:
    """A suggestion for a misspelt name, with a blank behind it; empty if no name is near.

    Args:
        name: what came.
        names: what could have come.
        cutoff: how near a name must be, in 0..1.

    Example:
        >>> nearest("tailor", ["l1", "taylor"])
        'did you mean taylor? '
    """
    near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}? " if near else ""


def check_words(of: str, *options: tuple[str, object, Collection[str]]) -> None:
    """Refuses options that are none of the words they may be.

    Args:
        of: whose options they are: a method or function.
        *options: (option, value, words) of each.

    Raises:
        ArgumentError: one is none of its words; the message suggests the nearest.

    Example:
        >>> check_words("ssr", ("norm", "l3", ("l2,1", "l2,0")))
        Traceback (most recent call last):
        jprune.errors.ArgumentError: ssr(norm='l3'); write one of l2,1, l2,0.
    """
    for option, value, words in options:
        if value not in words:
            hint = nearest(value, words) if isinstance(value, str) else ""
            raise ArgumentError(f"{of}({option}={value!r}); {hint}write one of {', '.join(words)}.")


def check_numbers(of: str, *options: tuple[str, object, bool, str]) -> None:
    """Refuses options out of range.

    Args:
        of: whose options they are: a method or function.
        *options: (option, value, whether it is right, what is right) of each.

    Raises:
        ArgumentError: one is not right.

    Example:
        >>> check_numbers("ssl", ("stop", 2, False, "in (0, 1)"))
        Traceback (most recent call last):
        jprune.errors.ArgumentError: ssl(stop=2); stop is in (0, 1).
    """
    for option, value, right, expected in options:
        if not right:
            raise ArgumentError(f"{of}({option}={value}); {option} is {expected}.")
