"""The stages of MetaPruning: train a hypernetwork, search widths with it."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jprune.base import Batch, Learner, Pruned, Records, Searcher, Task, Variables
from jprune.learners import (
    Hypernetwork,
    hypernetwork_task,
    scorer,
    settled,
    to_the_end,
    width_masks,
)
from jprune.learners.statistics import check_settles
from jprune.search import SearchState, Space, evolution
from jprune.search.widths import Widths
from jprune.stages.candidates import stacked
from jprune.stages.frame import fractions, record
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState, plain


@dataclasses.dataclass(frozen=True)
class TrainHypernetwork:
    """Trains the hypernetwork. Afterwards it is in `extra`, and the net is its net of full width.

    Attributes:
        widths: the menu that widths are drawn from.
        train: how long, and how.
        smoothing: of labels that are class numbers; see `hypernetwork_task`.
        recalibrate: training batches for the statistics of the net of full width.
        name: of the records; they are validated at full width.
    """

    widths: Widths
    train: Train
    smoothing: float = 0.1
    recalibrate: int = 20
    name: str = "hypernetwork"

    def check(self, task: Task) -> None:
        """Refuses, before anything is trained, what the search would refuse.

        Raises:
            JpruneError: what `Widths.check` and, with batches to recalibrate on, `check_settles`
                raise.
        """
        self.train.takes("metapruning", "optimizer", "warmup", "clip", "accumulate")
        self.widths.check(task, Net(task).groups, Net(task).cost)
        if self.recalibrate:
            key = jax.random.key(0)
            image = stacked(task, "train", 2, 1, key)["image"][0]
            check_settles(task, task.init(key), image, key)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps."""
        self.widths.check(task, Net(task).groups, Net(task).cost)
        hyper = self.widths.hypernetwork(task, Net(task).groups)
        # Apart from each other: initial weights of the net and
        # of the hypernetwork, and widths of steps.
        fresh, start, draws = jax.random.split(key, 3)
        net = task.init(fresh)
        # Generated kernels begin near the net's own; its statistics are updated in `net`.
        begun = pruned._replace(variables={"hyper": hyper.init(start, net), "net": net})
        of_widths = hypernetwork_task(task, hyper, self.smoothing)
        decayed = hyper.decayed(begun.variables["hyper"])
        optimizer = self.train.optimizer_for(task)
        batch_size = self.train.batch_size
        learner = plain(of_widths, begun, None, optimizer, draws, batch_size, decayed=decayed)
        images = stacked(task, "train", batch_size, self.recalibrate, draws)["image"]

        @jax.jit
        def whole(params: Any, rest: Variables, images: Any) -> Variables:
            # The statistics of training are a mix of all widths: taken anew for this one.
            return settled(task, hyper.net(params, rest, hyper.menu.sizes), images, draws)

        def variables(state: TrainState) -> Variables:
            return whole(state.params, state.rest, images)

        def finish(state: TrainState) -> Pruned:
            return Pruned(variables(state), None, state.params, pruned.saved)

        return learner._replace(variables=variables, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Settings of the search; see `jprune.search.evolution`."""

    generations: int = 20
    population: int = 50
    parents: int = 10
    mutants: int = 25
    crossovers: int = 25
    probability: float = 0.1

    def searcher(self, space: Space) -> Searcher:
        """The search in a space."""
        return evolution(space, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Search:
    """Searches widths with the hypernetwork in `extra`; the best ones become the masks.

    A step is a generation. Its records have the `best` and the `mean` score (accuracy on a part of
    the validation split, or minus the loss of a task without accuracy), and how many candidates
    were `evaluated`.

    Attributes:
        widths: what is searched, under which budget.
        rounds: settings of the search.
        images: of the validation split.
        recalibrate: training batches for the statistics of a candidate.
        batch_size: images in a batch.
        name: of the records.
    """

    widths: Widths
    rounds: Rounds
    images: int = 500
    recalibrate: int = 20
    batch_size: int = 128
    name: str = "search"

    def scorer(self, task: Task, hyper: Hypernetwork, key: jax.Array) -> Callable[..., Any]:
        """`score(hypernetwork's parameters, variables, widths) -> quality`, compiled once."""
        images = stacked(task, "train", self.batch_size, self.recalibrate, key)["image"]
        size = min(self.images, task.data.sizes["validation"])
        held_out = stacked(task, "validation", size, 1)
        return scorer(task, hyper.net, images, held_out, key)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The search in steps."""
        hyper = self.widths.hypernetwork(task, Net(task).groups)
        space, widths = self.widths.space(Net(task).groups, Net(task).cost)
        searcher = self.rounds.searcher(space)
        score = self.scorer(task, hyper, key)
        params, rest = pruned.extra, pruned.variables
        # [batches, batch, h, w, c], the same for all candidates: scores differ by widths alone.
        images = stacked(task, "train", self.batch_size, self.recalibrate, key)["image"]

        def step(state: SearchState, batch: Batch) -> tuple[SearchState, dict[str, Any]]:
            del batch  # every candidate is scored on the same images
            # int [candidates, groups]: none of them asked before, so there may be none.
            genes = searcher.ask(state)
            # One compiled function: widths are data, and masks stand in for crops.
            scores = np.array([float(score(params, rest, row)) for row in widths(genes)])
            state = searcher.tell(state, genes, scores)
            top = searcher.best(state)[1]
            metrics = {"best": top, "mean": scores.mean() if len(scores) else top}
            return state, {**metrics, "evaluated": float(state.tried)}

        @jax.jit
        def net(params: Any, rest: Variables, images: Any, widths: Any) -> Variables:
            return settled(task, hyper.net(params, rest, widths), images, key)

        def best(state: SearchState) -> np.ndarray:
            return widths(searcher.best(state)[0][None])[0]

        def variables(state: SearchState) -> Variables:
            return net(params, rest, images, best(state))

        def finish(state: SearchState) -> Pruned:
            masks = width_masks(hyper.menu, best(state))
            return Pruned(variables(state), masks, None, pruned.saved)

        return Learner(
            steps=self.rounds.generations,
            epoch=1,
            init=lambda: searcher.init(key),
            batches=lambda start: itertools.repeat({}),
            step=step,
            variables=variables,
            finish=finish,
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the last round and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]
