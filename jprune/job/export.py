"""The net of a finished run, exported once more."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jprune import errors, zoo
from jprune.foreign import shown
from jprune.graph import slim
from jprune.graph.shrink.plans import replay
from jprune.job.finish import WRITERS
from jprune.job.nets import DTYPES, net_of
from jprune.job.saved import NET, example_of, program_of
from jprune.runs.checkpoint import load_tree
from jprune.runs.directory import require
from jprune.runs.files import AGAIN, PathLike, atomic_write, read_json
from jprune.runs.inside import guarded
from jprune.runs.plans import read_plan
from jprune.runs.schemas import Config
from jprune.train.task import seen_at


def export_again(
    out: PathLike, to: PathLike | None = None, model: str | None = None
) -> list[pathlib.Path]:
    """Writes the slim net of a finished run again.

    A net of the zoo is built and cut again. One of the user's own is read from the run's
    `net.stablehlo`: no module that a file of the run names is imported, only the one in `model`.

    Args:
        out: the run directory.
        to: a file that ends in .stablehlo or .tflite; None writes `model.stablehlo` and
            `model.tflite` into the run directory.
        model: `module:callable` of the run's net, as after `--model`; None: see above.

    Returns:
        The files.

    Raises:
        ArgumentError: a file that ends in something else.
        CheckpointError: the run is not finished, or its files are damaged.
        StructureError: the net has changed since.
        MissingExtraError: a .tflite without the extra `tflite`.
    """
    folder = pathlib.Path(out)
    files = [folder / f"model{suffix}" for suffix in WRITERS] if to is None else [pathlib.Path(to)]
    # Before anything is read: the mistake costs nothing then.
    if files[0].suffix not in WRITERS:
        raise errors.ArgumentError(
            f"{to} is neither {' nor '.join(WRITERS)}. Write --to {files[0].stem}.tflite."
        )
    guarded(folder)
    config, plan = read_json(folder / "config.json", Config), read_plan(folder)
    require(folder, "params")
    variables = load_tree(folder / "params")
    for file in files:
        # A .tflite is float32, whatever type the net was trained in.
        if config["dtype"] not in DTYPES:
            raise errors.CheckpointError(
                f"{folder}/config.json has {shown(config['dtype'], 40)!r} at `dtype`; one of "
                f"{', '.join(DTYPES)} was expected."
            )
        dtype = "float32" if file.suffix == ".tflite" else config["dtype"]
        name = config["model"] if model is None else model
        if model is None and name not in zoo.names():
            fn, example = _program(folder, config, plan, dtype)
        else:
            fn, example = _cut(net_of({**config, "model": name}, dtype), plan)
        try:
            written = WRITERS[file.suffix](fn, variables, example)
        except (TypeError, ValueError) as error:
            if isinstance(error, errors.JpruneError):
                raise
            raise errors.CheckpointError(
                f"params and net in {folder} do not belong together ({shown(error)}). {AGAIN}"
            ) from error
        atomic_write(file, written)
    return files


def _cut(net: zoo.Net, plan: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    """The small net of a plan, and its example."""
    # The net is traced anew and its masks are read off the plan.
    shapes = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
    groups, masks = replay(plan, net.fn, shapes, net.example)
    return seen_at(slim(net.fn, groups, masks), plan.get("resolution")), net.example


def _program(
    folder: pathlib.Path, config: Mapping[str, Any], plan: Mapping[str, Any], dtype: str
) -> tuple[Callable[..., Any], Any]:
    """The small net as the run has written it, and its example.

    Raises:
        CheckpointError: it is not there, or computes in another type.
    """
    whole = "net" in plan and (folder / NET).exists()
    if not whole or config["dtype"] != dtype:
        name = shown(config["model"], 60)
        why = f"{dtype} is needed" if whole else "it is missing, or of an earlier version"
        raise errors.CheckpointError(
            f"the net in {folder} is {name}, which is imported only if you "
            f"name it, and its {NET} does not do: {why}. Write --model {name}, where "
            "Python finds that module."
        )
    return program_of(folder), example_of(plan)
