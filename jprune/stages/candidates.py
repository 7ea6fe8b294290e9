"""Candidates of a search, which are masks: trained a little where asked, and scored."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Batch, Learner, Masks, Pruned, Searcher, Task, Variables, is_none
from jprune.learners import masked_scorer, settled, to_the_end
from jprune.learners.statistics import check_settles
from jprune.masks import apply_masks
from jprune.stages.train import Train
from jprune.train.net import Net
from jprune.train.step import Functions, stream

Score = Callable[[Variables, Sequence[Masks]], np.ndarray]
"""`(variables, masks of candidates) -> [candidates]`."""


def stacked(
    task: Task, split: str, batch_size: int, count: int, key: jax.Array | None = None
) -> Batch:
    """Batches of a split, stacked along a new first axis; with a key they are those of training."""
    size = min(batch_size, task.data.sizes[split])
    batches = task.data.batches(split, size) if key is None else stream(task.data, size, key)
    # At least one, so that count 0 gives arrays [0, batch, ...] of the right shape.
    taken = [*itertools.islice(batches, max(1, count))]
    return {name: np.stack([batch[name] for batch in taken])[:count] for name in taken[0]}


@dataclasses.dataclass(frozen=True)
class Trial:
    """How candidates are scored: all on the same images, higher is better.

    Attributes:
        images: of the validation split.
        recalibrate: training batches that a candidate's statistics are taken from anew; 0: none.
        batch_size: images in one of them.
        of: "accuracy" (minus the loss, for a task without one) or "loss" (minus the loss).
        train: training of a candidate before it is scored; None: as it is masked.
    """

    images: int = 500
    recalibrate: int = 20
    batch_size: int = 128
    of: str = "accuracy"
    train: Train | None = None

    def __post_init__(self):
        errors.check_words("the search", ("of", self.of, ("accuracy", "loss")))
        errors.check_numbers(
            "the search",
            ("images", self.images, self.images >= 1, "1 or more"),
            ("recalibrate", self.recalibrate, self.recalibrate >= 0, "0 or more"),
        )

    def check(self, task: Task) -> None:
        """Refuses a net whose statistics cannot be taken anew.

        Raises:
            ArgumentError: what `check_settles` raises.
        """
        if self.recalibrate:
            key = jax.random.key(0)
            # No data are read before all stages have had their say.
            image = jax.random.uniform(key, (2, *task.example.shape[1:]), task.example.dtype)
            check_settles(task, task.init(key), image, key)

    def data(self, task: Task, key: jax.Array) -> tuple[Any, Batch]:
        """Training images [batches, batch, ...] for statistics, and held-out batches."""
        images = stacked(task, "train", self.batch_size, self.recalibrate, key)["image"]
        size = min(self.images, task.data.sizes["validation"])
        return images, stacked(task, "validation", size, 1)

    def scorer(self, task: Task, key: jax.Array, most: int = 1) -> Score:
        """`score(variables, masks of candidates) -> [candidates]`, compiled once.

        Args:
            task: of the net.
            key: of the statistics' batches; the same for all candidates.
            most: candidates of a call.
        """
        functions = Functions(*(getattr(task, name) for name in Functions._fields))
        run = Net(task).once(_masked_scorer, functions, self.of)
        images, held_out = self.data(task, key)

        def score(variables: Variables, masks: Sequence[Masks]) -> np.ndarray:
            # Filled up to `most` by repeating the first: one shape, so one compilation.
            filled = [*masks, *[masks[0]] * (most - len(masks))]
            stack = jax.tree.map(
                lambda *leaves: None if leaves[0] is None else np.stack(leaves),
                *filled, is_leaf=is_none,
            )  # fmt: skip
            scores = run(variables, stack, len(masks), images, held_out, key)
            return np.asarray(scores, float)[: len(masks)]

        return score

    def settled(self, task: Task, variables: Variables, masks: Masks, key: jax.Array) -> Variables:
        """The net under masks, with the statistics that it is scored with."""
        net = Net(task)
        functions = Functions(*(getattr(task, name) for name in Functions._fields))
        run = net.once(_settled, functions)
        return run(variables, net.weight_masks(masks), self.data(task, key)[0], key)

    def trained(self, pruned: Pruned, masks: Masks, task: Task, key: jax.Array) -> Variables:
        """The net under masks after the training of a candidate, if there is one."""
        variables = apply_masks(pruned.variables, Net(task).weight_masks(masks))
        if self.train is None:
            return variables
        # Masks are in the state of the step, so that other masks recompile nothing.
        begun = pruned._replace(variables=variables, masks=masks)
        return to_the_end(self.train.learner(begun, task, key))[0].variables

    def judged(
        self, pruned: Pruned, masks: Sequence[Masks], task: Task, key: jax.Array, score: Score
    ) -> np.ndarray:
        """[candidates]: scores after training, or all in one call where there is none."""
        if self.train is None:
            return score(pruned.variables, masks)
        each = [score(self.trained(pruned, mask, task, key), [mask])[0] for mask in masks]
        return np.array(each, float)


def _masked_scorer(net: Net, functions: Functions, of: str) -> Callable[..., Any]:
    task = net.task._replace(**functions._asdict())
    return masked_scorer(task, net.groups, "loss" if of == "loss" else "quality")


def _settled(net: Net, functions: Functions) -> Callable[..., Any]:
    task = net.task._replace(**functions._asdict())

    @jax.jit
    def run(variables: Variables, masks: Masks, images: Any, key: jax.Array) -> Variables:
        return apply_masks(settled(task, apply_masks(variables, masks), images, key), masks)

    return run


def searching(
    searcher: Searcher,
    key: jax.Array,
    steps: int,
    epoch: int,
    score: Callable[[np.ndarray], np.ndarray],
    finish: Callable[[np.ndarray], Pruned],
) -> Learner:
    """A search as a learner: a step asks for candidates, scores them, and tells.

    Args:
        searcher: which candidates.
        key: of its draws.
        steps: rounds of the search.
        epoch: rounds after which the best net is looked at.
        score: `candidates [p, genes] -> [p]`; p may be 0.
        finish: of the best candidate, the net as it goes on.

    Returns:
        The learner. Its metrics are the `best` score so far, the `mean` of the round and how many
        candidates were `evaluated`.

    Raises:
        DivergenceError: no candidate has a finite score; when it ends.
    """

    def step(state: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
        del batch  # every candidate is scored on the same images
        candidates = searcher.ask(state)
        scores = score(candidates) if len(candidates) else np.zeros(0)
        state = searcher.tell(state, candidates, scores)
        top = searcher.best(state)[1]
        metrics = {"best": top, "mean": scores.mean() if len(scores) else top}
        return state, {**metrics, "evaluated": float(state.tried)}

    def best(state: Any) -> Pruned:
        candidate, top = searcher.best(state)
        if not np.isfinite(top):
            raise errors.DivergenceError(
                f"none of the {int(state.tried)} candidates of the search has a finite score: the "
                "net has diverged, or its loss is not finite. Write a smaller --learning-rate."
            )
        return finish(candidate)

    return Learner(
        steps=steps,
        epoch=epoch,
        init=lambda: searcher.init(key),
        batches=lambda start: itertools.repeat({}),
        step=step,
        variables=lambda state: best(state).variables,
        finish=best,
    )
