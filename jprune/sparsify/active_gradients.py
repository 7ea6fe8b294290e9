"""Gradients for the few weights of a net that matter most in a step; all others only decay.

References:
    Ding, Ding, Zhou, Guo, Han, Liu, Global sparse momentum SGD for pruning very deep neural
    networks, 2019, arXiv 1909.12778 [31].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params, Schedule
from jprune.blocks.members import Blocks, leaves_of
from jprune.masks import best


class ActiveState(NamedTuple):
    """State of `active_gradients`.

    Attributes:
        step: how many were taken.
        active: {path: int32}: how many weights of each leaf had a gradient in the last step.
    """

    step: jax.Array
    active: dict[str, jax.Array]


def active_gradients(blocks: Blocks, count: int | Schedule) -> optax.GradientTransformation:
    """Passes on the gradients of the `count` weights with the largest |g w|; the others become 0.

    Place it before weight decay and momentum, and give it the gradient of the loss alone:

        optax.chain(active_gradients(...), optax.add_decayed_weights(5e-4), optax.sgd(0.01, 0.98))

    The weights are chosen anew in every step, over all leaves together. Those that are never chosen
    (passive ones) shrink by about 1 - learning rate * decay / (1 - momentum) in a step, while the
    weights that are chosen hold out against it; nothing is masked, neither weights nor momentum, so
    that a weight which was passive by mistake comes back. Decay has to go through the momentum:
    beside it (adamw) it is 1 / (1 - momentum) times weaker. `sparsify.contraction` says how far
    passive weights come down in a training. In the end the `count` largest weights are kept.

    Args:
        blocks: whose leaves compete, as a whole: `blocks.weights(groups)` are all kernels. Biases
            and norms have their whole gradient.
        count: how many weights have a gradient in a step, or step -> how many. A fraction is
            rounded down.

    Returns:
        An optax transformation. Ties go to the first weight of the first leaf, so that it is never
        more than `count`.

    Raises:
        ArgumentError: a count below 1, or of more weights than there are (in `init`); `update`
            without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"b": jnp.array([1.0]), "w": jnp.array([[1.0], [-2.0], [0.1], [0.5]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"] + v["b"], params, jnp.ones(4))
        >>> tx = active_gradients(blocks.weights(groups), 2)
        >>> gradients = {"b": jnp.array([7.0]), "w": jnp.array([[0.1], [0.01], [5.0], [-0.5]])}
        >>> updates, state = tx.update(gradients, tx.init(params), params)
        >>> updates["w"][:, 0].tolist(), updates["b"].tolist(), int(state.active["w"])
        ([0.0, 0.0, 5.0, -0.5], [7.0], 2)
    """
    # In execution order, which says who goes first among equals.
    paths = tuple(dict.fromkeys(m.path for block in blocks.values() for m in block.members))

    def init(params: Params) -> ActiveState:
        weights = leaves_of(blocks, params)
        total = sum(jnp.size(weights[path]) for path in paths if path in weights)
        if not callable(count) and not 1 <= count <= total:
            raise errors.ArgumentError(
                f"active_gradients(count={count}) of {total} weights; write a number from 1 to "
                f"{total}."
            )
        none = jnp.zeros((), jnp.int32)
        return ActiveState(none, {path: none for path in paths if path in weights})

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "active_gradients needs the parameters: call tx.update(gradients, state, params)."
            )
        gradients, weights = leaves_of(blocks, updates), leaves_of(blocks, params)
        # T = |g w|, of all leaves together
        scores = {path: jnp.abs(gradients[path] * weights[path]) for path in state.active}
        flat = jnp.concatenate([score.reshape(-1) for score in scores.values()])
        number = jnp.floor(count(state.step)) if callable(count) else count
        # B = 1 for the Q largest T, by rank: dead weights have T = 0, and would all be as good as
        # the Q-th.
        chosen = best(flat, jnp.clip(number, 0, flat.size).astype(jnp.int32))
        active, begin = {}, 0
        for path, score in scores.items():
            mask = chosen[begin : begin + score.size].reshape(score.shape)
            begin += score.size
            # g <- B g
            gradients[path] = jnp.where(mask, gradients[path], 0)
            active[path] = mask.sum(dtype=jnp.int32)
        sparse = jax.tree.unflatten(jax.tree.structure(updates), list(gradients.values()))
        return sparse, ActiveState(state.step + 1, active)

    return optax.GradientTransformation(init, update)
