"""`plan.json` of a run's folder: read, and compared with what a plan must hold."""

import pathlib
from typing import Any

import jax.numpy as jnp

from jprune import errors, foreign
from jprune.foreign import Size
from jprune.graph.shrink.plan_files import check_plan
from jprune.runs.files import AGAIN, PathLike, read_json


def read_plan(folder: PathLike) -> dict[str, Any]:
    """The plan in a folder.

    Args:
        folder: of a run, or one that `jprune.save` has written.

    Raises:
        DamagedError: it is missing, damaged, or no plan; the message names the key.
    """
    path = pathlib.Path(folder) / "plan.json"
    plan = read_json(path)
    try:
        check_plan(plan, str(path), AGAIN)
    except errors.StructureError as error:
        raise errors.DamagedError(str(error)) from error
    if "net" in plan:
        foreign.check(plan["net"], dict[str, Any], f"`net` in {path}", AGAIN, errors.DamagedError)
        for name in ("variables", "example", "outputs"):
            if not _is_described(plan["net"].get(name)):
                raise errors.DamagedError(
                    f"{path} has no shapes and types at `net.{name}`. {AGAIN}"
                )
    return plan


def _is_described(tree: Any) -> bool:
    """Whether plain data stand for a tree of shapes (see `jprune.job.saved`)."""
    match tree:
        case None:
            return True
        case {"dict": dict() as nodes}:
            return all(map(_is_described, nodes.values()))
        case {"list": list() as nodes} | {"tuple": list() as nodes}:
            return all(map(_is_described, nodes))
        case {"shape": shape, "dtype": str() as dtype}:
            try:
                foreign.check(shape, list[Size], "a shape")
                return jnp.dtype(dtype).kind != "O"
            except (TypeError, ValueError):
                return False
    return False
