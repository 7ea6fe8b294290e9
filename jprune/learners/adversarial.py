"""Adversarial pruning: a net with soft masks against a judge of its outputs; no labels.

    L_D = BCE(D(f_b), 1) + BCE(D(f_g), 0) + R(D)
    L_G = mu mean (f_b - f_g)^2 + adversarial BCE(D(f_g), 1)

f_b are the logits of the dense net (in inference mode), f_g those of the masked one, D the
discriminator. Its weights, the net's weights and the masks have an optimizer each; that of the
masks makes the zeros (`jprune.sparsify.fista`).

References:
    Lin, Ji, Yan, Zhang, Cao, Ye, Huang, Doermann, Towards optimal structured CNN pruning via
    generative adversarial learning, 2019, arXiv 1903.09291 [30].
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Batch, Params, PyTree, Task, Variables
from jprune.graph.shrink.concrete import copied

WIDTHS = (128, 256, 128)
"""Of the discriminator's hidden layers."""

REGULARISERS: dict[str, Callable[[PyTree, jax.Array, jax.Array], jax.Array]] = {
    # -E[log D(f_g)]: being sure of itself costs the judge, so that it never becomes trivially good
    "adversarial": lambda judge, fake, weight: weight @ jax.nn.softplus(-fake),
    # 1e-3 is ours: the paper gives no weight
    "l1": lambda judge, fake, weight: 1e-3 * _total(judge, jnp.abs),
    "l2": lambda judge, fake, weight: 1e-3 * _total(judge, jnp.square),
    "none": lambda judge, fake, weight: jnp.zeros(()),
}
"""{name: R(weights of D, D(f_g) [batch], weights of the examples)}, to be minimised."""


def _total(tree: PyTree, of: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return sum((of(leaf).sum() for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


class Terms(NamedTuple):
    """What the losses are made of.

    Attributes:
        mu: weight of the mean squared difference of the logits, over batch and classes as in the
            authors' code (the paper has the sum over classes, halved).
        adversarial: weight of the discriminator's verdict; 0: it does not act on the net.
        regulariser: of the discriminator, a name of `REGULARISERS`.
    """

    mu: float = 1.0
    adversarial: float = 1.0
    regulariser: str = "adversarial"


class AdversarialState(NamedTuple):
    """What adversarial training carries.

    Attributes:
        step: how many were taken.
        params: of the net.
        rest: what is not trained: statistics.
        masks: {group or residual branch: soft masks}.
        judge: weights of the discriminator.
        opt_states: of weights, masks and discriminator.
        good: False once a step was not finite: nothing moves from then on.
    """

    step: jax.Array
    params: Params
    rest: PyTree
    masks: dict[str, jax.Array]
    judge: PyTree
    opt_states: tuple[PyTree, PyTree, PyTree]
    good: jax.Array


def init_judge(key: jax.Array, classes: int, std: float | None = None) -> PyTree:
    """Weights of the discriminator, K - 128 - 256 - 128 - 1.

    Args:
        key: for the draw.
        classes: number of logits K.
        std: of the normal distribution of the weights; None is He's sqrt(2 / fan in). Biases are 0.

    Example:
        >>> [layer["kernel"].shape for layer in init_judge(jax.random.key(0), 10)]
        [(10, 128), (128, 256), (256, 128), (128, 1)]
    """
    widths = (classes, *WIDTHS, 1)
    draws = zip(jax.random.split(key, len(widths) - 1), widths, widths[1:])
    return [
        {
            "kernel": ((2 / inputs) ** 0.5 if std is None else std)
            * jax.random.normal(of_layer, (inputs, outputs)),
            "bias": jnp.zeros(outputs),
        }
        for of_layer, inputs, outputs in draws
    ]


def judged(judge: PyTree, logits: jax.Array) -> jax.Array:
    """The discriminator's logit [batch] that these are outputs [batch, classes] of the dense net.

    ReLU stands between its layers, which the released code leaves out: without, it is linear.
    """
    # float32 whatever the net computes in: a verdict near 0 decides the gradient.
    x = logits.astype(jnp.float32)
    for layer in judge[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return (x @ judge[-1]["kernel"] + judge[-1]["bias"])[:, 0]


def told_apart(real: jax.Array, fake: jax.Array, weight: jax.Array) -> jax.Array:
    """Fraction of examples whose dense output gets the higher verdict; 0.5 is chance.

    Unlike the fraction of right signs it does not depend on where the regulariser puts the border.

    Example:
        >>> float(told_apart(jnp.array([1.0, 2.0]), jnp.array([0.0, 2.0]), jnp.full(2, 0.5)))
        0.75
    """
    return weight @ ((real > fake) + 0.5 * (real == fake))


def outputs_of(task: Task, variables: Variables) -> int:
    """The number of outputs for one example, which are the discriminator's inputs.

    Raises:
        ArgumentError: it does not return one array [batch, ...].
    """
    out = jax.eval_shape(task.fn, variables, task.example)
    if not hasattr(out, "shape") or out.shape[:1] != task.example.shape[:1]:
        raise errors.ArgumentError(
            f"gal compares the outputs of two nets, and {task.name} returns {out}. Write a task "
            "whose fn returns one array [batch, ...]."
        )
    return math.prod(out.shape[1:])


def _flat(out: jax.Array) -> jax.Array:
    return out.reshape(len(out), -1)


Optimizers = tuple[optax.GradientTransformationExtraArgs, ...]


def start(
    variables: tuple[Params, PyTree], masks: dict[str, jax.Array], judge: PyTree, of: Optimizers
) -> AdversarialState:
    """The state before the first step; all arrays are copies, as a step gives them away."""
    trained = (variables[0], masks, judge)
    first, second, third = (tx.init(tree) for tx, tree in zip(of, trained))
    state = AdversarialState(
        jnp.zeros((), jnp.int32),
        *variables,
        masks,
        judge,
        (first, second, third),
        jnp.ones((), bool),
    )
    return copied(state)


def _regulariser(name: str) -> Callable[[PyTree, jax.Array, jax.Array], jax.Array]:
    if name not in REGULARISERS:
        raise errors.ArgumentError(
            f"the regulariser {name!r} of the discriminator; write one of "
            f"{', '.join(REGULARISERS)}."
        )
    return REGULARISERS[name]


def _judge_loss(
    penalty: Callable[..., jax.Array],
    judge: PyTree,
    pair: tuple[jax.Array, jax.Array],
    weight: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """L_D and how well the discriminator tells a pair (f_b, f_g) apart."""
    real, fake = (judged(judge, logits) for logits in pair)
    # L_D = BCE(D(f_b), 1) + BCE(D(f_g), 0) + R(D); BCE of a
    # logit z: softplus(-z) for 1, softplus(z) for 0
    verdicts = weight @ (jax.nn.softplus(-real) + jax.nn.softplus(fake))
    return verdicts + penalty(judge, fake, weight), told_apart(real, fake, weight)


def _net_loss(
    terms: Terms,
    fake: jax.Array,
    judge: PyTree,
    real: jax.Array,
    unit: jax.Array,
    weight: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """L_G, and its first term without mu; `unit` divides the discriminator's inputs."""
    # L_G = mu mean (f_b - f_g)^2 + adversarial BCE(D(f_g), 1)
    apart = weight @ jnp.square(fake - real).mean(axis=-1)
    fooled = weight @ jax.nn.softplus(-judged(judge, fake / unit))
    return terms.mu * apart + terms.adversarial * fooled, apart


def _guarded(after: AdversarialState, before: AdversarialState, loss: jax.Array):
    """The state after a step; the one before it from the first step on that is not finite."""
    sizes = optax.tree.norm((after.params, after.masks, after.judge))
    good = before.good & jnp.isfinite(loss + sizes)
    result = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
    return result._replace(good=good)


def step_of(
    task: Task,
    teacher: Variables,
    masked: Callable[[dict[str, jax.Array], Variables], Variables],
    optimizers: Optimizers,
    terms: Terms,
    moves: tuple[int, ...] | None = None,
) -> Callable[..., tuple[AdversarialState, dict[str, jax.Array]]]:
    """`step(state, batch, key) -> state, metrics`, jitted: the discriminator first.

    Labels are not used. The discriminator gets logits divided by the root mean square of the dense
    net's, batch by batch, which differs by an order of magnitude from net to net. Weights and
    masks share one backward pass, so the masks' gradient is taken at m_k, as in the authors' code.
    A step that is not finite leaves the state as it is, and so do all later ones; their `loss` is
    NaN.

    Args:
        task: of the net.
        teacher: variables of the dense net.
        masked: `masked(masks, variables)`, the net under its masks.
        optimizers: of weights, masks and discriminator; that of the masks gets every gradient and
            is a whole step.
        terms: of the losses.
        moves: after which steps, counted from 1, the masks take theirs; None: after every one.

    Raises:
        ArgumentError: an unknown regulariser.
    """
    judge_loss = functools.partial(_judge_loss, _regulariser(terms.regulariser))
    net_loss = functools.partial(_net_loss, terms)
    of_weights, of_masks, of_judge = optimizers

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: AdversarialState, batch: Batch, key: jax.Array):
        weight, x = batch["weight"] / batch["weight"].sum(), batch["image"]
        of_step = jax.random.fold_in(key, state.step)
        real = _flat(task.fn(teacher, x))
        unit = jnp.sqrt(weight @ jnp.square(real).mean(axis=-1)) + 1e-6

        def forward(params: Params, masks: dict[str, jax.Array]):
            out, new = task.train_fn(masked(masks, task.merge(params, state.rest)), x, of_step)
            return _flat(out), new

        fake, backward, new = jax.vjp(forward, state.params, state.masks, has_aux=True)
        # A step of the discriminator on both nets' outputs, then one of the net against it.
        losses = jax.value_and_grad(judge_loss, has_aux=True)
        (judge_value, accuracy), slope = losses(state.judge, (real / unit, fake / unit), weight)
        changes, judge_state = of_judge.update(slope, state.opt_states[2], state.judge)
        judge = optax.apply_updates(state.judge, changes)
        losses = jax.value_and_grad(net_loss, has_aux=True)
        (net_value, apart), slope = losses(fake, judge, real, unit, weight)
        of_params, slope_of_masks = backward(slope)
        changes, params_state = of_weights.update(of_params, state.opt_states[0], state.params)
        params = optax.apply_updates(state.params, changes)

        def move():
            changes, after = of_masks.update(slope_of_masks, state.opt_states[1], state.masks)
            return optax.apply_updates(state.masks, changes), after

        due = moves is None or (jnp.array(moves, jnp.int32) == state.step + 1).any()
        masks, masks_state = jax.lax.cond(due, move, lambda: (state.masks, state.opt_states[1]))
        params, rest = task.split(task.update(task.merge(params, state.rest), new))
        after = AdversarialState(
            state.step + 1, params, rest, masks, judge,
            (params_state, masks_state, judge_state), state.good,
        )  # fmt: skip
        result = _guarded(after, state, net_value + judge_value)
        entries = sum(mask.size for mask in masks.values())
        metrics = {
            "loss": jnp.where(result.good, net_value, jnp.nan),
            "difference": apart,
            "discriminator_loss": judge_value,
            "discriminator_accuracy": accuracy,
            "masks_alive": _total(result.masks, lambda mask: mask != 0) / entries,
        }
        return result, metrics

    return step
