"""What every place does to its unit, read off the jaxpr: names are never looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from tests.law import check_law, random_masks
from tests.nets import Net, conv, draw, head, head_shapes


def roles_of(net: Net, group: str) -> dict[str, set[str]]:
    """{leaf: roles} of a group; a leaf on which it stands twice joins its roles."""
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    found: dict[str, set[str]] = {}
    for place in groups.places[group]:
        found.setdefault(place.leaf, set()).update(place.roles)
    return found


def after_conv(function, *names):
    """A net: convolution, `function(x, leaves)` on five channels, nonlinearity, head."""
    shapes = {"a": (3, 3, 3, 5), **{name: (5,) for name in names}, "head": head_shapes(5)}
    fn = lambda v, x: head(jax.nn.sigmoid(function(conv(x, v["a"]), v)), v)
    return Net(function.__name__, fn, shapes, ((2, 6, 8, 3),), {"a": 5})


def flax_norm(x, v):
    """Subtract, times (root times scale), add."""
    return (x - v["m"]) * (jax.lax.rsqrt(v["s2"] + 1e-3) * v["g"]) + v["b"]


def keras_norm(x, v):
    """Folded: the scale and both statistics are in the shift too."""
    inverse = jax.lax.rsqrt(v["s2"] + 1e-3) * v["g"]
    return x * inverse + (v["b"] - v["m"] * inverse)


def haiku_norm(x, v):
    """A root that divides."""
    return (x - v["m"]) * v["g"] / jnp.sqrt(v["s2"] + 1e-3) + v["b"]


def negated_norm(x, v):
    """Signs turned around, and a power for the root."""
    return (x + -v["m"]) * v["g"] * (v["s2"] + 1e-3) ** -0.5 - (-v["b"])


def unscaled_norm(x, v):
    """Statistics alone."""
    return (x - v["m"]) * jax.lax.rsqrt(v["s2"] + 1e-3)


def prelu(x, v):
    """A slope for what is negative, behind a bias."""
    x = x + v["b"]
    return jnp.where(x >= 0, x, v["g"] * x)


def layer_scale(x, v):
    """A gain on a branch."""
    return x + v["g"] * jnp.tanh(x)


STATISTICS = {"m": {"mean"}, "s2": {"var"}}
AFFINE = {"g": {"scale"}, "b": {"shift"}}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (flax_norm, {**STATISTICS, **AFFINE}),
        (keras_norm, {**STATISTICS, **AFFINE}),
        (haiku_norm, {**STATISTICS, **AFFINE}),
        (negated_norm, {**STATISTICS, **AFFINE}),
        (unscaled_norm, STATISTICS),
        (prelu, AFFINE),
        (layer_scale, {"g": {"scale"}}),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_roles_behind_a_convolution(function, expected):
    net = after_conv(function, *expected)
    assert roles_of(net, "a") == {"a": {"kernel"}, "head/kernel": {"in"}, **expected}


def test_a_folded_norm_is_removed_by_masks_at_all_roles():
    net = after_conv(keras_norm, "m", "s2", "g", "b")
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = random_masks(groups)
    everywhere = jprune.apply_masks(variables, jprune.expand(groups, masks))
    slim = jprune.slim(net.fn, groups, masks)(jprune.slim_params(groups, masks, variables), *inputs)
    np.testing.assert_allclose(net.fn(everywhere, *inputs), slim, rtol=1e-5)


def test_a_depthwise_convolution_is_no_consumer():
    def fn(v, x):
        return head(jax.nn.sigmoid(conv(conv(x, v["a"]), v["deep"], groups=5) + v["b"]), v)

    shapes = {"a": (3, 3, 3, 5), "deep": (3, 3, 1, 5), "b": (5,), "head": head_shapes(5)}
    assert roles_of(Net("depthwise", fn, shapes, ((2, 6, 8, 3),), {}), "a") == {
        "a": {"kernel"},
        "deep": {"kernel"},
        "b": {"shift"},
        "head/kernel": {"in"},
    }


def test_a_grouped_convolution_consumes_its_columns_and_produces_its_rows():
    def fn(v, x):
        return head(jax.nn.sigmoid(conv(conv(x, v["a"]), v["g"], groups=2)), v)

    shapes = {"a": (3, 3, 3, 6), "g": (3, 3, 3, 8), "head": head_shapes(8)}
    net = Net("grouped", fn, shapes, ((2, 6, 8, 3),), {})
    rows = {"a": {"kernel"}, "g": {"kernel"}, "head/kernel": {"in"}}
    assert roles_of(net, "a") == rows
    assert roles_of(net, "a@2") == {"a": {"kernel"}, "g": {"in"}}
    assert roles_of(net, "g") == {"g": {"kernel"}, "head/kernel": {"in"}}


def test_a_kernel_that_is_reshaped_on_its_way_keeps_its_sides():
    def fn(v, x):
        first = v["a"].reshape(8, 2, 5).transpose(1, 0, 2)
        h = jax.nn.sigmoid(jnp.einsum("bc,hcd->bhd", x, first))
        return jnp.einsum("bhd,hdo->bo", h, v["b"].reshape(2, 5, 7))

    net = Net("reshaped", fn, {"a": (8, 10), "b": (10, 7)}, ((3, 8),), {})
    assert roles_of(net, "a") == {"a": {"kernel"}, "b": {"in"}}
    assert roles_of(net, "a@2") == {"a": {"kernel"}, "b": {"in"}}


def test_tied_weights_are_producer_and_consumer():
    def fn(v, x):
        return jax.nn.sigmoid(x @ v["w"] + v["b"]) @ v["w"].T

    assert roles_of(Net("tied", fn, {"w": (8, 5), "b": (5,)}, ((3, 8),), {}), "w") == {
        "w": {"kernel", "in"},
        "b": {"shift"},
    }


def test_a_table_that_is_looked_up_and_makes_logits_does_both():
    def fn(v, x):
        return (v["table"][x.astype(jnp.int32)] + v["b"]) @ v["table"].T

    net = Net("table", fn, {"table": (9, 5), "b": (5,)}, ((3, 6),), {})
    assert roles_of(net, "table") == {"table": {"kernel", "in"}, "b": {"shift"}}


def test_where_two_activations_meet_the_producers_stand_in():
    """The query's batch norm too: its mean must be cleared, else (0 - mean) is left."""

    def fn(v, x):
        q = (x @ v["q"] - v["m"]) * jax.lax.rsqrt(v["s2"] + 1e-3) * v["g"]
        k = x @ v["k"] + v["b"]
        y = jax.nn.softmax(jnp.tanh(q) @ k.swapaxes(1, 2)) @ (x @ v["v"])
        return jax.nn.sigmoid(y) @ v["out"]

    shapes = {
        **{name: (8, 5) for name in "qk"},
        **{name: (5,) for name in ("m", "s2", "g", "b")},
        "v": (8, 7),
        "out": (7, 4),
    }
    shapes["var"] = shapes.pop("s2")
    net = Net("meeting", lambda v, x: fn({**v, "s2": v["var"]}, x), shapes, ((3, 6, 8),), {})
    assert roles_of(net, "q") == {
        "q": {"kernel", "in"},
        "k": {"kernel", "in"},
        "b": {"shift", "in"},
        "m": {"mean", "in"},
        "var": {"var"},
        "g": {"scale"},
    }
    assert roles_of(net, "v") == {"v": {"kernel"}, "out": {"in"}}
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    check_law(net.fn, variables, inputs, random_masks(groups), groups, 1e-5)


def test_inference_statistics_are_state_where_only_aux_reads_them():
    def fn(v, x):
        y = conv(x, v["a"])
        mean = y.mean((0, 1, 2))
        return head(jax.nn.sigmoid(y - mean), v), 0.9 * v["m"] + 0.1 * mean

    shapes = {"a": (3, 3, 3, 5), "m": (5,), "head": head_shapes(5)}
    variables, inputs = draw(Net("state", fn, shapes, ((2, 6, 8, 3),), {}))
    groups = jprune.trace(fn, variables, *inputs, has_aux=True)
    roles = {place.leaf: place.roles for place in groups.places["a"]}
    assert roles == {"a": ("kernel",), "m": ("state",), "head/kernel": ("in",)}
