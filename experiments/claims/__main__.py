"""The claims' command: `python -m experiments.claims e13 --seeds 0 1 2`."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from experiments.claims.claim import Claim, find, names, run
from jprune import errors


def main(words: Sequence[str]) -> int:
    """Runs a claim with the settings that the words say, or lists all.

    Returns:
        0, or 2 for words that cannot be.
    """
    try:
        if list(words[:1]) == ["--list"]:
            print("\n".join(f"{name:9} {find(name).title}" for name in names()))
            return 0
        if not words or words[0].startswith("-"):
            print("python -m experiments.claims CLAIM [--seeds 0 1 2] [--nets ...] [--smoke] ...")
            print(f"CLAIM: {', '.join(names())}; --list says what they are.")
            return 0 if words[:1] in (["-h"], ["--help"]) else 2
        claim, smoke = parsed(find(words[0]), words[1:])
        run(claim, smoke)
    except errors.JpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parsed(claim: Claim[Any], words: Sequence[str]) -> tuple[Claim[Any], bool]:
    """The claim with the settings, seeds and nets that the words say, and whether it is a try.

    Raises:
        ArgumentError: a net that the claim does not have.
    """
    flat = tyro.conf.arg(name="")
    nets = tuple(net.name for net in claim.nets(claim.settings))
    options = [
        ("settings", Annotated[type(claim.settings), flat], claim.settings),
        ("seeds", tuple[int, ...], claim.seeds),
        ("nets", tuple[str, ...], nets),
        ("smoke", bool, False),
    ]
    made = dataclasses.make_dataclass(
        "Options",
        [(name, kind, dataclasses.field(default=usual)) for name, kind, usual in options],
        frozen=True,
    )
    prog = f"python -m experiments.claims {claim.stem}"
    chosen: Any = tyro.cli(made, args=list(words), prog=prog, description=claim.title)
    for name in chosen.nets:
        if name not in nets:
            raise errors.ArgumentError(
                f"{claim.stem} has no net {name!r}; {errors.nearest(name, nets)}it has "
                f"{', '.join(nets)}."
            )

    changed = dataclasses.replace(
        claim,
        settings=chosen.settings,
        seeds=chosen.seeds,
        nets=lambda settings: [net for net in claim.nets(settings) if net.name in chosen.nets],
    )
    return changed, chosen.smoke


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
