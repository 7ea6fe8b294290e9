"""Whatever is frozen says where and why: equation, primitive, reason, the user's line, a remedy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import errors
from jprune.cli import show
from tests.nets import Net, conv, draw

OPEN = "open=("


def from_input(v, x):
    return jnp.tanh(x + conv(x, v["a"])).mean((1, 2, 3))


def to_output(v, x):
    return jax.nn.relu(conv(x, v["a"]))


def unknown(v, x):
    return jax.lax.approx_max_k(conv(x, v["a"]), 3)[0].mean((1, 2, 3))


def reduced(v, x):
    return jax.nn.softplus(conv(x, v["a"])).sum(-1)


def numbered(v, x):
    return jnp.argmax(conv(x, v["a"]), -1)


def running(v, x):
    return jnp.cumsum(conv(x, v["a"]), -1)[..., :1]


def ordered(v, x):
    return jnp.sort(conv(x, v["a"]), -1)[..., :1]


def largest(v, x):
    return jax.lax.top_k(conv(x, v["a"]), 3)[0].mean((1, 2, 3))


def outside(v, x):
    return jnp.take(conv(x, v["a"]), np.array([4, 6]), axis=3, mode="clip").mean(-1)


def written(v, x):
    index = jnp.argsort(x.mean((0, 1, 2)))
    return conv(x, v["a"]).at[..., index].set(1.0).mean(-1)


def pooled(v, x):
    window = (1, 1, 1, 3)
    return jax.lax.reduce_window(conv(x, v["a"]), -jnp.inf, jax.lax.max, window, window, "VALID")


def constant(v, x):
    return jax.nn.softplus(conv(x, v["a"])) @ np.ones((6, 2), np.float32)


def shifted(v, x):
    return jax.nn.sigmoid(conv(x, v["a"])) @ (v["out"] - 1)


def computed_slice(v, x):
    start = jnp.argmax(x.mean((0, 1, 2)))
    return jax.lax.dynamic_slice_in_dim(conv(x, v["a"]), start, 2, axis=3).mean(-1)


def computed_index(v, x):
    index = jnp.argsort(x.mean((0, 1, 2)))
    return conv(x, v["a"])[..., index].mean(-1)


def broadcast(v, x):
    return (jnp.tanh(conv(x, v["a"])[..., :1]) * x).mean(-1)


def disagreeing(v, x):
    y = conv(x, v["a"])
    z = y.reshape(*y.shape[:3], 2, 3) * v["rows"][:, None]
    w = y.reshape(*y.shape[:3], 3, 2) * v["rows"]
    return (z.reshape(y.shape) + w.reshape(y.shape)) @ v["out"]


def meeting(v, x):
    y = jax.nn.softplus(conv(x, v["a"])).reshape(x.shape[0], -1, 6)
    return jnp.tanh(y @ y.swapaxes(1, 2)).mean((1, 2))


def stacked(v, x):
    step = lambda x, kernel: (jnp.tanh(conv(x, kernel)), None)
    return jax.lax.scan(step, x, v["stack"])[0].mean((1, 2, 3))


def in_batch_groups(v, x):
    # The first half of the kernels sees the first image, the other half the second.
    return jax.lax.conv_general_dilated(
        conv(x, v["a"]),
        v["wide"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        batch_group_count=2,
    ).mean((1, 2))


CASES = [
    # function, leaf, axis, primitive, words of the reason, words of the remedy
    (from_input, "a", 3, "add", "tied to the network input args/0", ""),
    (to_output, "a", 3, "custom_jvp_call", "tied to a network output", ""),
    (unknown, "a", 3, "approx_top_k", "no rule for the primitive 'approx_top_k'", "add a rule"),
    (reduced, "a", 3, "reduce_sum", "reduce_sum over the channels", OPEN),
    (numbered, "a", 3, "argmax", "argmax over the channels", ""),
    (running, "a", 3, "cumsum", "running sum over the channels", ""),
    (ordered, "a", 3, "sort", "sorted along the channels", ""),
    (largest, "a", 3, "top_k", "sorted along the channels", ""),
    (outside, "a", 3, "gather", "looked up out of bounds", "within one axis"),
    (written, "a", 3, "scatter", "only known when the net runs", "constant"),
    (in_batch_groups, "a", 3, "conv_general_dilated", "convolution with batch groups", ""),
    (in_batch_groups, "wide", 3, "conv_general_dilated", "convolution with batch groups", ""),
    (pooled, "a", 3, "reduce_window_max", "pooling over the channels", ""),
    (constant, "a", 3, "dot_general", "contracted with a constant", OPEN),
    (shifted, "a", 3, "dot_general", "kernel that is not zero where its leaves are", OPEN),
    (computed_slice, "a", 3, "dynamic_slice", "only known when the net runs", "constant"),
    (computed_index, "a", 3, "gather", "only known when the net runs", "constant"),
    (broadcast, "a", 3, "mul", "a single channel that is broadcast", ""),
    (disagreeing, "a", 3, "reshape", "do not agree", "same rows and columns"),
    (meeting, "a", 3, "dot_general", "not zero without its producers", OPEN),
    (stacked, "stack", 0, "scan", "stacked layers of a scan", ""),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_a_frozen_axis_explains_itself(case):
    fn, leaf, axis, primitive, reason, remedy = case
    shapes = {
        "a": (3, 3, 3, 3 if fn is from_input else 6),
        "rows": (2,),
        "out": (6, 4),
        "wide": (1, 1, 6, 8),
        "stack": (2, 1, 1, 3, 3),
    }
    variables, inputs = draw(Net(fn.__name__, fn, shapes, ((2, 5, 7, 3),), {}))
    groups = jprune.trace(fn, variables, *inputs)
    records = [record for record in groups.frozen if (record.leaf, record.axis) == (leaf, axis)]
    record = next(record for record in records if reason in record.reason)
    assert record.primitive == primitive
    assert record.equation.startswith(primitive + " ")
    assert "->" in record.equation
    assert remedy in record.remedy
    assert bool(remedy) == bool(record.remedy)
    lines, first = inspect.getsourcelines(fn)
    file, line = record.source.split(" ")[0].rsplit(":", 1)
    assert file.endswith("test_explanations.py")
    assert first <= int(line) < first + len(lines)


def test_inspect_prints_all_of_an_explanation(capsys):
    shapes = {"a": (3, 3, 3, 6)}
    variables, inputs = draw(Net("reduced", reduced, shapes, ((2, 5, 7, 3),), {}))
    frozen = jprune.trace(reduced, variables, *inputs).frozen
    cost = {"params": 1, "macs": 1, "bytes": 1}
    found = {"model": "net", "cost": cost, "groups": {}, "branches": [], "sites": []}
    show.inspection({**found, "frozen": [record._asdict() for record in frozen]})
    said = " ".join(capsys.readouterr().out.split())
    record = next(record for record in frozen if record.axis == 3)
    assert record.equation.startswith(f"{record.primitive} ")
    for part in (record.reason, record.equation, record.source, record.remedy):
        assert part
        assert part in said
    assert "a, axis 3 (6 long)" in said


def test_a_channel_that_reaches_two_reasons_names_the_first():
    def fn(v, x):
        return jax.nn.softmax(conv(x, v["a"]))

    variables, inputs = draw(Net("two", fn, {"a": (3, 3, 3, 6)}, ((2, 5, 7, 3),), {}))
    records = jprune.trace(fn, variables, *inputs).frozen
    assert [record.positions for record in records if record.axis == 3] == [6]


def test_slim_refuses_a_primitive_without_a_rule_on_what_has_shrunk():
    plain = lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"]
    strange = lambda v, x: plain(v, x) + jax.lax.approx_max_k(x @ v["a"], 1)[0]
    shapes = {"a": (3, 7), "b": (7, 2)}
    variables, inputs = draw(Net("plain", plain, shapes, ((5, 3),), {}))
    groups = jprune.trace(plain, variables, *inputs)
    masks = {"a": np.arange(7) < 4}
    small = jprune.slim_params(groups, masks, variables)
    with pytest.raises(jprune.errors.FrozenError, match="no rule for the primitive 'approx_top_k'"):
        jprune.slim(strange, groups, masks)(small, *inputs)


def test_a_rule_is_a_function_of_ten_lines():
    """What `jprune.graph.couple.rules` promises: the same axes, but the last one must stay."""
    from jprune.graph.couple.rules import RULES, Context, rule

    fn = lambda v, x: jax.lax.approx_max_k(jax.nn.relu(x @ v["a"]), 4)[0].swapaxes(0, 1) @ v["b"]
    variables, inputs = draw(Net("sorted", fn, {"a": (3, 4), "b": (5, 2)}, ((5, 3),), {}))
    with pytest.raises(jprune.errors.TraceError, match="no rule for the primitive 'approx_top_k'"):
        jprune.trace(fn, variables, *inputs, strict=True)

    @rule("approx_top_k")
    def approx_top_k(context: Context, operands):
        (axes,) = operands
        context.freeze(axes[-1], "the largest of all channels")
        return [axes, axes]

    try:
        record = next(
            f
            for f in jprune.trace(fn, variables, *inputs, strict=True).frozen
            if (f.leaf, f.axis) == ("a", 1)
        )
        assert record.reason == "the largest of all channels"
    finally:
        del RULES["approx_top_k"]


def test_statistics_that_are_taken_for_outputs_name_has_aux():
    def train_fn(v, x):
        hidden = x @ v["first"]
        mean = hidden.mean(0)
        return jnp.tanh(hidden - mean) @ v["second"], {"mean": mean}

    x = jnp.ones((2, 3))
    v = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 4))}
    assert jprune.trace(train_fn, v, x, has_aux=True).sizes == {"first": 5}
    frozen = jprune.trace(train_fn, v, x).frozen
    (record,) = (record for record in frozen if (record.leaf, record.axis) == ("first", 1))
    assert "has_aux=True" in record.remedy
    alone = jprune.trace(lambda v, x: train_fn(v, x)[0], v, x).frozen
    assert not any("has_aux" in record.remedy for record in alone)


def test_rows_whose_columns_are_frozen_are_on_record():
    """Whole groups of a group norm can go; that parts of them cannot is said, and what opens it."""

    def net(v, x):
        h = (x @ v["a"]).reshape(2, 3, 4)
        h = h - h.mean(-1, keepdims=True)
        return jnp.tanh(h).reshape(2, 12) @ v["out"]

    variables, inputs = draw(Net("", net, {"a": (5, 12), "out": (12, 7)}, ((2, 5),), {}))
    groups = jprune.trace(net, variables, *inputs)
    assert groups.sizes == {"a": 3}
    records = {(record.leaf, record.axis): record for record in groups.frozen if record.remedy}
    assert [*records] == [("a", 1), ("out", 0)]
    assert {record.positions for record in records.values()} == {12}
    assert {record.primitive for record in records.values()} == {"reduce_sum"}
    opened = jprune.trace(net, variables, *inputs, open=("a@2",))
    assert opened.sizes == {"a": 3, "a@2": 4}
    assert not [record for record in opened.frozen if record.remedy]


def test_a_training_function_without_its_key_is_told_how_it_is_traced():
    def train_fn(v, x, key):
        return x @ v["w"], {}

    v, x = {"w": jnp.ones((3, 5))}, jnp.ones((2, 3))
    with pytest.raises(errors.ArgumentError, match=r"fn\(v, x, key\): missing.*'key'.*has_aux"):
        jprune.trace(train_fn, v, x)
    with pytest.raises(errors.ArgumentError, match="with 4 arguments"):
        jprune.trace(train_fn, v, x, None, None)
    assert jprune.trace(train_fn, v, x, jax.random.key(0), has_aux=True).leaves.keys() == {"w"}
