"""Groups that a reduction freezes can be opened: slim then normalises over what is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from tests.law import check_law, quick, random_masks, relative_error
from tests.nets import Net, conv, draw, head, head_shapes

MASK = np.array([True, False, True, True, False, True])


def standardised(x, axes, ddof=0):
    """With JAX's own mean and variance."""
    centred = x - x.mean(axes, keepdims=True)
    return centred * jax.lax.rsqrt(x.var(axes, keepdims=True, ddof=ddof) + 1e-3)


def fast_layer_norm(x):
    """As Flax does it: the mean of squares less the square of the mean."""
    mean, mean2 = x.mean(-1), (x * x).mean(-1)
    var = jnp.maximum(mean2 - mean**2, 0)
    return (x - mean[..., None]) * jax.lax.rsqrt(var[..., None] + 1e-3)


def by_product(x):
    """A mean as a product with one over the number of channels."""
    count = {6: 1 / 6, 4: 1 / 4}[x.shape[-1]]
    return x - x.sum(-1, keepdims=True) * count


NORMS = {
    "layer": lambda x: standardised(x, (3,)),
    "unbiased": lambda x: standardised(x, (3,), 1),
    "fast": fast_layer_norm,
    "rms": lambda x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-3),
    "all but batch": lambda x: standardised(x, (1, 2, 3)),
    "softmax": jax.nn.softmax,
    "by product": by_product,
}


def net_with(norm, name="net") -> Net:
    """A convolution, the norm, a nonlinearity, a convolution."""

    def fn(v, x):
        x = norm(conv(x, v["a"]) + v["bias"]) * v["scale"]
        return head(jnp.tanh(conv(jax.nn.sigmoid(x), v["b"])), v)

    shapes = {
        "a": (3, 3, 3, 6),
        "bias": (6,),
        "scale": (6,),
        "b": (3, 3, 6, 5),
        "head": head_shapes(5),
    }
    return Net(name, fn, shapes, ((2, 7, 8, 3),), {"b": 5})


@pytest.mark.parametrize("norm", NORMS)
def test_the_slim_net_is_the_users_own_function_on_smaller_arrays(norm):
    net = net_with(NORMS[norm])
    variables, inputs = draw(net)
    assert jprune.trace(net.fn, variables, *inputs).sizes == {"b": 5}
    groups = jprune.trace(net.fn, variables, *inputs, open=("a",))
    assert groups.sizes == {"a": 6, "b": 5}
    assert groups.exact == {"a": False, "b": True}
    masks = {"a": MASK}
    small = jprune.slim_params(groups, masks, variables)
    slim = quick(jprune.slim(net.fn, groups, masks), small, *inputs)
    assert relative_error(quick(net.fn, small, *inputs), slim) < 1e-6
    masked = jprune.apply_masks(variables, jprune.expand(groups, masks, roles=("in",)))
    assert relative_error(quick(net.fn, masked, *inputs), slim) > 1e-4  # they differ by nature


@pytest.mark.parametrize("order", [1, 2, jnp.inf])
def test_lengths_do_not_count_channels_so_they_need_no_opening(order):
    net = net_with(lambda x: x / jnp.linalg.norm(x, order, axis=-1, keepdims=True))
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    assert groups.sizes == {"a": 6, "b": 5}
    assert all(groups.exact.values())
    # With zeros for what the convolution and its bias say, a sum or a maximum does not change.
    assert {p.leaf for p in groups.places["a"] if "in" in p.roles} == {"a", "bias", "b"}
    check_law(net.fn, variables, inputs, {"a": MASK}, groups, 1e-5)


def test_a_leaf_on_which_the_group_stands_opens_it_too():
    net = net_with(NORMS["layer"])
    variables, inputs = draw(net)
    by_group = jprune.trace(net.fn, variables, *inputs, open=("a",))
    by_leaf = jprune.trace(net.fn, variables, *inputs, open=("scale",))
    assert by_group.sizes == by_leaf.sizes
    assert by_group.exact == by_leaf.exact


def test_every_remedy_on_record_can_be_followed():
    def fn(v, x):
        return jnp.tanh(standardised(x @ v["first"], (-1,)) @ v["second"]) @ v["out"]

    shapes = {"first": (3, 8), "second": (8, 6), "out": (6, 5)}
    variables, inputs = draw(Net("layer norm", fn, shapes, ((2, 3),), {}))
    records = jprune.trace(fn, variables, *inputs).frozen
    named = {record.leaf for record in records if record.remedy}
    assert named == {"first", "second"}
    # `second` is a leaf on which the frozen group stands, and the name of a group that is exact.
    groups = jprune.trace(fn, variables, *inputs, open=named)
    assert groups.sizes == {"first": 8, "second": 6}
    assert groups.exact == {"first": False, "second": True}


def test_what_is_not_opened_stays_though_the_solver_splits_it_more_finely():
    def fn(v, x):
        x = standardised(x @ v["first"], (-1,)) @ v["second"]
        x = standardised(x.reshape(2, 3, 4), (-1,)).reshape(2, 6, 2)
        return jnp.tanh(jnp.tanh(standardised(x, (-1,))).reshape(2, 12) @ v["third"]) @ v["out"]

    shapes = {"first": (3, 8), "second": (8, 12), "third": (12, 7), "out": (7, 5)}
    variables, inputs = draw(Net("splits", fn, shapes, ((2, 3),), {}))
    assert jprune.trace(fn, variables, *inputs).sizes == {"second": 3, "third": 7}
    opened = jprune.trace(fn, variables, *inputs, open=("first",))
    assert opened.sizes == {"first": 8, "second": 3, "third": 7}
    assert opened.exact == {"first": False, "second": True, "third": True}


def test_only_what_is_named_is_opened():
    def fn(v, x):
        x = jax.nn.sigmoid(standardised(conv(x, v["a"]), (3,)))
        x = jax.nn.sigmoid(standardised(conv(x, v["b"]), (3,)))
        return head(x, v)

    shapes = {"a": (3, 3, 3, 6), "b": (3, 3, 6, 5), "head": head_shapes(5)}
    net = Net("two", fn, shapes, ((2, 7, 8, 3),), {})
    variables, inputs = draw(net)
    groups = jprune.trace(fn, variables, *inputs, open=("b",))
    assert groups.exact == {"b": False}
    assert {(f.leaf, f.axis) for f in groups.frozen} >= {("a", 3), ("b", 2)}


def test_rows_of_a_group_norm_are_exact_and_its_columns_can_be_opened():
    def fn(v, x):
        x = conv(x, v["a"])
        parts = x.reshape(*x.shape[:3], 3, -1)
        x = standardised(parts, (1, 2, 4)).reshape(x.shape)
        return head(jax.nn.sigmoid(x), v)

    net = Net("groups", fn, {"a": (3, 3, 5, 12), "head": head_shapes(12)}, ((2, 7, 8, 5),), {})
    variables, inputs = draw(net)
    assert jprune.trace(fn, variables, *inputs).sizes == {"a": 3}
    groups = jprune.trace(fn, variables, *inputs, open=("a@2",))
    assert groups.sizes == {"a": 3, "a@2": 4}
    assert groups.exact == {"a": True, "a@2": False}
    masks = {"a@2": np.array([True, False, True, True])}
    small = jprune.slim_params(groups, masks, variables)
    slim = quick(jprune.slim(fn, groups, masks), small, *inputs)
    assert relative_error(quick(fn, small, *inputs), slim) < 1e-6


def test_a_stream_of_transformer_blocks_can_be_opened():
    from tests.patterns.attention import ATTENTION

    net = next(net for net in ATTENTION if net.name == "vit")
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs, open=("patches",))
    assert groups.sizes == {"patches": 7, **net.groups}
    assert [name for name, exact in groups.exact.items() if not exact] == ["patches"]
    masks = random_masks(groups)
    small = jprune.slim_params(groups, masks, variables)
    slim = quick(jprune.slim(net.fn, groups, masks), small, *inputs)
    # Its own function reads the heads off no array: give it heads and dimensions whole.
    del masks["qkv/kernel"], masks["qkv/kernel@2"]
    small = jprune.slim_params(groups, masks, variables)
    slim = quick(jprune.slim(net.fn, groups, masks), small, *inputs)
    assert relative_error(quick(net.fn, small, *inputs), slim) < 1e-5


def test_a_function_that_reduces_where_the_traced_one_does_not_is_refused():
    net = net_with(lambda x: x)
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = {"a": MASK}
    small = jprune.slim_params(groups, masks, variables)
    with pytest.raises(jprune.errors.FrozenError, match="reduce_sum over the channels"):
        jprune.slim(net_with(NORMS["layer"]).fn, groups, masks)(small, *inputs)


def test_names_that_open_nothing_are_refused():
    net = net_with(NORMS["layer"])
    variables, inputs = draw(net)
    with pytest.raises(jprune.errors.ArgumentError, match="neither a group nor a leaf"):
        jprune.trace(net.fn, variables, *inputs, open=("nothing",))
    with pytest.raises(jprune.errors.ArgumentError, match="which no reduction freezes"):
        jprune.trace(net.fn, variables, *inputs, open=("b",))


def test_only_what_is_named_is_opened_where_an_axis_is_split_twice():
    def net(v, x):
        x = fast_layer_norm(x @ v["a"]) @ v["b"]
        x = fast_layer_norm(x.reshape(2, 3, 4)).reshape(2, 6, 2)
        x = jnp.tanh(fast_layer_norm(x)).reshape(2, 12)
        return jnp.tanh(x @ v["c"]) @ v["out"]

    shapes = {"a": (5, 8), "b": (8, 12), "c": (12, 7), "out": (7, 9)}
    variables, inputs = draw(Net("net", net, shapes, ((2, 5),), {}))
    # Whole groups of four: parts of them are normalised together.
    assert jprune.trace(net, variables, *inputs).sizes == {"b": 3, "c": 7}
    opened = jprune.trace(net, variables, *inputs, open=("a",))
    assert opened.sizes == {"a": 8, "b": 3, "c": 7}
    assert opened.exact == {"a": False, "b": True, "c": True}
    check_law(net, variables, inputs, random_masks(opened) | {"a": np.ones(8, bool)}, opened, 1e-5)
