"""What sums over a unit loses nothing: functions of kernels, their norms, subnets of leaves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from tests.law import check_law, random_masks
from tests.nets import Net, conv, draw

# Functions of a kernel, by whether they map 0 to 0.
KEEP = {
    "tanh": jnp.tanh,
    "half": lambda w: 0.5 * w,
    "cast": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "clip": lambda w: jnp.clip(w, -0.5, 0.4),
    "minimum": lambda w: jnp.minimum(jnp.maximum(w, -0.3), 0.6),
    "threshold": lambda w: jnp.where(jnp.abs(w) > 0.1, w, 0.0),
    "odd power": lambda w: jnp.sign(w) * jnp.abs(w) ** 1.5,
    "swish": lambda w: w * jax.nn.sigmoid(w),
    "step": lambda w: jnp.round(4 * w) / 4,
    "relu": jax.nn.relu,
}
CHANGE = {
    "softplus": jax.nn.softplus,
    "exp": jnp.exp,
    "plus one": lambda w: w + 1,
    "sign": lambda w: jnp.where(w >= 0, 1.0, -1.0),
    "clip above": lambda w: jnp.clip(w, 0.1, 1.0),
    "identity": lambda w: w + jnp.eye(*w.shape[-2:]),
    "cosine": jnp.cos,
    "maximum": lambda w: jnp.maximum(w, 0.2),
    "zeroth power": lambda w: w**0 - 0.3 * w,
    "padded": lambda w: jnp.pad(w[None], ((0, 1), (0, 0), (0, 0)), constant_values=0.7).sum(0),
    "joined": lambda w: jnp.stack([jnp.full_like(w, 0.3), w]).sum(0),
}
BEFORE = {"keeps": jnp.tanh, "changes": jax.nn.sigmoid}
SHAPES = {"first": (3, 8), "bias": (8,), "second": (8, 6), "out": (6, 4)}


def dense_net(function, before=jax.nn.sigmoid, shapes=SHAPES):
    """A net whose second kernel is a function of its leaf, and its variables and inputs."""

    def fn(v, x):
        hidden = before(x @ v["first"] + v["bias"])
        return jnp.tanh(hidden @ function(v["second"])) @ v["out"]

    return fn, *draw(Net("dense", fn, shapes, ((2, 3),), {}))


def law_holds(fn, variables, inputs, groups=None):
    """Checks the law for the groups that are called exact, and returns all groups."""
    groups = jprune.trace(fn, variables, *inputs) if groups is None else groups
    masks = {n: m for n, m in random_masks(groups).items() if groups.exact[n]}
    check_law(fn, variables, inputs, masks, groups, 1e-5)
    return groups


@pytest.mark.parametrize("name", KEEP)
def test_a_function_that_keeps_zero_costs_nothing(name):
    groups = law_holds(*dense_net(KEEP[name]))
    assert groups.sizes == {"first": 8, "second": 6}
    # The consumer's rows are enough, as with a plain kernel.
    assert [p.leaf for p in groups.places["first"] if "in" in p.roles] == ["second"]


@pytest.mark.parametrize("name", CHANGE)
def test_behind_a_function_that_changes_zero_the_producers_stand_in(name):
    groups = law_holds(*dense_net(CHANGE[name], jnp.tanh))
    assert groups.sizes["first"] == 8
    assert {p.leaf for p in groups.places["first"] if "in" in p.roles} == {*SHAPES} - {"out"}


@pytest.mark.parametrize("name", CHANGE)
def test_where_neither_side_is_zero_the_channels_stay_and_say_why(name):
    fn, variables, inputs = dense_net(CHANGE[name])
    groups = law_holds(fn, variables, inputs)
    assert "first" not in groups.sizes
    records = {(r.leaf, r.axis): r for r in groups.frozen}
    for place in (("first", 1), ("bias", 0), ("second", 0)):
        assert "not zero where its leaves are" in records[place].reason
        assert "open" in records[place].remedy
    opened = law_holds(fn, variables, inputs, jprune.trace(fn, variables, *inputs, open=("first",)))
    assert [group for group, exact in opened.exact.items() if not exact] == ["first"]


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from([*KEEP, *CHANGE]), min_size=1, max_size=3),
    before=st.sampled_from([*BEFORE]),
    transposed=st.booleans(),
)
def test_what_is_called_exact_obeys_the_law_behind_any_functions(names, before, transposed):
    def function(kernel):
        for name in names:
            kernel = {**KEEP, **CHANGE}[name](kernel)
        return kernel.T if transposed else kernel

    shapes = {**SHAPES, "second": (6, 8)} if transposed else SHAPES
    groups = law_holds(*dense_net(function, BEFORE[before], shapes))
    if not set(names) & set(CHANGE) or before == "keeps":
        assert groups.sizes["first"] == 8


@pytest.mark.parametrize(("zero_point", "units"), [(False, 8), (True, None)])
def test_a_zero_point_is_no_zero(zero_point, units):
    shapes = {**SHAPES, "z": (6,), "s": (6,)}

    def fn(v, x):
        kernel = v["q"].astype(jnp.float32) - (v["z"] if zero_point else 0)
        hidden = jax.nn.sigmoid(x @ v["first"] + v["bias"])
        return jnp.tanh(hidden @ (kernel * v["s"])) @ v["out"]

    variables, inputs = draw(Net("quantised", fn, shapes, ((2, 3),), {}))
    variables["q"] = (9 * variables.pop("second")).astype(jnp.int8)
    groups = law_holds(fn, variables, inputs)
    assert (groups.sizes.get("first"), groups.sizes["q"]) == (units, 6)


def test_zero_over_zero_is_no_zero():
    by_row = lambda w: w / jnp.abs(w).sum(1, keepdims=True)
    for function in (by_row, lambda w: w * jax.lax.rsqrt((w * w).sum(1, keepdims=True))):
        assert law_holds(*dense_net(function)).sizes == {"second": 6}
    safe = lambda w: w / jnp.where(jnp.abs(w).sum(1) == 0, 1.0, jnp.abs(w).sum(1))[:, None]
    assert law_holds(*dense_net(safe)).sizes == {"first": 8, "second": 6}


def fake_quantised(axes):
    """Rounds in steps of the largest absolute value, with a straight-through gradient."""

    def function(kernel):
        step = jnp.abs(kernel).max(axes, keepdims=True) / 7
        rounded = jnp.round(kernel / step) * step
        return kernel + jax.lax.stop_gradient(rounded - kernel)

    return function


def powers(kernel):
    """Spectral norm: two steps of the power method from a fixed vector."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    left = jnp.cos(jnp.arange(kernel.shape[-1]))
    for _ in range(2):
        right = matrix @ left
        left = right @ matrix
        left = left / jnp.linalg.norm(left)
    return kernel / jnp.linalg.norm(matrix @ left)


OF_INPUTS = (0, 1, 2)
NORMS = {
    # function of a kernel [3, 3, in, out], exact units of its inputs and of its outputs
    "weight norm": (lambda w: w / jnp.sqrt((w**2).sum(OF_INPUTS)), 8, 6),
    "sum of absolute values": (lambda w: w / jnp.abs(w).sum(OF_INPUTS), 8, 6),
    "one length": (lambda w: w / jnp.linalg.norm(w), 8, 6),
    "largest": (fake_quantised(OF_INPUTS), 8, 6),
    "one step": (fake_quantised((0, 1, 2, 3)), 8, 6),
    "per tap": (fake_quantised((2, 3)), 8, 6),
    "spectral": (powers, 8, 6),
    "mean of squares": (lambda w: w * jax.lax.rsqrt((w**2).mean(OF_INPUTS)), 0, 6),
    "standardised": (lambda w: (w - w.mean(OF_INPUTS)) / w.std(OF_INPUTS), 0, 6),
    "signed maximum": (lambda w: w / (1 + jnp.abs(w.max(OF_INPUTS))), 0, 6),
    "minimum": (lambda w: w / (1 + jnp.abs(w).min(OF_INPUTS)), 0, 6),
    "softmax": (lambda w: w * jax.nn.softmax(w.sum((0, 1)), 0), 0, 6),
    "product": (lambda w: w + w.prod(OF_INPUTS), 0, 6),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("order", ["HWIO", "OIHW"])
def test_sums_over_a_kernels_own_inputs_do_not_see_rows_that_are_zero(name, order):
    function, inputs_units, output_units = NORMS[name]

    def fn(v, x):
        second = v["second"].transpose(2, 3, 1, 0) if order == "OIHW" else v["second"]
        x = conv(jax.nn.sigmoid(conv(x, v["first"])), function(second))
        return jnp.tanh(x).mean((1, 2)) @ v["out"]

    second = (6, 8, 3, 3) if order == "OIHW" else (3, 3, 8, 6)
    shapes = {"first": (3, 3, 3, 8), "second": second, "out": (6, 4)}
    variables, inputs = draw(Net(name, fn, shapes, ((2, 5, 7, 3),), {}))
    groups = law_holds(fn, variables, inputs)
    assert groups.sizes.get("first", 0) == inputs_units
    assert groups.sizes.get("second", 0) == output_units


def film(hidden_function, code_is_fixed):
    """Scale and shift of 8 channels from a code, by two matrices and their biases."""
    code = np.cos(np.arange(5.0)).astype(np.float32)

    def fn(v, x):
        hidden = hidden_function((code if code_is_fixed else v["code"]) @ v["one"] + v["bias"])
        scale_shift = hidden @ v["two"] + v["offset"]
        x = jax.nn.sigmoid((x @ v["first"]) * (1 + scale_shift[:8]) + scale_shift[8:])
        return x @ v["out"]

    shapes = {"first": (3, 8), "one": (5, 7), "bias": (7,), "two": (7, 16), "offset": (16,)}
    shapes |= {"out": (8, 4)} if code_is_fixed else {"out": (8, 4), "code": (5,)}
    return fn, *draw(Net("film", fn, shapes, ((2, 3),), {}))


@pytest.mark.parametrize(
    ("function", "fixed"), [*itertools.product([jax.nn.relu, jax.nn.sigmoid], [True, False])]
)
def test_a_subnet_of_parameters_has_consumers_of_its_own(function, fixed):
    fn, variables, inputs = film(function, fixed)
    groups = law_holds(fn, variables, inputs)
    assert sorted(groups.sizes.values()) == [5, 7, 8]
    by_place = {(p.leaf, p.axis): p.roles for places in groups.places.values() for p in places}
    assert "in" in by_place["two", 0]
    assert by_place["two", 1] == ("kernel",)
    assert by_place["offset", 0] == ("scale",)
    assert by_place["first", 1] == ("kernel",)


def test_a_subnet_of_parameters_written_the_other_way_round():
    def fn(v, x):
        gates = jnp.sqrt((v["two"] @ jax.nn.sigmoid(v["one"] @ v["code"])) ** 2 + 0.01)
        return jnp.tanh((x @ v["first"]) / gates) @ v["out"]

    shapes = {"first": (3, 8), "code": (5,), "one": (7, 5), "two": (8, 7), "out": (8, 4)}
    groups = law_holds(fn, *draw(Net("film", fn, shapes, ((2, 3),), {})))
    assert sorted(groups.sizes.values()) == [5, 7, 8]


def test_a_product_and_a_sum_or_a_mean_are_a_contraction():
    shapes = {"first": (3, 8), "row": (8,)}
    product = lambda v, x: jnp.tanh(x @ v["first"]) * v["row"]
    for reduce in (
        jnp.sum,
        jnp.mean,
    ):  # the divisor is a number of the net, and stays in the small one
        fn = lambda v, x, reduce=reduce: reduce(product(v, x), -1)
        assert law_holds(fn, *draw(Net("row", fn, shapes, ((2, 3),), {}))).sizes == {"first": 8}


def test_a_fixed_matrix_takes_channels_whose_producers_are_zero():
    matrix = np.cos(np.arange(40.0)).reshape(8, 5).astype(np.float32)
    for before, units in ((jnp.tanh, {"first": 8}), (jax.nn.sigmoid, {})):
        fn = lambda v, x, before=before: before(x @ v["first"]) @ matrix
        assert (
            law_holds(fn, *draw(Net("fixed", fn, {"first": (3, 8)}, ((2, 3),), {}))).sizes == units
        )


def test_products_of_all_pairs_of_channels_leave_the_channels_units():
    def fn(v, x):
        hidden = jnp.tanh(x @ v["first"])
        pairs = jnp.einsum("nti,ntj->nij", hidden, hidden)
        return pairs.reshape(len(x), -1) @ v["out"]

    net = Net("bilinear", fn, {"first": (3, 6), "out": (36, 4)}, ((2, 5, 3),), {})
    variables, inputs = draw(net)
    groups = law_holds(fn, variables, inputs)
    assert groups.sizes == {"first": 6}
    masks = {"first": np.arange(6) % 3 > 0}
    assert jprune.slim_params(groups, masks, variables)["out"].shape == (4 * 4, 4)
    # [3, 4] and [16, 4] kernels on 2 x 5 and 2 rows, and the pairs of 4 channels over 5 tokens
    cost = jprune.cost_model(fn, variables, *inputs, groups=groups)(masks)
    assert cost.params == 3 * 4 + 16 * 4
