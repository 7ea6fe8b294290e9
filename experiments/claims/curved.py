"""E28's nets: the five methods of the paper with one measured curvature, and other criteria."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.claims.claim import Case
from experiments.claims.scored import without_lowest_units
from experiments.claims.statements import Finding, Rows, Statement, Value, each, select
from experiments.rows import Row
from jprune import allocate, criteria, curvature, errors, run_criterion
from jprune.base import Batch, Budget, Criterion, Pruned, Scores
from jprune.forms.opened import dense_of
from jprune.recipes.kronecker import METHODS
from jprune.stages.eigenbasis import COLUMNS, ROWS, Form, Rotate
from jprune.stages.kronecker import PruneFilters
from jprune.stages.prune import fractions
from jprune.train.net import Net as TaskNet

DENSITIES = (0.7, 0.5, 0.3, 0.1)
ROTATED = ("eigendamage", "eigendamage, per cost")
ALLOCATORS = {"uniform": "uniform", "global": "global_topk"}
BATCH = 50


def row(part: str, arm: str, density: float | None, record: Mapping[str, float]) -> Row:
    """What a row says of a net."""
    sizes = {name: record.get(name) for name in ("params", "macs")}
    return {"part": part, "arm": arm, "density": density, **sizes,
            "predicted": record.get("damage")}  # fmt: skip


class Curved:
    """A dense net whose curvature is measured once, for several budgets."""

    def __init__(self, case: Case[Any], dense: Pruned, batches: Sequence[Batch]):
        self.case, self.dense, self.batches = case, dense, batches
        key, task = case.fold(2), case.task
        self.rotate = Rotate(Budget(density=1.0), batches=len(batches), batch_size=BATCH)
        self.forms = self.rotate.forms(dense.variables, task, key)
        self.filters: dict[str, tuple[PruneFilters, Criterion, Any]] = {}
        for form in METHODS:
            stage = PruneFilters(Budget(density=1.0), form)
            criterion = stage.criterion(task, TaskNet(task).groups, key)
            state = criterion.init(dense.variables)
            for batch in batches:
                state = criterion.update(state, dense.variables, batch)
            self.filters[form] = stage, criterion, state

    def prune(self, arm: str, budget: Budget, allocator: str = "global_topk") -> tuple[Pruned, Any]:
        """The net under a budget, and the record of the stage."""
        if arm in ROTATED:
            stage = dataclasses.replace(self.rotate, budget=budget, per_cost=arm != "eigendamage")
            pruned, (record,) = stage.with_forms(self.dense, self.case.task, self.forms)
        else:
            stage, criterion, state = self.filters[arm]
            stage = dataclasses.replace(stage, budget=budget, allocator=allocator)
            pruned, (record,) = stage.with_state(self.dense, self.case.task, criterion, state)
        return pruned, record["metrics"]

    def all_nets(self) -> Iterator[tuple[Row, Pruned]]:
        """The dense net, and all that is pruned of it."""
        yield row("dense", "dense", None, {"params": 1.0, "macs": 1.0}), self.dense
        yield from self.of_half_the_macs()
        yield from self.of_equal_size()
        yield from self.of_single_layers()

    def of_half_the_macs(self) -> Iterator[tuple[Row, Pruned]]:
        """EigenDamage and every criterion for filters."""
        budget, task = Budget(macs=0.5), self.case.task
        for arm in ROTATED:
            pruned, record = self.prune(arm, budget)
            yield row("macs", arm, None, record), pruned
        for name, allocator in ALLOCATORS.items():
            for form in METHODS:
                pruned, record = self.prune(form, budget, allocator)
                yield row("macs", f"{form}, {name}", None, record), pruned
        for criterion, scores in self.scored().items():
            for name, pool in (("uniform", "sum"), ("global", "mean")):
                allocator = getattr(allocate, ALLOCATORS[name])
                pruned = without_lowest_units(
                    self.case, self.dense, scores, budget, allocator, pool
                )
                record = fractions(task, pruned.masks)
                yield row("macs", f"{criterion}, {name}", None, record), pruned

    def scored(self) -> dict[str, Scores]:
        """Scores of the other criteria."""
        task, groups, key = self.case.task, TaskNet(self.case.task).groups, self.case.fold(4)
        taylor = lambda **options: criteria.taylor(task.fn, task.loss, groups, **options)
        made = {
            "l1": criteria.magnitude(1),
            "l2": criteria.magnitude(2),
            "random": criteria.random(key),
            "taylor, gate": taylor(form="gate", at="norm"),
            "taylor, joint": taylor(form="joint"),
            "obd": criteria.obd(task.fn, task.loss, curvature.gauss_newton(probes=16), key),
        }
        return {
            name: run_criterion(criterion, self.dense.variables, self.batches)
            for name, criterion in made.items()
        }

    def of_equal_size(self) -> Iterator[tuple[Row, Pruned]]:
        """All five at the parameters that C-OBD keeps."""
        for density in self.case.first(DENSITIES):
            pruned, record = self.prune("c_obd", Budget(density=density))
            yield row("size", "c_obd", density, record), pruned
            budget = Budget(params=record["params"])
            for arm in ("c_obs", "kron_obd", "kron_obs", "eigendamage"):
                with contextlib.suppress(errors.BudgetError):  # its rotations alone are larger
                    pruned, record = self.prune(arm, budget)
                    yield row("size", arm, density, record), pruned

    def of_single_layers(self) -> Iterator[tuple[Row, Pruned]]:
        """One layer alone, by EigenDamage, at every density of its rows and columns."""
        for path, form in self.forms.items():
            scores = self.rotate.scores({path: form})
            for density in self.case.first(DENSITIES):
                masks = allocate.global_topk(scores, Budget(density=density))
                pruned, damage = alone(self.dense, path, form, masks)
                yield row("layer", path, density, {"damage": damage}), pruned


def alone(dense: Pruned, path: str, form: Form, masks: Mapping[str, Any]) -> tuple[Pruned, float]:
    """The net with one kernel pruned, and the damage that is predicted."""
    columns, rows = masks[path + COLUMNS], masks[path + ROWS]
    # The sum of Theta over what goes: all of it without what stays.
    stays = form.turned.damage[columns][:, rows].sum()

    def one(place: Any, leaf: Any) -> Any:
        at = jax.tree_util.keystr(place, simple=True, separator="/")
        return form.part(columns, rows, leaf.dtype) if at == path else leaf

    variables = jax.tree_util.tree_map_with_path(one, dense.variables)
    return dense._replace(variables=variables), float(form.turned.damage.sum() - stays)


@functools.cache
def looking(fn: Callable[..., Any], metrics: Callable[..., Any]) -> Callable[..., Any]:
    """The metrics of a net on a batch, compiled once."""
    return jax.jit(lambda variables, batch: metrics(fn(variables, batch["image"]), batch))


def first_images(case: Case[Any], pruned: Pruned) -> Row:
    """Training loss and test accuracy on the first images: a measure.

    Factored kernels are multiplied out: the function is the same.
    """
    variables = dense_of(pruned.variables)
    metrics = looking(case.task.fn, case.task.metrics)
    images = case.settings.images
    train = case.batches("train", BATCH, images, case.seed)
    test = case.batches("test", BATCH, images)
    losses = [metrics(variables, batch)["loss"] for batch in train]
    right = sum(float(b["weight"] @ metrics(variables, b)["accuracy"]) for b in test)
    accuracy = right / sum(float(batch["weight"].sum()) for batch in test)
    return {"loss": float(np.mean(losses)), "accuracy": accuracy}


def increase(net: str, part: str, arm: str, density: float | None = None) -> Value:
    """The loss over that of the dense net."""
    at = each("loss", net=net, part=part, arm=arm, density=density)
    return at - each("loss", net=net, part="dense")


def others(rows: Rows) -> list[str]:
    """All arms of half of the MACs but EigenDamage."""
    return sorted({row["arm"] for row in select(rows, part="macs")} - {*ROTATED})


def against_the_best(net: str) -> Statement:
    """EigenDamage at half of the MACs against the best other criterion."""

    def findings(rows: Rows) -> Iterator[Finding]:
        beside = others(rows)
        best = min(beside, key=lambda arm: increase(net, "macs", arm).mean(rows))
        for arm in ROTATED:
            text = (f"{net}, half of the MACs, {arm}: increase of the loss over that of the best "
                    f"of {len(beside)}, {best}")  # fmt: skip
            ratio = increase(net, "macs", arm) / increase(net, "macs", best)
            yield Finding(text, "below 1", ratio.shown(rows), ratio.mean(rows) < 1)

    return lambda rows: findings(rows) if select(rows, net=net) else ()


def first(net: str) -> Callable[[Rows], str]:
    """With how many seeds EigenDamage per cost is first at half of the MACs."""

    def count(rows: Rows) -> str:
        rotated = increase(net, "macs", ROTATED[1]).of(rows)
        beside = [increase(net, "macs", arm).of(rows) for arm in others(rows)]
        wins = [value <= min(of[seed] for of in beside) for seed, value in rotated.items()]
        return f"{sum(wins)} of {len(wins)} seeds"

    return count
