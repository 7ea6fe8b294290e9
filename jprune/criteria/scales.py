"""The size of the scales that multiply a unit: what a norm has shrunk to nothing is not needed.

References:
    Liu, Li, Shen, Huang, Yan, Zhang, Learning efficient convolutional networks through network
    slimming, 2017, arXiv 1708.06519.
"""

from jprune import errors
from jprune.base import Criterion, Groups, Scores, Variables
from jprune.graph.shrink.concrete import on_host
from jprune.units import leaves_by_path, places_of, to_units

ACROSS = ("mean", "max", "sum")
"""How the scales of a unit that stands behind several norms become one score."""


def scales(groups: Groups, across: str = "mean") -> Criterion:
    """|gamma| of every unit behind a norm with scales; {group: [units]}.

    Groups without a scale have no scores, and stay whole. The scores say something after training
    with a penalty on the scales: in a net trained as usual they are nearly those of chance.

    Args:
        groups: from `trace`.
        across: over the places of a unit (a residual stream has a norm for each of its producers):
            "mean", by which units with one norm and with several are comparable; "max", by which a
            unit goes only if all of its scales are small; or "sum".

    Raises:
        ArgumentError: another word.
        StructureError: no unit of the net has a scale.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"] * v["scale"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((2, 3)), "scale": jnp.array([0.5, -2.0, 0.0]),
        ...              "second": jnp.ones((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> jprune.run_criterion(scales(groups), variables, ())["first"].tolist()
        [0.5, 2.0, 0.0]
    """
    if across not in ACROSS:
        raise errors.ArgumentError(f"scales(across={across!r}); write one of {', '.join(ACROSS)}.")
    paths = {place.leaf for _, place in places_of(groups, ("scale",))}
    if not paths:
        raise errors.StructureError(
            "no unit of this net has a scale: it has no norm with scales, or all channels behind "
            "them are frozen. Write another method, such as l1 or ssl."
        )
    size = on_host(lambda xnp, leaf: xnp.abs(leaf))

    def score(state: tuple[()], variables: Variables) -> Scores:
        del state
        leaves = leaves_by_path(groups, variables)
        # s_c = |gamma_c|
        sizes = [size(leaf) if path in paths else None for path, leaf in leaves.items()]
        return to_units(groups, groups.treedef.unflatten(sizes), ("scale",), across=across)

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)
