"""Single weights pruned layer by layer, those that take most energy first and hardest."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate import largest, price_of, refuse_impossible
from jprune.allocate.budgets import kept_count
from jprune.base import Budget, Groups, Masks, Problem, Pruned, Records, Task, Variables
from jprune.cost.energy import EYERISS, EnergyCosts, Traffic, energies
from jprune.graph import taps
from jprune.masks import apply_masks, intersect
from jprune.reconstruct.moments import moments
from jprune.reconstruct.restore import refit, restored
from jprune.reconstruct.windows import Look, Windows, collect, look
from jprune.stages.frame import fractions, record
from jprune.stages.walk import plain_layers, refuse_unread
from jprune.train.net import Net
from jprune.train.step import few_batches

ORDERS = ("energy", "params", "macs", "forward")


@dataclasses.dataclass(frozen=True)
class PruneByEnergy:
    """Prunes the weights of every layer in turn, and refits what stays to the dense net's outputs.

    What a layer reads is what the net as pruned so far gives it; what it should say is what it said
    in the net that came. Kernels are pruned that are plain convolutions and dense layers; others
    stay whole. All filters of a kernel keep the same number of weights.

    Attributes:
        budget: what may be kept; a density is that of the kernels that are pruned.
        order: by what layers are taken, the largest first: "energy", "params", "macs", or "forward"
            for the order of execution.
        hardness: how much harder layers of more energy are pruned: densities are as energy to the
            power -hardness; 0: all alike.
        back: fraction of the weights that stay which is put back by its effect, see
            `reconstruct.restored`.
        ridge: of the refit, see `reconstruct.refit`.
        costs: of accesses to memory.
        batches: of calibration images.
        batch_size: images in one.
        points: sampled positions per image and layer.
        name: of the record: fractions kept, `energy` kept, and the mean error of the outputs after
            magnitude alone, after restoring, and after the refit, relative to the outputs.
    """

    budget: Budget
    order: str = "energy"
    hardness: float = 0.5
    back: float = 0.2
    ridge: float = 1e-6
    costs: EnergyCosts = EYERISS
    batches: int = 8
    batch_size: int = 128
    points: int = 10
    name: str = "prune"

    def __post_init__(self):
        if self.order not in ORDERS:
            raise errors.ArgumentError(f"order={self.order!r}; write one of {', '.join(ORDERS)}.")
        fits = self.hardness >= 0 and 0 <= self.back <= 1 and self.ridge >= 0
        if not fits or min(self.batches, self.batch_size, self.points) < 1:
            raise errors.ArgumentError(
                f"hardness={self.hardness}, back={self.back}, ridge={self.ridge}, "
                f"batches={self.batches}, batch_size={self.batch_size}, points={self.points}; "
                "hardness and ridge are 0 or more, back is in [0, 1], the others 1 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses a net without a plain layer, and a budget out of reach.

        Raises:
            ArgumentError: no kernel of a plain layer may lose weights.
            BudgetError: the budget cannot be met by one weight of every filter.
        """
        alive = self.prunable(task, None)
        refuse_impossible(Net(task).tree(alive), self.budget.of_weights(), Net(task).cost)
        self.densities(task, alive, dict.fromkeys(alive, 1.0))

    def prunable(self, task: Task, masks: Masks) -> dict[str, np.ndarray]:
        """{kernel: bool}, of the kernels that may lose weights: True where one is alive.

        Raises:
            ArgumentError: there is none.
        """
        net = Net(task)
        plain = plain_layers(net.groups)
        kernels = net.leaves(net.prunable(masks, self.budget))
        alive = {path: np.asarray(kernels[path], bool) for path in plain if path in kernels}
        refuse_unread(task, [*alive])
        return alive

    def densities(
        self, task: Task, alive: Mapping[str, np.ndarray], energy: Mapping[str, float]
    ) -> dict[str, float]:
        """{kernel: fraction of its weights kept}: as energy to the power -hardness, up to 1.

        Raises:
            BudgetError: the budget cannot be met.
        """
        net = Net(task)
        layers, mean = net.groups.layers, float(np.mean([*energy.values()]))
        shares = {
            n: (max(each, 1e-12) / max(mean, 1e-12)) ** -self.hardness for n, each in energy.items()
        }
        least = min(shares.values())

        def masks(density: Any) -> Masks:
            kept = {}
            for path in alive:
                # [inputs x window, outputs]: which weights of a filter stay says nothing here
                inputs, window, outputs = layers[path].matrix(alive[path]).shape
                rows = np.zeros((inputs * window, outputs), bool)
                rows[: self.count(len(rows), density(path))] = True
                kept[path] = layers[path].array(rows.reshape(inputs, window, outputs))
            return net.tree(kept)

        if self.budget.kind == "density":
            total = sum(mask.size for mask in alive.values())
            price = lambda of: sum(mask.sum() for mask in net.leaves(masks(of)).values()) / total
        else:
            of_masks = price_of(net.tree({**alive}), self.budget, net.cost)
            price = lambda of: of_masks(masks(of))
        # d_l = min(1, t r_l), t up to where the layer of the least share is whole
        at = lambda t: lambda path: min(1.0, t * shares[path] / least)
        goal = float(self.budget.value)
        if (smallest := price(at(0.0))) > goal + 1e-9:
            raise errors.BudgetError(
                f"Budget({self.budget.kind}={self.budget.value}) cannot be met: one weight of "
                f"every filter is {smallest:.4f} of the dense net. Ask for more."
            )
        found = at(largest(lambda t: price(at(t)), goal + 1e-9))
        return {path: found(path) for path in alive}

    @staticmethod
    def count(size: int, density: float) -> int:
        """How many weights of every filter stay; one at least."""
        return max(1, int(kept_count(size, float(density))))

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """New weights and masks, and the record.

        Raises:
            ArgumentError: the net's activations are not finite.
        """
        net = Net(task)
        alive, (points, order) = self.prunable(task, pruned.masks), jax.random.split(key)
        layers = {path: net.groups.layers[path] for path in alive}
        batches = few_batches(task.data, self.batches, self.batch_size, order)
        images = [batch["image"] for batch in batches]
        traffic = measured(task, pruned.variables, [*alive], images[0])
        before = {path: float(each.total) for path, each in self._energy(task, traffic).items()}
        kept = self.densities(task, alive, before)
        sites = tuple(site for layer in layers.values() for site in layer.sites)
        # Y: what the net said that came, before anything is pruned
        see = net.once(_look, sites, self.points, False)
        dense = collect(see, pruned.variables, images, points)
        variables, keeps, found = pruned.variables, {}, []
        for path in self._ordered(task, before):
            layer = layers[path]
            see = net.once(_look, layer.sites, self.points, True)
            now = collect(see, variables, images, points)
            leaves = net.leaves(variables)
            matrix = layer.matrix(np.asarray(leaves[path], np.float64))
            flat = lambda array, n=matrix.shape[-1]: array.reshape(-1, n)
            count = self.count(len(flat(matrix)), kept[path])
            there = flat(layer.matrix(alive[path]))
            new, keep, left = self._solved(layer.sites, now, dense, flat(matrix), there, count)
            found.append(left)
            leaves[path] = jnp.asarray(layer.array(new.reshape(matrix.shape)), leaves[path].dtype)
            keeps[path] = layer.array(keep.reshape(matrix.shape))
            variables = net.tree(leaves)
        masks, earlier = net.tree(keeps), net.weight_masks(pruned.masks)
        masks = masks if earlier is None else intersect(earlier, masks)
        variables = apply_masks(variables, masks)
        after = self._energy(
            task, measured(task, variables, [*alive], images[0]),
            {path: float(keep.mean()) for path, keep in keeps.items()},
        )  # fmt: skip
        names = ("magnitude_error", "restored_error", "reconstruction_error")
        metrics = {
            **fractions(task, masks),
            "energy": sum(float(each.total) for each in after.values()) / sum(before.values()),
            **dict(zip(names, np.mean(found, axis=0).tolist())),
        }
        return pruned._replace(variables=variables, masks=masks), [record(self.name, metrics)]

    def _energy(
        self, task: Task, traffic: Mapping[str, Traffic], densities: Any = None
    ) -> dict[str, Any]:
        return energies(Net(task).groups, traffic, densities, self.costs)

    def _ordered(self, task: Task, energy: Mapping[str, float]) -> list[str]:
        layers = Net(task).groups.layers
        sizes = {
            "energy": energy,
            "params": {path: math.prod(layers[path].shape) for path in energy},
            "macs": {path: layers[path].macs for path in energy},
            "forward": dict.fromkeys(energy, 0.0),
        }[self.order]
        # Ties in the order of execution.
        return sorted(energy, key=lambda path: -sizes[path])

    def _solved(
        self,
        sites: Sequence[str],
        now: Mapping[str, Windows],
        dense: Mapping[str, Windows],
        weights: np.ndarray,
        alive: np.ndarray,
        count: int,
    ) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """(new weights, those that stay, errors of magnitude, restoring and refit)."""
        x = np.concatenate([now[site].inputs for site in sites])
        y = np.concatenate([dense[site].outputs for site in sites])
        whole = np.ones(x.shape[1], bool)
        shape = weights.reshape(*x.shape[1:], -1)
        seen = moments(Problem(x, y, shape, whole))
        keep = restored(seen.gram, seen.cross, weights, count, self.back, alive)
        plain = restored(seen.gram, seen.cross, weights, count, 0.0, alive)
        new = refit(seen.gram, seen.cross, keep, weights, self.ridge)

        def error(a: np.ndarray) -> float:
            # ||Y - X A||^2 / ||Y||^2
            left = seen.square - 2 * np.sum(a * seen.cross) + np.sum(a * (seen.gram @ a))
            return max(float(left), 0.0) / seen.square if seen.square > 0 else 0.0

        return new, keep, [error(weights * plain), error(weights * keep), error(new)]


def measured(
    task: Task, variables: Variables, kernels: Sequence[str], images: Any
) -> dict[str, Traffic]:
    """{kernel: what it reads and writes for one example, and how much of it is not 0}.

    Args:
        task: of the net.
        variables: of the net, masked or not: zeros of activations are those of these.
        kernels: whose call sites are looked at.
        images: a batch.
    """
    net, result = Net(task), {}
    seen = jax.tree.map(np.asarray, net.once(_sizes, tuple(kernels))(variables, images))
    for path in kernels:
        of_sites = [seen[site] for site in net.groups.layers[path].sites]
        reads, active, writes = (sum(float(each[k]) for each in of_sites) for k in range(3))
        result[path] = Traffic(reads, writes, active / reads if reads else 0.0)
    return result


def _sizes(net: Net, kernels: tuple[str, ...]) -> Any:
    return _counted(net.task.fn, net.groups, kernels)


def _counted(fn: Any, groups: Groups, kernels: tuple[str, ...]) -> Any:
    run = taps(fn, groups, ("in", "out"))
    sites = [site for path in kernels for site in groups.layers[path].sites]

    @jax.jit
    def count(variables: Variables, images: Any) -> dict[str, tuple[Any, Any, Any]]:
        _, values = run(variables, images)
        per_example = lambda value: value.size / len(images)
        return {
            site: (
                jnp.asarray(per_example(values[site, "in"]), float),
                (values[site, "in"] != 0).sum() / len(images),
                jnp.asarray(per_example(values[site, "out"]), float),
            )
            for site in sites
        }

    return count


def _look(net: Net, sites: tuple[str, ...], points: int, inputs: bool) -> Look:
    return look(net.task.fn, net.groups, sites, points, inputs)
