"""Numbers by name, from one number for all, a list in order, or a mapping."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jprune import errors

Numbers = float | Sequence[float] | Mapping[str, float]
"""One number for all; one for each, in their order; or {name: number}."""


def per_name(numbers: Numbers, names: Sequence[str], option: str) -> dict[str, float]:
    """`{name: number}`.

    Args:
        numbers: one for all, one for each in their order, or by name.
        names: of the things that get one: kernels in execution order, groups, steps.
        option: where the numbers come from, for the message.

    Raises:
        ArgumentError: not as many numbers as names, a name without one, or one that is no name;
            text.

    Example:
        >>> per_name((0.5, 2.0), ("conv1/kernel", "fc/kernel"), "q")
        {'conv1/kernel': 0.5, 'fc/kernel': 2.0}
        >>> per_name(3.0, ("conv1/kernel", "fc/kernel"), "q")
        {'conv1/kernel': 3.0, 'fc/kernel': 3.0}
    """
    # Text is a sequence too: "12" would be two numbers.
    if isinstance(numbers, str):
        raise errors.ArgumentError(
            f"{option}={numbers!r} is text; write a number, or a tuple of {len(names)}: text is "
            "for the command line."
        )
    if isinstance(numbers, Mapping):
        if {*numbers} != {*names}:
            wrong = sorted({*numbers} ^ {*names})
            raise errors.ArgumentError(
                f"{option}={dict(numbers)!r} misses or adds {', '.join(wrong)}; write one number "
                f"for each of {', '.join(names)}."
            )
        return {name: float(numbers[name]) for name in names}
    if not isinstance(numbers, Sequence):
        # One for all.
        return dict.fromkeys(names, float(numbers))
    if len(numbers) != len(names):
        raise errors.ArgumentError(
            f"{option} has {len(numbers)} numbers, {list(numbers)}; write one, or {len(names)} (on "
            f"the command line with ':' between), for {', '.join(names)}."
        )
    return {name: float(number) for name, number in zip(names, numbers)}


def per_kind(
    numbers: Numbers | Sequence[Sequence[float]] | Mapping[str, Numbers],
    names: Mapping[str, Iterable[str]],
    option: str,
) -> dict[str, dict[str, float]]:
    """`{kind: {name: number}}`.

    Args:
        numbers: one for all; one for each name of a kind; a sequence of sequences, one a kind, of
            which one number alone is for all its names; or {kind: what `per_name` takes}.
        names: {kind: its names}, in their order.
        option: where the numbers come from, for the message.

    Raises:
        ArgumentError: not as many numbers as kinds, or as names of a kind; a kind without numbers.

    Example:
        >>> kinds = {"filter": ["conv1", "conv2"], "depth": ["branch"]}
        >>> per_kind(((0.1, 0.2), (0.5,)), kinds, "strength")
        {'filter': {'conv1': 0.1, 'conv2': 0.2}, 'depth': {'branch': 0.5}}
    """
    rows: list[Any] = [numbers] * len(names)
    if isinstance(numbers, Mapping):
        if {*numbers} != {*names}:
            raise errors.ArgumentError(
                f"{option}={dict(numbers)!r}; write one number, or one for each of "
                f"{', '.join(names)}."
            )
        rows = [numbers[kind] for kind in names]
    elif isinstance(numbers, Sequence) and any(isinstance(row, Sequence) for row in numbers):
        if len(numbers) != len(names):
            raise errors.ArgumentError(
                f"{option}={numbers!r}; write one number, or one for each of {', '.join(names)} "
                "(on the command line with '+' between)."
            )
        rows = [row[0] if isinstance(row, Sequence) and len(row) == 1 else row for row in numbers]
    return {
        kind: per_name(row, tuple(of_kind), option)
        for row, (kind, of_kind) in zip(rows, names.items())
    }
