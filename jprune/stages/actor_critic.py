"""Widths decided layer by layer by a policy that is learned from the quality of pruned nets.

The searcher is `jprune.search.actor_critic`, what it acts in `jprune.search.ratios`. A candidate is
the dense net without the units that the next layers weigh least, the next layers refitted; how good
it is is measured by one compiled function for all: widths are data.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import (
    Batch,
    Budget,
    Learner,
    Pruned,
    Records,
    Searcher,
    Task,
    Variables,
)
from jprune.cost import cost_model, macs
from jprune.learners import Menu, check_settles, scorer, settled, to_the_end
from jprune.search import Agent, Episodes, Ratios, actor_critic, ratios
from jprune.search.actor_critic import DRAWS
from jprune.search.widths import price_of
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.hypernetwork import stacked
from jprune.stages.repair import Repair, ranks_of, repaired
from jprune.train.evaluate import EVALUATION_BATCH
from jprune.train.net import Net

AGENT, REPAIR = Agent(), Repair()
USUAL = (0.3, 0.5, 0.7)
"""Goals beside the budget, where the net can reach them and none are asked for."""
BOUNDS = ("readers", "whole")
REWARDS = ("quality", "error_macs")


def _macs_by_layer(net: Net) -> Callable[[Mapping[str, Any]], jax.Array]:
    """`macs(widths) -> [layers]`, in execution order."""
    number = {path: place for place, path in enumerate(net.groups.layers)}
    one_hot = np.eye(len(number), dtype=np.float32)
    table = lambda term: macs(term) * one_hot[number[term.layer]] if term.layer in number else 0.0
    task = net.task
    model = cost_model(
        task.fn, net.shapes, jnp.zeros(task.example.shape, task.example.dtype),
        groups=net.groups, per_equation=table,
    )  # fmt: skip
    return jax.jit(lambda widths: model(widths).macs)


@dataclasses.dataclass(frozen=True)
class SearchRatios:
    """Learns a policy of widths; the best net of the budget comes out, and those of other goals.

    A step is an episode, which is one net. Its records have the `best` score so far for the goal
    of the episode (accuracy on a part of the validation split, or minus the loss of a task without
    accuracy; the reward where that is something else), the `goal`, and how many nets `failed`:
    their scores were not finite. After the episodes the policy is read off, once for each goal.

    Afterwards `saved` has the variables of all goals under names such as "macs 0.3", and `extra`
    {"masks": {name: masks}, "scores": {name: score}}; see `TakeGoal`.

    Attributes:
        budget: what is kept; its multiples and floors hold for all goals.
        goals: other fractions that the same policy learns; None: 0.3, 0.5 and 0.7, of those that
            the net can reach.
        agent: settings of the agent.
        episodes: of learning.
        shown: whether the agent sees the goal of an episode; without it there are no other goals.
        draw: see `search.actor_critic`.
        least: the smallest share of a group.
        streams: whether residual streams are narrowed too; they stay whole otherwise.
        bound: what reads a group is counted as narrowed with it ("readers"), or as if all of it
            stayed ("whole", on MACs alone).
        reward: "quality", or "error_macs": -(1 - quality) * log(MACs).
        repair: how the next layers are refitted.
        examples: of the validation split that a net is scored on.
        recalibrate: training batches for the statistics of norms; 0: they stay.
        batch_size: of these batches.
        name: of the records.
    """

    budget: Budget
    goals: tuple[float, ...] | None = None
    agent: Agent = AGENT
    episodes: int = 160
    shown: bool = True
    draw: str = "uniform"
    least: float = 0.2
    streams: bool = True
    bound: str = "whole"
    reward: str = "quality"
    repair: Repair = REPAIR
    examples: int = 5000
    recalibrate: int = 0
    batch_size: int = 128
    name: str = "search"

    def __post_init__(self):
        self.agent.check()
        words = ("bound", self.bound, BOUNDS), ("reward", self.reward, REWARDS)
        errors.check_words("SearchRatios", *words, ("draw", self.draw, DRAWS))
        repair = dataclasses.asdict(self.repair)
        counts = {"episodes": self.episodes, "examples": self.examples}
        counts |= {"batch_size": self.batch_size, "points": repair["points"]}
        errors.check_numbers(
            "SearchRatios",
            *((name, number, number >= 1, "1 or more") for name, number in counts.items()),
            ("batches", self.repair.batches, self.repair.batches >= 0, "0 or more"),
            ("recalibrate", self.recalibrate, self.recalibrate >= 0, "0 or more"),
            ("ridge", self.repair.ridge, self.repair.ridge > 0, "above 0"),
            *(("goals", goal, 0 < goal <= 1, "in (0, 1]") for goal in self.goals or ()),
        )

    def name_of(self, goal: float) -> str:
        """Under which the net of a goal is saved, such as "macs 0.3"."""
        return f"{self.budget.kind} {goal:g}"

    def environment(self, task: Task) -> Ratios:
        """The environment of the net: its first goal is the budget.

        Raises:
            ArgumentError: nothing can be narrowed.
            BudgetError: a goal out of reach.
        """
        net, budget = Net(task), self.budget
        check_prunable(task, budget)
        joined = net.groups.streams
        names = tuple(
            name
            for name, size in net.groups.sizes.items()
            if size > budget.floors.get(name, 0) and (self.streams or name not in joined)
        )
        sizes = np.array([net.groups.sizes[name] for name in names], int)
        free = Menu(names, sizes, sizes[:, None])
        nothing = lambda widths: np.ones(len(widths))  # `ratios` refuses a net without groups
        price = price_of(net.groups, net.cost, free, budget) if names else nothing
        own = None
        if self.bound == "whole" and budget.kind == "macs" and names:
            own = self._own(net, names)
        of = lambda goals: ratios(
            net.groups, names, budget, price, goals, self.least, own, self.shown
        )
        first = float(budget.value)
        made = of((first,))
        if not self.shown:
            return made
        wanted = USUAL if self.goals is None else self.goals
        others = tuple(dict.fromkeys(goal for goal in wanted if goal != first))
        if self.goals is None:
            cheapest = float(price(made.lowest[None].astype(float))[0])
            others = tuple(goal for goal in others if goal >= cheapest)
        return of((first, *others))

    def _own(self, net: Net, names: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
        """`own(widths) -> [groups]`: MACs of the layers that make a group, over all."""
        by_layer = net.once(_macs_by_layer)
        layers = net.groups.layers.values()
        makes = np.array([[name in layer.writes for layer in layers] for name in names], float)
        dense = float(net.cost({}).macs)
        of = lambda widths: np.asarray(by_layer(dict(zip(names, map(np.float32, widths)))), float)
        return lambda widths: makes @ of(widths) / dense

    def check(self, task: Task) -> None:
        """Refuses what the search would refuse.

        Raises:
            ArgumentError: nothing can be narrowed; statistics that cannot be taken anew.
            BudgetError: a goal out of reach.
        """
        self.environment(task)
        if self.recalibrate:
            key = jax.random.key(0)
            image = stacked(task, "train", 2, 1, key)["image"][0]
            check_settles(task, task.init(key), image, key)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The search in steps.

        Raises:
            ArgumentError: the net is pruned already, or its own quality is not finite.
        """
        if pruned.masks is not None:
            raise errors.ArgumentError(
                "the search of widths begins with the dense net, and this one is pruned already. "
                "Put it before other pruning in the recipe."
            )
        return _Search(self, task, pruned, key).learner()

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the last episode and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]


class _Search:
    """A search of a net: its candidates and their scores."""

    def __init__(self, stage: SearchRatios, task: Task, pruned: Pruned, key: jax.Array):
        self.stage, self.task, self.pruned, self.key = stage, task, pruned, key
        self.environment = stage.environment(task)
        net = Net(task)
        self.groups = net.groups
        repairs, self.settles, self.begins = jax.random.split(key, 3)
        self.grams = stage.repair.grams(task, pruned.variables, repairs)
        self.ranks = ranks_of(task, pruned.variables, self.environment.names)
        self.images = stacked(task, "train", stage.batch_size, stage.recalibrate, self.settles)
        whole = task.data.sizes["validation"]
        size = min(EVALUATION_BATCH, stage.examples, whole)
        held_out = stacked(task, "validation", size, -(-min(stage.examples, whole) // size))
        score = scorer(task, self.refitted, self.images["image"], held_out, self.settles)
        self.score: Callable[[Any], float] = lambda widths: float(
            score(pruned.variables, self.grams, self.ranks, widths)
        )
        if not np.isfinite(self.score(self.environment.sizes)):
            raise errors.ArgumentError(
                f"the quality of {task.name} on validation images is not finite before anything "
                "is pruned. Check the net and its loss."
            )

    def masks(self, ranks: Mapping[str, Any], widths: Any) -> dict[str, Any]:
        """Unit masks that keep the first of every group."""
        names = self.environment.names
        return {name: ranks[name] < widths[place] for place, name in enumerate(names)}

    def refitted(self, variables: Variables, grams: Any, ranks: Any, widths: Any) -> Variables:
        """The net of some widths; jittable in all of them."""
        ridge = self.stage.repair.ridge
        return repaired(self.task, variables, grams, self.masks(ranks, widths), ridge)

    def reward(self, widths: np.ndarray) -> float:
        """What an episode brings."""
        quality = self.score(widths)
        if self.stage.reward == "quality":
            return quality
        named = {name: float(n) for name, n in zip(self.environment.names, widths)}
        # -error log(FLOPs)
        return -(1 - quality) * float(np.log(float(Net(self.task).cost(named).macs)))

    def learner(self) -> Learner:
        """The search in steps."""
        stage, environment = self.stage, self.environment
        goals = environment.goals
        searcher: Searcher = actor_critic(
            environment, len(goals), stage.episodes, stage.agent, stage.draw
        )
        settle = jax.jit(lambda net, images: settled(self.task, net, images, self.settles))
        refit = jax.jit(self.refitted)

        def step(state: Episodes, batch: Batch) -> tuple[Episodes, dict[str, Any]]:
            del batch  # every net is scored on the same images
            asked = searcher.ask(state)
            state = searcher.tell(state, asked, np.array([self.reward(asked[0, 1:])]))
            goal = int(asked[0, 0])
            # Before the first finite score there is none to tell.
            best = max(float(state.scores[goal]), np.finfo(np.float32).min)
            return state, {"best": best, "goal": goals[goal], "failed": float(state.failed)}

        def net(widths: np.ndarray) -> Variables:
            made = refit(self.pruned.variables, self.grams, self.ranks, widths)
            return settle(made, self.images["image"])

        def of_goal(state: Episodes, goal: int) -> np.ndarray:
            scored = np.isfinite(state.scores[goal])
            return np.asarray(state.best[goal] if scored else environment.lowest, int)

        def finish(state: Episodes) -> Pruned:
            if not np.isfinite(state.scores).all():
                raise errors.ArgumentError(
                    f"{int(state.failed)} of {int(state.episode)} nets had no finite quality, and "
                    "of a goal there is none that has. Fewer layers may be refitted (batches=0), "
                    "or the ridge may be larger."
                )
            names = [stage.name_of(goal) for goal in goals]
            chosen = [of_goal(state, goal) for goal in range(len(goals))]
            masks = [self.masks(self.ranks, widths) for widths in chosen]
            saved = {name: net(widths) for name, widths in zip(names, chosen)}
            extra = {
                "masks": dict(zip(names, masks)),
                "scores": {n: np.float32(score) for n, score in zip(names, state.scores)},
            }
            return self.pruned._replace(
                variables=saved[names[0]],
                masks=masks[0],
                extra=extra,
                saved={**self.pruned.saved, **saved},
            )

        return Learner(
            steps=stage.episodes + len(goals),
            epoch=max(1, stage.episodes // 20),
            init=lambda: searcher.init(self.begins),
            batches=lambda start: itertools.repeat({}),
            step=step,
            variables=lambda state: net(of_goal(state, 0)),
            finish=finish,
        )


@dataclasses.dataclass(frozen=True)
class TakeGoal:
    """Goes on with the net that a search ended with for another goal.

    Attributes:
        goal: the name under which `SearchRatios` saved it, such as "macs 0.3".
        name: of the record: the fractions kept, and the score of the search.
    """

    goal: str
    name: str = "take"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """That net.

        Raises:
            ArgumentError: there is no such goal.
        """
        del key
        held = pruned.extra["masks"] if isinstance(pruned.extra, dict) else {}
        if self.goal not in held or self.goal not in pruned.saved:
            raise errors.ArgumentError(
                f"TakeGoal({self.goal!r}): the goals are {', '.join(held) or 'none'}. Put a search "
                "for it before, with this goal among the others."
            )
        masks = held[self.goal]
        metrics = fractions(task, masks) | {"score": float(pruned.extra["scores"][self.goal])}
        variables = pruned.saved[self.goal]
        return pruned._replace(variables=variables, masks=masks), [record(self.name, metrics)]
