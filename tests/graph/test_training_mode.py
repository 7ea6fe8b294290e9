"""Training mode: the twin of a traced net gives the same new statistics, masked and slim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from tests.law import QUICK, random_masks, relative_error, weighted_sum
from tests.nets import Net, conv, draw, head, head_shapes, norm

BLOCKS = ("a", "b", "c")


def batch_norm(x, p, stats):
    """With the batch's own statistics; new running ones beside the result."""
    mean = x.mean((0, 1, 2))
    var = jnp.maximum((x * x).mean((0, 1, 2)) - mean**2, 0)
    new = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    return norm(x, {**p, "mean": mean, "var": var}), new


def net(v, x):
    """Inference: a stem, a residual block, a depthwise convolution."""
    p, s = v["params"], v["stats"]
    whole = lambda name: {**p["norm"][name], **s[name]}
    x = jax.nn.sigmoid(norm(conv(x, p["a"]), whole("a")))
    x = x + jax.nn.relu(norm(conv(x, p["b"]), whole("b")))
    x = jax.nn.silu(norm(conv(x, p["c"], groups=5), whole("c")))
    return head(x, p)


def train(v, x, key):
    """The same with batch statistics and dropout."""
    p, s, new = v["params"], v["stats"], {}

    def layer(x, name, groups=1):
        x, new[name] = batch_norm(conv(x, p[name], groups=groups), p["norm"][name], s[name])
        return x

    x = jax.nn.sigmoid(layer(x, "a"))
    x = x + jax.nn.relu(layer(x, "b"))
    x = jax.nn.silu(layer(x, "c", 5))
    x = jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0)
    return head(x, p), new


NORM = {"scale": (5,), "shift": (5,)}
NET = Net(
    "training",
    net,
    {
        "params": {
            "a": (3, 3, 3, 5),
            "b": (3, 3, 5, 5),
            "c": (3, 3, 1, 5),
            "norm": {name: NORM for name in BLOCKS},
            "head": head_shapes(5),
        },
        "stats": {name: {"mean": (5,), "var": (5,)} for name in BLOCKS},
    },
    ((4, 6, 8, 3),),
    {"params/a": 5},
)


@pytest.mark.parametrize("key", [jax.random.key(1), jax.random.PRNGKey(1)], ids=["typed", "raw"])
def test_new_statistics_of_slim_are_those_of_the_masked_net(key):
    variables, (x,) = draw(NET)
    groups = jprune.trace(NET.fn, variables, x)
    assert groups.sizes == NET.groups
    masks = random_masks(groups)
    cut = lambda tree: jprune.slim_params(groups, masks, tree)
    masked = jprune.apply_masks(variables, jprune.expand(groups, masks, roles=("in",)))
    small_fn = jprune.slim(train, groups, masks)

    def step(fn, variables):
        (loss, (out, new)), gradient = jax.value_and_grad(
            lambda v: (lambda pair: (weighted_sum(pair[0]), pair))(fn(v, x, key)), has_aux=True
        )(variables)
        return loss, out, new, gradient

    both = jax.jit(lambda v, w: (step(train, v), step(small_fn, w)), compiler_options=QUICK)
    whole, small = both(masked, cut(variables))
    assert relative_error(whole[1], small[1]) < 1e-5
    assert jax.tree.map(jnp.shape, small[2]) == jax.tree.map(jnp.shape, cut(whole[2]))
    assert relative_error(cut(whole[2]), small[2]) < 1e-5
    assert relative_error(cut(whole[3]["params"]), small[3]["params"]) < 1e-4


def test_tracing_the_training_function_freezes_no_statistics():
    variables, (x,) = draw(NET)
    groups = jprune.trace(train, variables, x, jax.random.key(0), has_aux=True)
    assert groups.sizes == NET.groups
    roles = {place.leaf: place.roles for place in groups.places["params/a"]}
    assert roles["stats/a/mean"] == ("state",)


def hidden(v, x):
    """Averages with a debiased copy, as Haiku keeps them: inference reads `average` alone."""
    s = v["stats"]
    x = conv(x, v["params"]["a"])
    x = jax.nn.sigmoid((x - s["average"]) * v["params"]["scale"])
    return head(x, v["params"])


def train_hidden(v, x):
    """New averages from the hidden ones."""
    s, p = v["stats"], v["params"]
    x = conv(x, p["a"])
    mean = x.mean((0, 1, 2))
    new = 0.9 * s["hidden"] + 0.1 * mean
    x = jax.nn.sigmoid((x - mean) * p["scale"])
    return head(x, p), {"hidden": new, "average": new / (1 - 0.9**3)}


def test_statistics_that_only_training_reads_are_tied_through_the_twin():
    shapes = {
        "params": {"a": (3, 3, 3, 5), "scale": (5,), "head": head_shapes(5)},
        "stats": {"hidden": (5,), "average": (5,)},
    }
    variables, (x,) = draw(Net("hidden", hidden, shapes, ((4, 6, 8, 3),), {}))
    masks = {"params/a": np.array([True, False, True, True, False])}
    alone = jprune.trace(hidden, variables, x)
    assert jprune.slim_params(alone, masks, variables)["stats"]["hidden"].shape == (5,)
    groups = jprune.trace(hidden, variables, x, twin=train_hidden)
    assert groups.sizes == {"params/a": 5}
    roles = {place.leaf: place.roles for place in groups.places["params/a"]}
    assert roles["stats/hidden"] == ("state",)
    assert roles["stats/average"] == ("mean",)
    small = jprune.slim_params(groups, masks, variables)
    _, new = jprune.slim(train_hidden, groups, masks)(small, x)
    masked = jprune.apply_masks(variables, jprune.expand(groups, masks, roles=("in",)))
    expected = jprune.slim_params(groups, masks, train_hidden(masked, x)[1])
    assert relative_error(expected, new) < 1e-5
