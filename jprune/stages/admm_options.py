"""What options of StructADMM may be."""

from collections.abc import Sequence

from jprune import errors
from jprune.allocate import ALLOCATORS

OPTIMIZERS = ("adam", "sgd")


def check_words(
    groups: str | Sequence[str], kinds: Sequence[str], allocator: str, optimizer: str
) -> None:
    """Refuses filters with channels, and allocators and optimizers that there are not.

    Raises:
        ArgumentError: the message says what to write instead.
    """
    if {"filter", "channel"} <= set(kinds):
        raise errors.ArgumentError(
            f"groups={groups!r}: a unit would have to be kept twice, as a filter and as a channel, "
            "and the two supports differ. Write one of them."
        )
    if allocator not in ALLOCATORS or optimizer not in OPTIMIZERS:
        raise errors.ArgumentError(
            f"struct_admm(allocator={allocator!r}, optimizer={optimizer!r}); write one of "
            f"{', '.join(ALLOCATORS)}, and one of {', '.join(OPTIMIZERS)}."
        )


def check_numbers(*options: tuple[str, float | None, bool, str]) -> None:
    """Refuses options out of range.

    Args:
        *options: (option, value, whether it is right, what is right) of each.

    Raises:
        ArgumentError: one is not right.
    """
    for name, value, right, expected in options:
        if not right:
            raise errors.ArgumentError(f"struct_admm({name}={value}); {name} is {expected}.")
