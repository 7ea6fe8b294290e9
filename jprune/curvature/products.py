"""The mean loss as a function of the parameters, and products with its Hessian.

References:
    Pearlmutter, Fast exact multiplication by the Hessian, 1994, Neural Computation 6.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Batch, PyTree, Variables, check_batch

Function = Callable[..., Any]


class Parameters(NamedTuple):
    """The leaves of a net's variables that are differentiated: the floating ones under `params`.

    Attributes:
        values: in the order of the leaves.
        places: which leaves of the variables they are.
        into: `into(values) -> variables` with other values.
        tree: `tree(values)`: like the variables, None where nothing is differentiated.
    """

    values: list[jax.Array]
    places: list[int]
    into: Callable[[Sequence[Any]], Variables]
    tree: Callable[[Sequence[Any]], PyTree]


def parameters_of(variables: Variables) -> Parameters:
    """The parameters of variables.

    Args:
        variables: {"params": ..., and other collections}: then only `params` has parameters; a
            tree of another kind has nothing but parameters.

    Example:
        >>> variables = {"params": {"w": jnp.ones(2)}, "stats": {"mean": jnp.zeros(1)}}
        >>> parameters = parameters_of(variables)
        >>> len(parameters.values), parameters.tree(["h"])
        (1, {'params': {'w': 'h'}, 'stats': {'mean': None}})
    """
    leaves_with_paths, structure = jax.tree_util.tree_flatten_with_path(variables)
    collections = isinstance(variables, Mapping) and "params" in variables
    leaves = [leaf for _, leaf in leaves_with_paths]
    places = [
        place
        for place, (path, leaf) in enumerate(leaves_with_paths)
        if (not collections or path[0].key == "params")
        and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    ]

    # `into` fills the values into the other leaves as they are, `tree` into Nones.
    def filled(base: Sequence[Any], values: Sequence[Any]) -> PyTree:
        replaced = dict(zip(places, values, strict=True))
        return jax.tree.unflatten(structure, [replaced.get(n, leaf) for n, leaf in enumerate(base)])

    return Parameters(
        [jnp.asarray(leaves[place]) for place in places],
        places,
        lambda values: filled(leaves, values),
        lambda values: filled([None] * len(leaves), values),
    )


def weights_of(batch: Batch) -> jax.Array:
    """[batch]: the weights of a batch's examples; 1 where there is no `weight`."""
    check_batch(batch)
    examples = jax.tree.leaves(batch["image"])[0].shape[0]
    return jnp.asarray(batch.get("weight", jnp.ones(examples)))


def shares_of(batch: Batch) -> jax.Array:
    """[batch]: the weights of a batch's examples in a mean; they sum to 1."""
    weights = weights_of(batch)
    return weights / weights.sum()


def mean_loss(fn: Function, loss: Function, variables: Variables, batch: Batch) -> jax.Array:
    """The mean loss of a batch, weighted by batch["weight"] where there is one.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`.
        variables: of the net.
        batch: examples.
    """
    # E = sum_n w_n l_n
    return shares_of(batch) @ losses_of(loss, fn(variables, batch["image"]), batch)


def losses_of(loss: Function, out: Any, batch: Batch) -> jax.Array:
    """[batch]: the loss of every example.

    Raises:
        ArgumentError: the loss is not one number an example; a mean hides the single losses.

    Example:
        >>> losses_of(lambda out, batch: out**2, jnp.array([1.0, 3.0]), {"image": jnp.ones((2, 4))})
        Array([1., 9.], dtype=float32)
    """
    losses, examples = loss(out, batch), len(weights_of(batch))
    if jnp.shape(losses) != (examples,):
        raise errors.ArgumentError(
            f"the loss of a batch of {examples} examples has shape {jnp.shape(losses)}; a loss is "
            f"one number for each example, ({examples},). Leave out its mean or sum over the "
            "batch, and take the mean over all other axes."
        )
    return losses


def hessian_product(
    fn: Function, loss: Function, variables: Variables, batch: Batch, direction: PyTree
) -> PyTree:
    """The Hessian of the mean loss times a vector: the tangent of the gradient.

    Costs about two to three gradients, and no more memory than they do.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`.
        variables: of the net.
        batch: examples.
        direction: a tree like the variables; leaves that are no parameters are ignored, and may be
            None.

    Returns:
        A tree like the variables, None where there are no parameters.

    Raises:
        StructureError: a direction of another structure.

    Example:
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: 0.5 * out[:, 0] ** 2
        >>> batch, variables = {"image": jnp.array([[2.0, 1.0]])}, {"w": jnp.ones((2, 1))}
        >>> direction = {"w": jnp.array([[1.0], [0.0]])}
        >>> hessian_product(fn, loss, variables, batch, direction)["w"][:, 0]
        Array([4., 2.], dtype=float32)
    """
    parameters = parameters_of(variables)
    try:
        leaves = jax.tree.structure(variables).flatten_up_to(direction)
    except ValueError as error:
        raise errors.StructureError(
            f"the direction is no tree like the variables: {error}"
        ) from None
    chosen = [leaves[place] for place in parameters.places]
    gradient = gradient_of(fn, loss, parameters, batch)
    # H v = d/dt grad E(w + t v) at t = 0  (Pearlmutter): forward over reverse mode.
    return parameters.tree(jax.jvp(gradient, (parameters.values,), (chosen,))[1])


def gradient_of(fn: Function, loss: Function, parameters: Parameters, batch: Batch) -> Function:
    """`values -> gradient of the mean loss`, both lists."""
    return jax.grad(lambda values: mean_loss(fn, loss, parameters.into(values), batch))
