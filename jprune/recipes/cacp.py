"""Conditional automated channel pruning: one policy of widths for several budgets.

An agent (DDPG) goes over the layers and says how much of each may stay. It sees what the layer is,
what was removed so far, and the budget of the episode, which is drawn anew: one search gives a net
for each budget. The bound on its actions keeps every net under its budget. The channels that their
readers weigh least go, the readers are refitted by least squares, and the reward of all decisions
is the accuracy on held-out images. The best net of the run's own budget is fine-tuned.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Liu, Guo, Guo, Jiang, Chen, Conditional automated channel pruning for deep neural networks,
    2021, arXiv 2009.09724 [48]; numbers as in the authors' newer code. There the cost that is
    still to come is always 0, by mistake, and rounding up can exceed the budget: here it is what
    it should be, and a width that exceeds the budget is narrowed. The agent learns from the widths
    that came out of its proposals, the code from the proposals. The stride is told by the
    number of output positions. Rounding to multiples of 8 is the budget's `multiple_of`.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.search import Agent
from jprune.stages.actor_critic import SearchRatios, TakeGoal
from jprune.stages.frame import Evaluate, Save, framed
from jprune.stages.repair import Repair
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def cacp(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    goals: Numbers | None = None,
    each: bool = False,
    episodes: int = 160,
    warmup: int = 30,
    draw: str = "uniform",
    least: float = 0.2,
    streams: bool = False,
    bound: str = "whole",
    hidden: int = 300,
    actor_rate: float = 1e-4,
    critic_rate: float = 1e-3,
    discount: float = 1.0,
    soft: float = 0.01,
    batch: int = 64,
    replay: int = 30,
    noise: float = 0.5,
    decay: float = 0.95,
    baseline: float = 0.5,
    examples: int = 5000,
    batches: int = 3,
    points: int = 6,
    ridge: float = 1e-4,
    recalibrate: int = 0,
) -> Recipe:
    """Searches widths with a policy for several budgets, prunes to one of them, fine-tunes.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; 400 epochs in the authors' page.
        goals: other fractions of the same kind that the policy learns (on the command line with
            ":" between); None: the page's 0.3, 0.5 and 0.7, of those that the net can reach.
        each: fine-tune the nets of these goals too, before that of the budget. They are evaluated
            as `goal_0.3` and so on, and `saved` has their variables.
        episodes: nets that the agent learns from; one more for each goal reads its policy off.
        warmup: the first of them, with actions that are drawn evenly. As many as there are
            episodes: random search, with which a search is to be compared.
        draw: the goal of an episode is drawn ("uniform"), or they take turns ("cycle": the
            authors' earlier code).
        least: the smallest share of a layer.
        streams: narrow residual streams too; the paper's ResNet-56 loses inner channels alone.
        bound: "whole": what reads a layer is counted as if all of it stayed, so that a budget may
            not be used up; "readers": it is counted as it is.
        hidden: width of the two layers of actor and critic.
        actor_rate: learning rate of the actor.
        critic_rate: of the critic.
        discount: of later rewards.
        soft: how far the slow copies follow in an update.
        batch: decisions in an update.
        replay: episodes that are remembered.
        noise: standard deviation of actions around the policy.
        decay: of the noise, an episode.
        baseline: share of a batch in the mean that is taken off rewards.
        examples: of the validation split that nets are scored on: 5,000 of CIFAR in the paper.
        batches: for the refit, of 50 training images; 0: nothing is refitted.
        points: positions of an image in the refit of a layer.
        ridge: of the refit; see `reconstruct.masked_refit`.
        recalibrate: training batches for the statistics of a net; the paper leaves them.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: a number out of range, another word, or `each` without goals.

    Example:
        >>> recipe = cacp(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"), goals=(0.3,))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'search', 'take', 'before_finetune', 'finetune']
    """
    asked = (goals,) if isinstance(goals, (int, float)) else goals
    others = None if asked is None else tuple(float(goal) for goal in asked)
    if each and others is None:
        raise errors.ArgumentError(
            "cacp(each=True) fine-tunes the nets of other goals, and none is named. Write them: "
            "goals=(0.3, 0.7), on the command line goals=0.3:0.7."
        )
    search = SearchRatios(
        budget, others,
        Agent(
            hidden, actor_rate, critic_rate, discount, soft, batch, replay, warmup, noise, decay,
            baseline,
        ),
        episodes, draw=draw, least=least, streams=streams, bound=bound,
        repair=Repair(batches, 50, points, ridge), examples=examples, recalibrate=recalibrate,
        batch_size=finetune.batch_size,
    )  # fmt: skip
    tuned = [
        stage
        for goal in (others or ()) if each and goal != budget.value
        for stage in (
            TakeGoal(search.name_of(goal)),
            dataclasses.replace(finetune, name=f"finetune_{goal:g}"),
            Evaluate("test", name=f"goal_{goal:g}"),
            Save(search.name_of(goal)),
        )
    ]  # fmt: skip
    last = TakeGoal(search.name_of(float(budget.value)))
    return framed(train, search, *tuned, last, finetune=finetune)


METHODS = {"cacp": cacp}
