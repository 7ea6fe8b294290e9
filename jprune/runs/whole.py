"""Which files of a run's folder are whole, without running anything: `jprune check`."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jprune import errors, foreign
from jprune.runs import digests, inside
from jprune.runs.checkpoint import newest
from jprune.runs.directory import files_of
from jprune.runs.files import DIGEST, PathLike, plain, read_json
from jprune.runs.schemas import Done

ANEW = "the command of the run writes it again"


class Verdict(NamedTuple):
    """What was found of one thing in a run's folder.

    Attributes:
        name: path below the folder.
        state: `whole`, `damaged`, `missing`, or `unchecked` where nothing says what it should be:
            files of older versions have no digests.
        note: what is wrong, and what the command of the run does about it.
    """

    name: str
    state: str
    note: str = ""

    @property
    def stands(self) -> bool:
        """Whether nothing is known to be wrong."""
        return self.state in ("whole", "unchecked")


def verdicts(folder: PathLike) -> list[Verdict]:
    """Looks at everything that is read again of a run, finished or not.

    Nothing is changed, and a checkpoint's arrays are not parsed.

    Args:
        folder: the `--out` of `jprune prune`.

    Raises:
        CheckpointError: it holds no run, or something in it is a link.
    """
    root = inside.guarded(folder)
    stages = inside.stages(root)
    if not stages and inside.kind_of(root / "config.json") is None:
        raise errors.CheckpointError(
            f"{root} holds no run of jprune. Write the --out of `jprune prune`."
        )
    found = [_json(root, "config.json", "its settings are in the finished stages too: " + ANEW)]
    outcomes: list[Any] = []
    for stage in stages:
        verdict, outcome = _done(root, stage)
        found += [verdict] if verdict else []
        outcomes += [outcome]
        found += _checkpoints(root, stage, outcome, last=stage == _newest(stages))
    found += _records(root, outcomes)
    # By those `DONE` that are whole; the folders of `jprune.save` have no stages.
    files = {
        name: d for outcome in outcomes for name, d in (outcome or {}).get("files", {}).items()
    }
    if not stages:
        with contextlib.suppress(errors.DamagedError):
            files = files_of(root)
    found += _files(root, files)
    return [*found, *_derived(root, outcomes)]


def _json(root: pathlib.Path, name: str, note: str, schema: Any = None) -> Verdict:
    try:
        read_json(root / name, schema)
    except errors.DamagedError:
        missing = inside.kind_of(root / name) is None
        return Verdict(name, "missing" if missing else "damaged", note)
    # `read_json` compares the digest, where there is one.
    has_digest = DIGEST in foreign.parse(inside.read(root / name, foreign.BYTES))
    return Verdict(name, "whole" if has_digest else "unchecked")


def _done(root: pathlib.Path, stage: pathlib.Path) -> tuple[Verdict | None, Any]:
    """The verdict on a stage's `DONE`, and its content; None for a stage that is not over."""
    name = f"{inside.STAGES}/{stage.name}/{inside.DONE}"
    if not (stage / inside.DONE).exists():
        return None, None
    again = "the command of the run does this stage and those behind it again"
    verdict = _json(root, name, again, Done)
    return verdict, read_json(root / name, Done) if verdict.stands else None


def _newest(stages: list[pathlib.Path]) -> pathlib.Path | None:
    """The last stage that changed the net: what is before it is read no more."""
    with_net = [stage for stage in stages if (stage / inside.STATE).exists()]
    return with_net[-1] if with_net else None


def _checkpoints(
    root: pathlib.Path, stage: pathlib.Path, outcome: Any, last: bool
) -> Iterator[Verdict]:
    place = f"{inside.STAGES}/{stage.name}"
    state = stage / inside.STATE
    if outcome is not None and outcome.get("net", state.exists()):
        again = "the command of the run does this stage and those behind it again"
        unread = "a later stage has the newest net, and nothing reads this one"
        step, damage = newest(state, digests_needed="lines" in outcome)
        name = f"{place}/{inside.STATE}"
        if step is not None:
            has_digests = (state / str(step) / digests.FILE).exists()
            yield Verdict(name, "whole" if has_digests else "unchecked")
        elif inside.steps_of(state):
            yield Verdict(f"{name}/{damage[0]}", "damaged", again if last else unread)
        else:
            yield Verdict(name, "missing", again)
    # Of a finished stage nothing reads these any more.
    if outcome is None:
        for step in inside.steps_of(stage / inside.STEPS):
            damage = digests.damage_of(stage / inside.STEPS / str(step))
            name = f"{place}/{inside.STEPS}/{step}"
            if damage:
                note = "training goes on from the checkpoint before, or begins again"
                yield Verdict(f"{name}/{damage[0]}", "damaged", note)
            else:
                yield Verdict(name, "whole")


def _records(root: pathlib.Path, outcomes: list[Any]) -> Iterator[Verdict]:
    name = "records.jsonl"
    path = root / name
    over = [outcome for outcome in outcomes if outcome is not None]
    if any("lines" not in outcome for outcome in over):
        yield Verdict(name, "unchecked" if path.exists() else "missing")
        return
    lines = [line for outcome in over for line in outcome["lines"]]
    expected = "".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines).encode()
    if not path.exists():
        if lines:
            yield Verdict(name, "missing", "every stage has its records too: " + ANEW)
    # Behind these stand the records of a stage that is not over.
    elif inside.read(path).startswith(expected):
        yield Verdict(name, "whole")
    else:
        yield Verdict(name, "damaged", "every stage has its records too: " + ANEW)


def _files(root: pathlib.Path, expected: dict[str, str]) -> Iterator[Verdict]:
    """What stages left in the folder of the run: a verdict for each, or for its damaged files."""
    damage = digests.damaged(root, expected)
    for name in dict.fromkeys(digests.top(file) for file in expected):
        wrong = [file for file in damage if digests.top(file) == name]
        for file in wrong:
            gone = inside.kind_of(root / file) is None
            yield Verdict(file, "missing" if gone else "damaged", ANEW)
        if not wrong:
            yield Verdict(name, "whole")


def _derived(root: pathlib.Path, outcomes: list[Any]) -> Iterator[Verdict]:
    """The files that are written when all stages are over."""
    counts = [outcome.get("of") for outcome in outcomes if outcome is not None]
    over = bool(counts) and None not in outcomes and counts[-1] in (None, len(counts))
    for name in ("plan.json", "result.json"):
        # An unfinished run has none.
        if over or (root / name).exists():
            yield _json(root, name, ANEW)
    for name in ("report.html", "report.png"):
        if (root / name).exists():
            yield Verdict(name, "unchecked")
        elif over:
            yield Verdict(name, "missing", ANEW)
