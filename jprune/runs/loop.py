"""Running a learner step by step: records, checkpoints, progress, and a stop when it diverges.

The state is copied to every device and the batches are split among them, whatever the learner; see
`devices.py`. With several processes, all of them come here, and the first alone touches files.
"""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors, foreign, interrupts
from jprune.base import Pruned, PyTree, Variables
from jprune.recipes import Learner
from jprune.runs import checkpoint, devices
from jprune.runs.progress import Progress
from jprune.runs.schemas import Facts

EVERY = 20
"""Steps between two looks at the losses, which are then fetched together."""
SAVE_SECONDS = 60.0


class _Meta(TypedDict):
    """What `restore` reads of the plain facts of a checkpoint."""

    seconds: float
    window: list[dict[str, list[Any]]]
    facts: Facts


class Restored(NamedTuple):
    """The point from which a stage goes on.

    Attributes:
        step: number of the steps done.
        state: of the learner; None at the beginning.
        seconds: that the stage has taken so far.
        window: metrics of the steps since the last record.
        facts: what `Hooks.facts` said when it was saved.
        damage: what of newer checkpoints was damaged, for people; empty where nothing was.
    """

    step: int
    state: PyTree
    seconds: float
    window: tuple[dict[str, Any], ...] = ()
    facts: Mapping[str, Any] = {}
    damage: str = ""


class Hooks(NamedTuple):
    """Functions that `fit` calls between the steps.

    Attributes:
        append: `append(step, seconds, metrics)` writes a record.
        validate: `validate(variables) -> metrics`, at the end of an epoch.
        progress: is shown what happens.
        save_seconds: time between two checkpoints.
        facts: plain data to keep in every checkpoint.
    """

    append: Callable[[int, float, dict[str, float]], None]
    validate: Callable[[Variables], dict[str, float]]
    progress: Progress
    save_seconds: float = SAVE_SECONDS
    facts: Callable[[], dict[str, Any]] = dict


@contextlib.contextmanager
def advised(stage: pathlib.Path) -> Iterator[None]:
    """Says what to do about a checkpoint of a stage that cannot be read.

    Args:
        stage: the folder that the run has made for the stage.

    Raises:
        DamagedError: as it came; who calls knows what stands.
        CheckpointError: the one from inside, with the advice.
    """
    try:
        yield
    except errors.DamagedError:
        raise
    except errors.CheckpointError as error:
        raise errors.CheckpointError(
            f"{error} Delete the folder {stage}: the same command then does this stage again."
        ) from error


def restore(folder: pathlib.Path, learner: Learner, key: jax.Array) -> Restored:
    """Reads the newest whole checkpoint of a stage that was stopped; step 0 if there is none.

    Args:
        folder: of the stage's checkpoints.
        learner: of the stage.
        key: of the stage.

    Raises:
        CheckpointError: the checkpoint is of another net or seed.
    """
    # A template, as optimizers' states are named tuples that Orbax cannot make by itself.
    shapes = jax.eval_shape(learner.init)
    try:
        with advised(folder.parent):
            saved = devices.from_first(lambda: checkpoint.load(folder, shapes))
    except errors.DamagedError as error:
        return Restored(0, None, 0.0, damage=f"{error} The stage begins again.")
    if saved is None:
        return Restored(0, None, 0.0)
    foreign.check(saved.meta, _Meta, str(folder), f"Delete the folder {folder.parent}.")
    if saved.meta.get("key") != _plain_key(key):
        raise errors.CheckpointError(
            f"the checkpoint in {folder} is of a run with another seed. Delete the folder "
            f"{folder.parent}: the same command then does this stage again."
        )
    damage = ""
    if saved.damaged:
        damage = (
            f"{folder / saved.damaged[0]} is missing or damaged: the stage goes on from the "
            f"checkpoint before, of step {saved.step}."
        )
    window = tuple(
        {name: np.asarray(value, dtype) for name, (value, dtype) in metrics.items()}
        for metrics in saved.meta["window"]
    )
    facts = saved.meta["facts"]
    return Restored(saved.step, saved.state, saved.meta["seconds"], window, facts, damage)


def _plain_key(key: jax.Array) -> list[int]:
    return np.asarray(jax.random.key_data(key)).tolist()


def fit(
    learner: Learner,
    restored: Restored,
    folder: pathlib.Path,
    key: jax.Array,
    hooks: Hooks,
) -> tuple[Pruned, float]:
    """Trains to the last step, or until the learner ends by itself.

    Losses are looked at together every 20 steps and at the end of an epoch, so that the device
    never waits for the host; a record is written then, and a checkpoint if the last one is old. A
    run that was asked to end (`jprune.interrupts`) writes one after the step that it is at.

    Args:
        learner: what is trained.
        restored: from `restore`.
        folder: for checkpoints.
        key: of the stage; kept in the checkpoints, so that they are not mistaken.
        hooks: what happens around the steps.

    Returns:
        The trained net, and the seconds that all of it took, before a kill included.

    Raises:
        ArgumentError: the devices do not divide a batch.
        DivergenceError: a loss or weight that is not finite. The last checkpoint is from before.
        Interrupted: the run was asked to end.
    """
    # As if it had begun so much earlier: seconds go on over a kill.
    start = time.perf_counter() - restored.seconds
    saved_at = time.perf_counter()
    state = devices.everywhere(learner.init() if restored.state is None else restored.state)
    window: list[dict[str, Any]] = [*restored.window]
    # Rounded up: the last epoch may be cut short.
    epochs = -(-learner.steps // learner.epoch)
    # The data continue at the step, not at the epoch: no example is seen twice.
    batches = learner.batches(restored.step)
    saving = _Saving(learner, folder, key, hooks.facts)
    for step in range(restored.step + 1, learner.steps + 1):
        if learner.ends(step - 1, state):
            break
        state, metrics_of_step = learner.step(state, devices.place(next(batches)))
        if window:
            # One step behind: the device is kept busy, and the bar does not run ahead of it.
            jax.block_until_ready(window[-1])
            hooks.progress.advance(step - 1, {})
        window.append(metrics_of_step)
        over = step % learner.epoch == 0 or step == learner.steps
        look = over or step % EVERY == 0
        if look:
            # The one transfer to the host; it is also where a NaN comes to light.
            metrics = means(window, step, folder)
            window = []
            if over:
                validation = hooks.validate(learner.variables(state))
                metrics |= {f"validation_{name}": value for name, value in validation.items()}
                hooks.progress.epoch(-(-step // learner.epoch), epochs, metrics)
            hooks.progress.advance(step, metrics)
            hooks.append(step, time.perf_counter() - start, metrics)
        stop = _asked(look)
        due = look and time.perf_counter() - saved_at >= hooks.save_seconds
        # All processes ask the first, whose clock decides: with clocks of their own some would save
        # and others not, and they would wait for each other for ever.
        if step < learner.steps and (stop or (look and devices.from_first(lambda due=due: due))):
            saving.save(state, step, window, time.perf_counter() - start)
            saved_at = time.perf_counter()
            if stop:
                where = f"{folder.parent.name} is saved up to step {step} of {learner.steps}"
                raise interrupts.stopped(where)
    _check_finite(learner, state, learner.steps, folder)
    return devices.gathered(learner.finish(state)), time.perf_counter() - start


class _Saving(NamedTuple):
    """Writes the checkpoints of a stage."""

    learner: Learner
    folder: pathlib.Path
    key: jax.Array
    facts: Callable[[], dict[str, Any]]

    def save(self, state: PyTree, step: int, window: list[dict[str, Any]], seconds: float) -> None:
        # Before it is saved: a checkpoint with a NaN would replace the last good one.
        if window:
            means(window, step, self.folder)
        _check_finite(self.learner, state, step, self.folder)
        kept = [
            # The type beside the number: their mean is rounded as it would have been.
            {name: (float(value), str(np.asarray(value).dtype)) for name, value in metrics.items()}
            for metrics in jax.device_get(window)
        ]
        facts: dict[str, Any] = {"key": _plain_key(self.key), "seconds": seconds, "window": kept}
        # Epoch and batch say where the data stand; the step alone would do.
        facts |= dict(zip(("epoch", "batch"), divmod(step, self.learner.epoch)))
        facts["facts"] = self.facts()
        save = functools.partial(checkpoint.save, self.folder, step, state, facts)
        devices.from_first(save)


def _asked(look: bool) -> bool:
    """Whether the run was asked to end; of several processes the first alone is asked."""
    if jax.process_count() == 1:
        return interrupts.asked()
    # Asking goes through the network, so not at every step.
    return look and devices.from_first(interrupts.asked)


def means(window: list[dict[str, Any]], step: int, folder: pathlib.Path) -> dict[str, float]:
    """Means of the metrics of the latest steps, the last of them being `step`.

    Raises:
        DivergenceError: a loss is not finite; the message names its step.
    """
    values = jax.device_get(window)
    for number, metrics in enumerate(values, start=step - len(values) + 1):
        if not np.isfinite(metrics.get("loss", 0.0)):
            raise _diverged(f"the loss was {float(metrics['loss'])} in step {number}", folder)
    return {name: float(np.mean([v[name] for v in values])) for name in values[0]}


def _check_finite(learner: Learner, state: PyTree, step: int, folder: pathlib.Path) -> None:
    """Refuses weights that are not finite: the loss before the last update was still good.

    Other arrays of the state may be infinite (scores of units that are never pruned), but not NaN.
    """
    if not _everywhere(jnp.isfinite, learner.variables(state)):
        raise _diverged(f"a weight is not finite after step {step}", folder)
    if not _everywhere(lambda leaf: ~jnp.isnan(leaf), state):
        raise _diverged(f"the state has a NaN after step {step}", folder)


def _everywhere(holds: Callable[[jax.Array], jax.Array], tree: PyTree) -> bool:
    # Integers and keys have no NaN, and `isfinite` refuses keys.
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return all(bool(holds(leaf).all()) for leaf in floats)


def _diverged(what: str, folder: pathlib.Path) -> errors.DivergenceError:
    saved = lambda: sorted(int(f.name) for f in folder.glob("*") if f.name.isdigit())
    steps = devices.from_first(saved)
    advice = f"the last good checkpoint is {folder / str(steps[-1])}" if steps else "none was saved"
    return errors.DivergenceError(
        f"training diverged: {what}; {advice}. Write a smaller --learning-rate or "
        "--finetune-learning-rate, with another --out or --overwrite."
    )
