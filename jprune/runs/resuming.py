"""What of a run still stands: which stages are done, the net after them, and their records.

What is damaged is told and made again from what stands before it: a stage whose `DONE` or `state/`
is damaged counts as not done, and so does every stage behind it. Files that a stage left in the
run's folder are made again by that stage alone, from the net that it left as it was.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jprune import errors
from jprune.base import Pruned, Task
from jprune.forms.leaf_type import is_leaf_type
from jprune.runs import checkpoint, digests, inside
from jprune.runs.directory import Note, Outcome, RunDirectory
from jprune.runs.files import plain, read_json, read_lines, write_lines
from jprune.runs.loop import advised
from jprune.runs.schemas import Done
from jprune.train.net import Net

DERIVED = ("plan.json", "result.json", "report.html", "report.png")
"""Files that are made from all stages."""


class Resumed(NamedTuple):
    """Where a run goes on.

    Attributes:
        done: number of the stages that are over.
        pruned: the net after them.
        again: numbers of those whose files are made again.
    """

    done: int
    pruned: Pruned
    again: tuple[int, ...]


def resumed(
    directory: RunDirectory,
    folders: Sequence[pathlib.Path],
    task: Task,
    start: Callable[[], Pruned],
    note: Note,
) -> Resumed:
    """Looks at what stands, and removes what is of other stages.

    Args:
        directory: of the run.
        folders: of the recipe's stages, in order.
        task: net, loss and data.
        start: makes the net that the first stage begins with.
        note: told what is damaged.

    Raises:
        CheckpointError: a net is of another task.
    """
    outcomes = _finished(folders, note)
    outcomes, pruned = _newest(folders, outcomes, task, note)
    outcomes, again = _with_files(directory, folders, outcomes, note)
    done = len(outcomes)
    # `start` trains or reads nothing if there is a net: it may be a large file.
    pruned = pruned or start()
    # They began with a net that is about to change, or are of a recipe that has changed since.
    for folder in {*inside.stages(directory.path)} - {*folders[: done + 1]}:
        inside.remove_stage(folder)
    if done < len(folders):
        inside.remove_files(folders[done], [inside.DONE])
        inside.remove_files(directory.path, DERIVED)
    else:
        keep_records(directory, [*directory.outcomes()], None, [], note)
    return Resumed(done, pruned, again)


def _finished(folders: Sequence[pathlib.Path], note: Note) -> list[Outcome]:
    """Outcomes of the stages up to the first that is not over."""
    outcomes: list[Any] = []
    for folder in folders:
        if not (folder / inside.DONE).exists():
            break
        try:
            outcomes.append(read_json(folder / inside.DONE, Done))
        except errors.DamagedError as error:
            note(f"{_sentence(error)} This stage and those behind it are done again.")
            break
    return outcomes


def _newest(
    folders: Sequence[pathlib.Path], outcomes: list[Outcome], task: Task, note: Note
) -> tuple[list[Outcome], Pruned | None]:
    """The net after the last of these stages, and those that stand before it and behind."""
    number = len(outcomes) - 1
    while number >= 0:
        state = folders[number] / inside.STATE
        if outcomes[number].get("net", state.exists()):
            try:
                # Those of older versions have neither digests nor copies of the records.
                with advised(folders[number]):
                    saved = checkpoint.load(state, digests_needed="lines" in outcomes[number])
                if saved is None:
                    raise errors.DamagedError(f"{state} is missing.")
                return outcomes, _checked(Pruned(**saved.state), state, task)
            except errors.DamagedError as error:
                note(f"{_sentence(error)} This stage and those behind it are done again.")
                outcomes = outcomes[:number]
        number -= 1
    return outcomes, None


def _checked(pruned: Pruned, state: pathlib.Path, task: Task) -> Pruned:
    # Shapes, not values: leaf types count as one leaf, with the shape of the kernel that they
    # stand for.
    shapes = lambda tree: jax.tree.map(
        lambda leaf: (leaf.shape, str(leaf.dtype)), tree, is_leaf=is_leaf_type
    )
    if shapes(pruned.variables) != shapes(Net(task).shapes):
        raise errors.CheckpointError(
            f"the net in {state} is not {task.name}: its arrays have other names or shapes. The "
            "net has changed since, so no stage can be kept: choose another --out, or start anew "
            "with --overwrite."
        )
    return pruned


def _with_files(
    directory: RunDirectory,
    folders: Sequence[pathlib.Path],
    outcomes: list[Outcome],
    note: Note,
) -> tuple[list[Outcome], tuple[int, ...]]:
    """Stages that stand, and numbers of those whose files in the run's folder are made again."""
    again = []
    for number, outcome in enumerate(outcomes):
        damage = digests.damaged(directory.path, outcome.get("files", {}))
        if not damage:
            continue
        # The stage is called with the net that is newest, which has to be the one that it had.
        same = not any(later.get("net", True) for later in outcomes[number:])
        which = "This stage" if same else "This stage and those behind it"
        note(
            f"{directory.path / damage[0]} is missing or damaged: it was written by "
            f"{folders[number].name}. {which} is done again."
        )
        if not same:
            return outcomes[:number], tuple(again)
        again.append(number)
    return outcomes, tuple(again)


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs between two machines, in words; empty if nothing does.

    Example:
        >>> differences({"device": {"threads": 2}}, {"device": {"threads": 1}})
        'threads was 2 and is 1'
    """
    texts = []
    for part in ("versions", "device"):
        old, new = before.get(part, {}), after.get(part, {})
        texts += [
            f"{name} was {old.get(name)} and is {new.get(name)}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
    return ", ".join(texts)


def keep_records(
    directory: RunDirectory,
    done: Sequence[str],
    stage: str | None,
    lines: list[dict[str, Any]],
    note: Note,
) -> None:
    """Leaves the records of finished stages, and of the steps that are behind a checkpoint.

    Every stage and every checkpoint has its own copy: what the file lacks is written again.

    Args:
        directory: of the run.
        done: names of the stages that are over.
        stage: the one that goes on, if one does.
        lines: its records up to the checkpoint.
        note: told if the file was damaged.

    Raises:
        CheckpointError: the file is damaged, and the stages are of a version without copies.
    """
    outcomes = directory.outcomes()
    if any("lines" not in outcomes[name] for name in done):
        _keep_old_records(directory, {*done}, stage, len(lines))
        return
    expected = [line for name in done for line in outcomes[name].get("lines", [])] + lines
    texts = [json.dumps(plain(line), allow_nan=False) for line in expected]
    content = b""
    if directory.records.exists():
        content = inside.read(directory.records)
    whole = "".join(f"{text}\n" for text in texts).encode()
    if content == whole:
        return
    # What stands behind them was written after the checkpoint, or torn by a kill.
    if not content.startswith(whole):
        note(
            f"{directory.records} was cut or damaged: it is written again, {len(expected)} lines, "
            "from the stages' own records."
        )
    write_lines(directory.records, expected)


def _keep_old_records(
    directory: RunDirectory, done: set[str], stage: str | None, count: int
) -> None:
    """As `keep_records`, for stages of older versions: by the names of stages in the file."""
    lines = read_lines(directory.records)
    ahead = [record for record in lines.records if record.get("stage") == stage][:count]
    records = [record for record in lines.records if record.get("stage") in done] + ahead
    if lines.dropped or len(records) < len(lines.records):
        write_lines(directory.records, records)


def _sentence(error: Exception) -> str:
    """The first sentence of a message, which says what is wrong."""
    return str(error).partition(". ")[0].removesuffix(".") + "."
