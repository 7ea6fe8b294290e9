"""AutoML for model compression: a policy of widths for one budget, learned from pruned nets.

An agent (DDPG) goes over the layers and says how much of each may stay; a bound on its actions
keeps every net under the budget. The channels that their readers weigh least go, the readers are
refitted by least squares, and the reward of all decisions is the accuracy on held-out images.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    He, Lin, Liu, Wang, Li, Han, AMC: AutoML for model compression and acceleration on mobile
    devices, 2018, arXiv 1802.03494; numbers as in the authors' code. There a layer's action is the
    share of its inputs, here that of a group, which is the same where layers stand in a row;
    refits are of 1 x 1 convolutions alone, here of all plain layers; the reward is the top-5
    accuracy, here the task's own; the agent learns from its proposals, here from the widths that
    came out of them. The stride is told by the number of output positions. Rounding to multiples of
    8 is the budget's `multiple_of`.
"""

from jprune.base import Budget, Recipe
from jprune.search import Agent
from jprune.stages.actor_critic import SearchRatios
from jprune.stages.frame import framed
from jprune.stages.repair import Repair
from jprune.stages.train import Train


def amc(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    reward: str = "quality",
    episodes: int = 800,
    warmup: int = 100,
    least: float = 0.2,
    streams: bool = True,
    bound: str = "readers",
    hidden: int = 300,
    actor_rate: float = 1e-4,
    critic_rate: float = 1e-3,
    discount: float = 1.0,
    soft: float = 0.01,
    batch: int = 64,
    replay: int = 100,
    noise: float = 0.5,
    decay: float = 0.95,
    baseline: float = 0.5,
    examples: int = 5000,
    batches: int = 60,
    points: int = 10,
    ridge: float = 1e-4,
    recalibrate: int = 0,
) -> Recipe:
    """Searches widths with a policy for one budget, prunes, fine-tunes.

    Args:
        budget: what is kept: half of the MACs in the paper.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks.
        reward: "quality": accuracy (or minus the loss of a task without); "error_macs": -(1 -
            quality) * log(MACs), with which a net may also stay below the budget.
        episodes: nets that the agent learns from; one more reads its policy off.
        warmup: the first of them, with actions that are drawn evenly. As many as there are
            episodes: random search, with which a search is to be compared.
        least: the smallest share of a layer.
        streams: narrow residual streams too.
        bound: "readers": what reads a layer is counted as it is; "whole": as if all of the layer
            stayed.
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
        examples: of the validation split that nets are scored on.
        batches: for the refit, of 50 training images; 0: nothing is refitted.
        points: positions of an image in the refit of a layer.
        ridge: of the refit; see `reconstruct.masked_refit`.
        recalibrate: training batches for the statistics of a net; the paper leaves them.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: a number out of range, or another word.

    Example:
        >>> recipe = amc(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'search', 'before_finetune', 'finetune']
    """
    search = SearchRatios(
        budget, (),
        Agent(
            hidden, actor_rate, critic_rate, discount, soft, batch, replay, warmup, noise, decay,
            baseline,
        ),
        episodes, shown=False, least=least, streams=streams, bound=bound, reward=reward,
        repair=Repair(batches, 50, points, ridge), examples=examples, recalibrate=recalibrate,
        batch_size=finetune.batch_size,
    )  # fmt: skip
    return framed(train, search, finetune=finetune)


METHODS = {"amc": amc}
