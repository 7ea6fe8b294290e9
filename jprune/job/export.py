"""The net of a finished run, exported once more."""

import pathlib

import jax

from jprune import errors
from jprune.graph import slim
from jprune.graph.shrink.plans import replay
from jprune.job.finish import WRITERS
from jprune.job.nets import net_for
from jprune.runs.checkpoint import load_tree
from jprune.runs.directory import require
from jprune.runs.files import PathLike, atomic_write, read_json
from jprune.runs.inside import guarded
from jprune.train.task import seen_at


def export_again(out: PathLike, to: PathLike | None = None) -> list[pathlib.Path]:
    """Writes the slim net of a finished run again.

    Args:
        out: the run directory.
        to: a file that ends in .stablehlo or .tflite; None writes `model.stablehlo` and
            `model.tflite` into the run directory.

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
    config, plan = read_json(folder / "config.json"), read_json(folder / "plan.json")
    require(folder, "params")
    variables = load_tree(folder / "params")
    for file in files:
        # A .tflite is float32, whatever type the net was trained in.
        dtype = "float32" if file.suffix == ".tflite" else config["dtype"]
        net = net_for(config["model"], config["data"], dtype)
        # The net is traced anew and its masks are read off the plan: only arrays are stored, no
        # program.
        shapes = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
        groups, masks = replay(plan, net.fn, shapes, net.example)
        fn = seen_at(slim(net.fn, groups, masks), plan.get("resolution"))
        atomic_write(file, WRITERS[file.suffix](fn, variables, net.example))
    return files
