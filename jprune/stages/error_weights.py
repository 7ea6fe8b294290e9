"""What the errors of a layer's outputs matter to the loss, and to what is pruned next."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Batch, Groups, Problem, Variables
from jprune.reconstruct.moments import best
from jprune.reconstruct.windows import look_at_slopes
from jprune.train.net import Net
from jprune.units import places_of

IMPORTANCES = ("product", "gradient")


@dataclasses.dataclass(frozen=True)
class ErrorWeights:
    """Factors of the errors Y - X W of a consumer: the slopes of the loss, and which outputs stay.

    Attributes:
        slopes: multiply each error by |dC/dY| in the dense net.
        removal: leave out errors of outputs that the next step will remove.
        importance: what tells which outputs stay: mean of "product", |Y dC/dY|, or of "gradient",
            (dC/dY)^2.
        floor: added to |dC/dY|, times its mean over the layer: examples that the net is sure of
            have slopes of about 0, and would not be fitted at all.
    """

    slopes: bool = True
    removal: bool = True
    importance: str = "product"
    floor: float = 0.1

    def __post_init__(self):
        if self.importance not in IMPORTANCES or not self.floor > 0:
            raise errors.ArgumentError(
                f"importance={self.importance!r}, floor={self.floor}; write one of "
                f"{', '.join(IMPORTANCES)}, and a floor above 0."
            )

    def collect(
        self,
        net: Net,
        sites: Sequence[str],
        points: int,
        variables: Variables,
        batches: Sequence[Batch],
        key: jax.Array,
    ) -> dict[str, np.ndarray]:
        """{site: [rows, outputs] dC/dY}, at the rows of `reconstruct.windows.collect`."""
        see = net.once(_look, net.task.loss, tuple(sites), points)
        parts = [
            jax.tree.map(np.asarray, see(variables, batch, jax.random.fold_in(key, number)))
            for number, batch in enumerate(batches)
        ]
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)

    def on(
        self, problem: Problem, slopes: np.ndarray, outputs: np.ndarray, stays: Any = None
    ) -> Problem:
        """The problem with its factors.

        Args:
            problem: of a consumer.
            slopes: [n, outputs] dC/dY.
            outputs: [n, outputs] Y.
            stays: `importance [outputs] -> bool [outputs]`; None: all stay.
        """
        size = np.abs(slopes)
        if self.slopes:
            # |G| + epsilon
            problem = problem._replace(errors=size + self.floor * max(size.mean(), 1e-30))
        if self.removal and stays is not None:
            product = self.importance == "product"
            importance = (size * np.abs(outputs) if product else size**2).mean(axis=0)
            # S: 0 for what the next step removes
            problem = problem._replace(of_outputs=stays(importance).astype(float))
        return problem


def _look(net: Net, loss: Any, sites: tuple[str, ...], points: int) -> Any:
    return look_at_slopes(net.task.fn, loss, net.groups, sites, points)


def staying(
    groups: Groups,
    path: str,
    importance: np.ndarray,
    alive: Mapping[str, np.ndarray],
    goals: Mapping[str, int],
) -> np.ndarray:
    """Bool [outputs]: those of a layer whose units are among the most important of their group.

    Args:
        groups: from `trace`.
        path: of the layer's kernel.
        importance: [outputs].
        alive: {group: bool [units]}, of the groups that are pruned.
        goals: {group: how many units will stay}.
    """
    stay = np.ones(len(importance), bool)
    names = tuple(name for name in groups.names if name in goals)
    for name, place in places_of(groups, ("kernel",), names):
        if place.leaf != path or len(place.units) != len(importance):
            continue
        inside = place.units >= 0
        # A unit may stand at several outputs: together they are what it is worth.
        of_units = np.bincount(place.units[inside], importance[inside], groups.sizes[name])
        stay[inside] = best(of_units, alive[name], goals[name])[place.units[inside]]
    return stay
