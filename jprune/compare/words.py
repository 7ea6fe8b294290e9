"""Names of budgets, devices and lists, as they stand inside a sentence."""

from collections.abc import Iterable, Mapping
from typing import Any

from jprune.report import text


def budget_text(budget: tuple[str, float]) -> str:
    """A budget.

    Example:
        >>> budget_text(("macs", 0.25))
        '25 % of the MACs'
    """
    return text.budget(dict([budget]))


def device_text(device: Mapping[str, Any]) -> str:
    """A device.

    Example:
        >>> device_text({"platform": "cpu", "kind": "Xeon", "threads": 2})
        'Xeon (cpu, 2 threads)'
    """
    threads = counted(device["threads"], "thread")
    return f"{device['kind']} ({device['platform']}, {threads})"


def listed(names: Iterable[str]) -> str:
    """Names with "and" before the last.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a"])
        ('a, b and c', 'a')
    """
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def some(names: Iterable[str], separator: str = ", ", most: int = 3) -> str:
    """The first few names, and how many more there are.

    Example:
        >>> some("abcde"), some("ab")
        ('a, b, c and 2 more', 'a, b')
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def capital(words: str) -> str:
    """Words with a capital at the beginning of a line; the others stay as they are.

    Example:
        >>> capital("accuracy of MACs")
        'Accuracy of MACs'
    """
    return words[:1].upper() + words[1:]


def counted(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "seed"), counted(3, "seed")
        ('1 seed', '3 seeds')
    """
    # All nouns that are counted here have the regular plural.
    return f"{number} {noun}" + ("" if number == 1 else "s")
