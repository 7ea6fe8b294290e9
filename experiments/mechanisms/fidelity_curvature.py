"""Fidelity: how well criteria tell what the loss does when a filter goes, or many at once.

No paper shows it. For every single filter of LeNet-5 (MNIST) and ResNet-8 (CIFAR-10) the loss on
500 training images is measured with the filter gated away, and so is that of 100 random sets of
10 % of all filters; a criterion predicts the first by its score and the second by the sum of its
scores, but EigenDamage by its curvature of the whole set: filters act together. No net is trained
afterwards.

    python -m experiments.mechanisms.fidelity_curvature --seeds 0 1 2

writes a line a net, criterion and seed into `experiments/results/mechanisms/fidelity.jsonl`:
`rank` is Spearman's rank correlation over all filters, `within` its mean over groups of filters,
`sets` that of the sets; `predicted` and `measured` are of the single filters.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean as mean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes
from scipy import stats

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import task_of
from jprune import criteria, curvature, data, run_criterion, to_units
from jprune.base import Batch, Criterion, Groups, Pruned, Task, Variables
from jprune.criteria.kronecker import unit_scores
from jprune.curvature import Factors, kfac, layers_of, mean_loss
from jprune.graph import gated
from jprune.recipes import Train
from jprune.report.figures import PRINT
from jprune.train.net import Net
from jprune.units import leaves_by_path

RESULTS = rows.RESULTS / "mechanisms" / "fidelity.jsonl"
NETS = {"lenet5": ("mnist", 2.0, 0.02), "resnet8": ("cifar10", 3.0, 0.1)}
"""{net: (data, epochs, largest learning rate)}."""
TRAINED_ON = 10_000
"""Images."""
SETS, FRACTION = 100, 0.1
Damages = Mapping[str, Any]
"""{group: [units], or [units, units] whose sum over all pairs of a set is the set's}."""


class Case(NamedTuple):
    """A trained net and the images that the loss is measured on."""

    task: Task
    groups: Groups
    variables: Variables
    batches: Sequence[Batch]
    key: jax.Array


def _pooled(criterion: Criterion, case: Case, within: str = "sum") -> Damages:
    scores = run_criterion(criterion, case.variables, case.batches)
    return to_units(case.groups, scores, within=within)


def _obd(case: Case) -> Damages:
    estimator = curvature.gauss_newton(probes=16)
    return _pooled(criteria.obd(case.task.fn, case.task.loss, estimator, case.key), case)


def _taylor(case: Case) -> Damages:
    task = case.task
    criterion = criteria.taylor(task.fn, task.loss, case.groups, form="gate", at="in")
    return run_criterion(criterion, case.variables, case.batches)


def _factors(case: Case, inputs: str) -> Mapping[str, Factors]:
    task, shapes = case.task, jax.eval_shape(lambda: case.variables)
    layers = layers_of(task.fn, case.groups, shapes, task.example)
    criterion = kfac(task.fn, task.loss, case.groups, layers, key=case.key, inputs=inputs)
    return run_criterion(criterion, case.variables, case.batches)


def _c_obs(case: Case) -> Damages:
    factors = _factors(case, "patches")
    return unit_scores(case.groups, case.variables, factors, "c_obs")


def _eigendamage(case: Case) -> Damages:
    """Half of tr(S D A D^T) of the change D that removes units, pair by pair: F is S (x) A."""
    leaves, damages = leaves_by_path(case.groups, case.variables), {}
    for path, factors in _factors(case, "channels").items():
        a, s = (np.asarray(factor, float) for factor in factors)
        kernel = np.asarray(leaves[path], float).reshape(-1, len(a), len(s))
        pairs = s * np.einsum("wai,ab,wbj->ij", kernel, a, kernel) / 2
        for name, places in case.groups.places.items():
            for place in places:
                made = place.leaf == path and place.axis == leaves[path].ndim - 1
                if made and "kernel" in place.roles:
                    size = case.groups.sizes[name]
                    units = np.ix_(place.units, place.units)
                    damages.setdefault(name, np.zeros((size, size)))[units] += pairs
    return damages


def _random(case: Case) -> Damages:
    keys = jax.random.split(case.key, len(case.groups.sizes))
    return {
        name: jax.random.uniform(k, (n,)) for k, (name, n) in zip(keys, case.groups.sizes.items())
    }


CRITERIA: dict[str, Callable[[Case], Damages]] = {
    "OBD": _obd,
    "EigenDamage": _eigendamage,
    "C-OBS": _c_obs,
    "Taylor": _taylor,
    "magnitude": lambda case: _pooled(criteria.magnitude(), case),
    "magnitude, mean": lambda case: _pooled(criteria.magnitude(), case, "mean"),
    "random": _random,
}
"""Higher for filters whose loss hurts more."""
CURVED = ("OBD", "EigenDamage", "C-OBS")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and sets.
        nets: of the zoo.
        images: that losses are measured on.
        smoke: a net on digits, two steps, few sets; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    nets: tuple[str, ...] = tuple(NETS)
    images: int = 500
    smoke: bool = False


def trained(settings: Settings, net: str, seed: int) -> Case:
    """A net that learned its data."""
    name, epochs, rate = ("digits", 1.0, 0.1) if settings.smoke else NETS[net]
    images = data.load(name, subset=300 if settings.smoke else TRAINED_ON)
    task = task_of(net, images)
    key = jax.random.key(seed)
    stage = Train(epochs, rate, 64, max_steps=2 if settings.smoke else None)
    start = Pruned(task.init(jax.random.fold_in(key, 0)), None)
    pruned, _ = stage(start, task, jax.random.fold_in(key, 1))
    size = 100 if settings.smoke else 250
    found = images.batches("train", size, seed=seed)
    batches = list(itertools.islice(found, 1 if settings.smoke else settings.images // size))
    return Case(task, Net(task).groups, pruned.variables, batches, jax.random.fold_in(key, 2))


def measured(case: Case, without: np.ndarray) -> np.ndarray:
    """Increase of the loss without some filters.

    Args:
        case: the net.
        without: [sets, filters] bool, the filters of all groups side by side.

    Returns:
        [sets].
    """
    run = gated(case.task.fn, case.groups, at="in")
    ends = np.cumsum(list(case.groups.sizes.values()))[:-1].tolist()

    @jax.jit
    def loss(gone: jax.Array, batch: Batch) -> jax.Array:
        parts = jnp.split(1.0 - gone.astype(jnp.float32), ends)
        gates = dict(zip(case.groups.names, parts))
        fn = lambda variables, x: run(variables, gates, x)
        return mean_loss(fn, case.task.loss, case.variables, batch)

    # A call each: in a loop of XLA, convolutions are slow on a CPU.
    of = lambda gone: np.mean([float(loss(jnp.asarray(gone), batch)) for batch in case.batches])
    whole = of(np.zeros(without.shape[1], bool))
    return np.array([of(gone) for gone in without]) - whole


def rank(predicted: np.ndarray, true: np.ndarray) -> float:
    """Spearman's correlation."""
    result: Any = stats.spearmanr(predicted, true)
    return float(result.statistic)


def compared(settings: Settings, case: Case) -> list[dict[str, Any]]:
    """What every criterion predicts beside what is measured."""
    sizes = list(case.groups.sizes.values())
    count = sum(sizes)
    rng = np.random.default_rng(int(jax.random.bits(case.key)))
    single = np.eye(count, dtype=bool)
    sets = np.stack(
        [rng.permutation(count) < FRACTION * count for _ in range(8 if settings.smoke else SETS)]
    )
    true, of_sets = np.split(measured(case, np.concatenate([single, sets])), [count])
    ends = np.cumsum(sizes)[:-1]
    found = []
    for name, scores_of in CRITERIA.items():
        damages = scores_of(case)
        units = [np.asarray(damages[group], float) for group in case.groups.names]
        blocks = [np.diag(each) if each.ndim == 1 else each for each in units]
        scores = np.concatenate([np.diag(block) for block in blocks])
        inside = zip(np.split(sets.astype(float), ends, axis=1), blocks)
        of_blocks = [np.einsum("su,uv,sv->s", gone, block, gone) for gone, block in inside]
        pairs = zip(np.split(scores, ends), np.split(true, ends))
        found.append(
            {
                "arm": name,
                "rank": rank(scores, true),
                "within": mean(rank(*pair) for pair in pairs),
                "sets": rank(np.sum(of_blocks, axis=0), of_sets),
                "predicted": [float(f"{value:.3g}") for value in scores],
                "measured": [float(f"{value:.3g}") for value in true],
            }
        )
    return found


def of(found: Sequence[rows.Row], net: str, arm: str, what: str) -> list[float]:
    """Values by seed."""
    newest = {row["seed"]: row for row in found if row["net"] == net and row["arm"] == arm}
    return [newest[seed][what] for seed in sorted(newest)]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Rank correlations, each beside that of the other criteria."""
    words = {"rank": "all filters", "within": "filters of a group", "sets": "sets of 10 %"}
    listed = []
    for net, what in itertools.product(dict.fromkeys(row["net"] for row in found), words):
        ours = {arm: of(found, net, arm, what) for arm in CRITERIA}
        means = {arm: mean(values) for arm, values in ours.items()}
        best = max(means, key=lambda arm: means[arm])
        text = ", ".join(
            f"{arm} {shown(ours[arm])}" for arm in sorted(ours, key=lambda a: -means[a])
        )
        claim = f"{net}, {words[what]}: a criterion of curvature ranks best"
        listed.append(Finding(claim, "-", text, best in CURVED))
    return listed


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Single filters of the first seed: what OBD predicts and what is measured."""
    first = min(row["seed"] for row in found)
    for net, colour in zip(dict.fromkeys(row["net"] for row in found), (PRINT.slim, PRINT.second)):
        (row,) = (r for r in found if (r["net"], r["arm"], r["seed"]) == (net, "OBD", first))
        axes.scatter(
            np.maximum(row["predicted"], 1e-9), np.maximum(row["measured"], 1e-6), s=8,
            color=colour, alpha=0.6, linewidths=0, label=f"{net}, rank {row['rank']:.2f}",
        )  # fmt: skip
    axes.axline((1e-3, 1e-3), slope=1, color=PRINT.line, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("increase of the loss that OBD predicts, nats")
    axes.set_ylabel("measured (at least 1e-6)")
    axes.legend(frameon=False, fontsize=9)


CLAIM = Claim(
    "Fidelity: predicted and measured losses without a filter",
    findings,
    draw,
    "Spearman's rank correlation over single filters and over random sets of them, on the images "
    "that the criteria saw; training is not part of it. A filter that goes takes its bias and what "
    "its norm adds with it, of which OBD, C-OBS and EigenDamage know nothing: theirs is the change "
    "of the kernel alone. C-OBS is the damage that is left if the other weights make up for it, "
    "which here they do not.",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net and criterion."""
    nets = ("resnet8",) if settings.smoke else settings.nets
    for net, seed in itertools.product(nets, seeds_of(settings)):
        for values in compared(settings, trained(settings, net, seed)):
            yield {"net": net, "seed": seed, **values}


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "fidelity", "refs": [1, 18]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))
