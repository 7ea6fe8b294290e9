"""Kronecker factors against explicit Fisher blocks, and checks.md [28] P1 to P4, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import criteria, curvature, errors
from jprune.criteria.kronecker import (
    FORMS,
    c_obd_rows,
    c_obs_rows,
    kron_obd_rows,
    kron_obs_rows,
    unit_scores,
)
from jprune.curvature import Factors, damage, kfac, layers_of, rotated
from jprune.curvature.blocks import filters_of, with_filters
from jprune.reconstruct.kronecker import compensate, compensated_rows
from jprune.units import leaves_by_path
from tests.nets import FIRST_CUT, conv, draw

pytestmark = pytest.mark.usefixtures("float64")
KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def spd(size, seed=0):
    root = np.random.default_rng([seed, size]).normal(size=(size, size + 2))
    return root @ root.T


def cross_entropy(out, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(out), batch["label"][:, None], axis=1)[:, 0]


def mlp(v, x):
    return jnp.tanh(x @ v["a"]) @ v["b"]


def small(v, x):
    """conv, relu, strided conv, global mean, dense: every axis of another size."""
    x = jax.nn.relu(conv(x, v["a"]))
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, v["b"], (2, 1), "SAME", dimension_numbers=dims)
    return jnp.tanh(x).mean(axis=(1, 2)) @ v["c"]


SMALL = {"a": (3, 3, 2, 5), "b": (2, 3, 5, 4), "c": (4, 3)}


def factors(fn, variables, batches, **options):
    image = batches[0]["image"]
    groups = jprune.trace(fn, variables, image)
    layers = layers_of(fn, groups, variables, image)
    options = {"labels": "data", **options}
    return jprune.run_criterion(
        kfac(fn, cross_entropy, groups, layers, **options), variables, batches
    )


def every_label(image, logits):
    """The batch once for every label, weighted by the model's probability of it."""
    chances = jax.nn.softmax(logits)
    return [
        {"image": image, "label": jnp.full(len(image), c), "weight": chances[:, c]}
        for c in range(logits.shape[1])
    ]


def test_one_example_of_a_dense_layer_has_its_exact_fisher_block():
    variables, x = {"a": normal(3, 4), "b": normal(4, 2)}, normal(1, 3)
    found = factors(mlp, variables, every_label(x, mlp(variables, x)))
    chances = jax.nn.softmax(mlp(variables, x)[0])
    for name in ("a", "b"):

        def loss(kernel, label, name=name):
            out = mlp({**variables, name: kernel}, x)
            return cross_entropy(out, {"label": jnp.array([label])})[0]

        gradients = [jax.grad(loss)(variables[name], c).T.reshape(-1) for c in range(2)]
        fisher = sum(p * np.outer(g, g) for p, g in zip(chances, gradients))
        a, s = found[name]
        np.testing.assert_allclose(np.kron(s, a), fisher, rtol=1e-10, atol=1e-12)


def by_hand(variables, x, label, name):
    """A and S of a convolution, position by position."""
    strides = {"a": (1, 1), "b": (2, 1)}[name]
    kernel = np.asarray(variables[name])
    hidden = x if name == "a" else jax.nn.relu(conv(x, variables["a"]))

    def rest(out):
        if name == "a":
            tail = lambda v, hidden: small_from(v, hidden)
            return cross_entropy(tail(variables, out), {"label": label}).sum()
        logits = jnp.tanh(out).mean(axis=(1, 2)) @ variables["c"]
        return cross_entropy(logits, {"label": label}).sum()

    dims = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(hidden, kernel, strides, "SAME", dimension_numbers=dims)
    g = np.asarray(jax.grad(rest)(out))
    height, width = kernel.shape[:2]
    pads = []
    for size, window, stride, made in zip(
        hidden.shape[1:3], (height, width), strides, out.shape[1:3]
    ):
        total = max((made - 1) * stride + window - size, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(np.asarray(hidden), [(0, 0), *pads, (0, 0)])
    a, s = 0.0, 0.0
    for n in range(len(x)):
        for row in range(out.shape[1]):
            for column in range(out.shape[2]):
                top, left = row * strides[0], column * strides[1]
                window = padded[n, top : top + height, left : left + width]
                patch = window.transpose(2, 0, 1).reshape(-1)
                a += np.outer(patch, patch) / (len(x) * out.shape[1] * out.shape[2])
                s += np.outer(g[n, row, column], g[n, row, column]) / len(x)
    return a, s


def small_from(variables, out):
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.nn.relu(out)
    x = jax.lax.conv_general_dilated(x, variables["b"], (2, 1), "SAME", dimension_numbers=dims)
    return jnp.tanh(x).mean(axis=(1, 2)) @ variables["c"]


@pytest.fixture
def drawn():
    return {name: normal(*shape) for name, shape in SMALL.items()}


@pytest.mark.parametrize("name", ["a", "b"])
def test_factors_of_convolutions_are_those_of_a_loop_over_positions(drawn, name):
    x, label = normal(3, 5, 6, 2), jnp.array([0, 2, 1])
    a, s = factors(small, drawn, [{"image": x, "label": label}])[name]
    expected_a, expected_s = by_hand(drawn, x, label, name)
    np.testing.assert_allclose(a, expected_a, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(s, expected_s, rtol=1e-10, atol=1e-14)


def test_batches_and_weights_are_those_of_one_large_batch(drawn):
    x, label = normal(4, 5, 6, 2), jnp.array([0, 2, 1, 1])
    weights = jnp.array([1.0, 0.5, 2.0, 0.0])
    whole = factors(small, drawn, [{"image": x, "label": label, "weight": weights}])
    parts = [slice(0, 1), slice(1, 4)]
    found = factors(
        small, drawn, [{"image": x[p], "label": label[p], "weight": weights[p]} for p in parts]
    )
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-10), whole, found)


def test_channels_are_the_mean_of_the_places_of_the_window(drawn):
    batch = {"image": normal(3, 5, 6, 2), "label": jnp.array([0, 2, 1])}
    whole, channels = (factors(small, drawn, [batch], inputs=i) for i in ("patches", "channels"))
    for name, (height, width, inputs, _) in (("a", SMALL["a"]), ("b", SMALL["b"])):
        window = height * width
        blocks = np.asarray(whole[name].inputs).reshape(inputs, window, inputs, window)
        expected = np.einsum("iwjw->ij", blocks) / window
        np.testing.assert_allclose(channels[name].inputs, expected, rtol=1e-10)
    np.testing.assert_allclose(channels["c"].inputs, whole["c"].inputs, rtol=1e-12)


def test_a_bias_is_an_input_that_is_always_one(drawn):
    batch = {"image": normal(3, 5, 6, 2), "label": jnp.array([0, 2, 1])}
    plain, wide = (factors(small, drawn, [batch], bias=bias)["a"].inputs for bias in (False, True))
    np.testing.assert_allclose(wide[:-1, :-1], plain, rtol=1e-12)
    assert wide[-1, -1] == 1
    mean = np.asarray(wide[-1, :-1]).reshape(2, 9)[:, 4]  # the middle of the window sees it all
    np.testing.assert_allclose(mean, batch["image"].mean(axis=(0, 1, 2)), rtol=1e-10)


def test_labels_are_drawn_from_the_model_anew_in_every_batch():
    variables, x = {"a": normal(3, 4), "b": normal(4, 2)}, normal(500, 3)
    batch = {"image": x, "label": jnp.zeros(500, int)}
    exact = factors(mlp, variables, every_label(x, mlp(variables, x)))
    draw = lambda key: factors(mlp, variables, [batch] * 8, labels="model", key=key)
    once, again, other = draw(KEY), draw(KEY), draw(jax.random.key(1))
    assert (once["b"].outputs == again["b"].outputs).all()
    assert (once["b"].outputs != other["b"].outputs).any()
    for name in ("a", "b"):
        np.testing.assert_allclose(once[name].outputs, exact[name].outputs, rtol=0.1, atol=0.01)


def test_a_kernel_that_is_used_twice_has_the_sum_of_its_gradients():
    fn = lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ v["a"]) @ v["b"]
    variables, x = {"a": normal(4, 4), "b": normal(4, 2)}, normal(5, 4)
    apart = lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ v["again"]) @ v["b"]
    batch = {"image": x, "label": jnp.array([0, 1, 1, 0, 1])}
    found = factors(fn, variables, [batch])["a"]
    both = factors(apart, {**variables, "again": variables["a"]}, [batch])
    np.testing.assert_allclose(found.outputs, both["a"].outputs + both["again"].outputs)
    np.testing.assert_allclose(2 * found.inputs, both["a"].inputs + both["again"].inputs)


@pytest.mark.parametrize("net", FIRST_CUT, ids=lambda net: net.name)
def test_layers_are_plain_ones(net):
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    layers = layers_of(net.fn, groups, variables, *inputs)
    assert layers.keys() == {p for p, each in groups.layers.items() if each.plain and each.sites}
    for path, layer in layers.items():
        matrix = groups.layers[path].matrix(leaves_by_path(groups, variables)[path])
        assert (layer.inputs, layer.window, layer.outputs) == matrix.shape
        assert layer.written == groups.layers[path].positions


def small_first(v, x):
    """`small` with channels first, kernels [out, in, w, h] and [out, in]."""
    x = jnp.moveaxis(x, -1, 1)
    dims = jax.lax.ConvDimensionNumbers((0, 1, 2, 3), (0, 1, 3, 2), (0, 1, 2, 3))
    x = jax.lax.conv_general_dilated(x, v["a"], (1, 1), "SAME", dimension_numbers=dims)
    x = jax.lax.conv_general_dilated(jax.nn.relu(x), v["b"], (2, 1), "SAME", dimension_numbers=dims)
    return (v["c"] @ jnp.tanh(x).mean(axis=(2, 3)).T).T


@pytest.mark.parametrize("inputs", ["patches", "channels"])
def test_factors_scores_and_moves_are_the_same_in_any_layout(drawn, inputs):
    batch = {"image": normal(3, 5, 6, 2), "label": jnp.array([0, 2, 1])}
    turned = {name: kernel.T for name, kernel in drawn.items()}
    found, other = (
        factors(fn, variables, [batch], inputs=inputs)
        for fn, variables in ((small, drawn), (small_first, turned))
    )
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-10), found, other)
    if inputs == "channels":
        return
    groups, first = (
        jprune.trace(fn, variables, batch["image"])
        for fn, variables in ((small, drawn), (small_first, turned))
    )
    masks = {name: np.arange(size) != 1 for name, size in groups.sizes.items()}
    for form in FORMS:
        scores = unit_scores(groups, drawn, found, form)
        for name, others in unit_scores(first, turned, found, form).items():
            np.testing.assert_allclose(others, scores[name], rtol=1e-10)
        if form.endswith("obs"):
            moved = compensate(groups, drawn, masks, found, form)
            for name, kernel in compensate(first, turned, masks, found, form).items():
                np.testing.assert_allclose(kernel.T, moved[name], rtol=1e-9, atol=1e-12)


# checks.md [28]


def blocks():
    return Factors(spd(5), spd(4)), np.random.default_rng(1).normal(size=(4, 5))


def test_p1_damage_is_the_quadratic_form_of_the_kronecker_product():
    found, w = blocks()
    flat = w.reshape(-1)
    expected = flat @ np.kron(found.outputs, found.inputs) @ flat / 2
    assert damage(w, found) == pytest.approx(expected, rel=1e-12)


def test_p2_the_eigenbasis_is_exact_for_any_rows_and_columns():
    found, w = blocks()
    turned = rotated(w.T, found)
    assert turned.damage.sum() == pytest.approx(damage(w, found), rel=1e-10)
    rng = np.random.default_rng(2)
    for _ in range(20):
        columns, rows = rng.random(5) < 0.6, rng.random(4) < 0.6
        rest = np.asarray(turned.part(columns, rows, float).dense()).T
        kept = turned.damage[columns][:, rows].sum()
        assert damage(w - rest, found) == pytest.approx(turned.damage.sum() - kept, rel=1e-10)


def test_p3_two_by_two():
    found = Factors(np.diag([3.0, 1.0]), np.array([[2.0, 1.0], [1.0, 2.0]]))
    w = np.array([[1.0, 1.0], [1.0, -1.0]])
    assert damage(w, found) == 10
    np.testing.assert_allclose(rotated(w.T, found).damage, np.diag([1.0, 9.0]), atol=1e-12)
    np.testing.assert_allclose(kron_obd_rows(w, *found), [4, 4])
    np.testing.assert_allclose(kron_obs_rows(w, *found), [3, 3])
    np.testing.assert_allclose(c_obd_rows(w, *found), [4, 4])
    np.testing.assert_allclose(c_obs_rows(w, *found), [3, 3])


def test_p4_rows_that_go_together_cost_no_more_than_one_after_the_other():
    found, w = blocks()
    for removed in ([0, 2], [1, 2], [0, 1, 3]):
        gone = np.isin(np.arange(4), removed)
        joint = compensated_rows(w, found, gone, "kron_obs")
        assert (joint[gone] == 0).all()
        for order in (removed, removed[::-1]):
            step = w
            for row in order:
                step = compensated_rows(step, found, np.arange(4) == row, "kron_obs")
                step[np.isin(np.arange(4), order[: order.index(row)])] = 0
            assert damage(joint - w, found) <= damage(step - w, found) * (1 + 1e-10)


def test_scores_are_the_damage_of_a_single_removal():
    found, w = blocks()
    for row in range(4):
        gone = np.arange(4) == row
        change = np.where(gone[:, None], -w, 0)
        assert kron_obd_rows(w, *found)[row] == pytest.approx(damage(change, found))
        moved = compensated_rows(w, found, gone, "kron_obs") - w
        assert kron_obs_rows(w, *found)[row] == pytest.approx(damage(moved, found))


def test_c_obs_is_optimal_brain_surgery_on_every_weight():
    found, w = blocks()
    inverse = np.linalg.inv(np.kron(found.outputs, found.inputs))
    flat, moved = w.reshape(-1), w.reshape(-1).copy()
    scores = flat**2 / np.diag(inverse) / 2
    for q in range(5, 10):  # the weights of row 1
        moved -= flat[q] / inverse[q, q] * inverse[q]
    expected = moved.reshape(4, 5)
    expected[1] = 0
    np.testing.assert_allclose(c_obs_rows(w, *found), scores.reshape(4, 5).sum(axis=1))
    rows = compensated_rows(w, found, np.arange(4) == 1, "c_obs")
    np.testing.assert_allclose(rows, expected, rtol=1e-9)


def test_the_authors_variant_squares_before_it_multiplies():
    found, w = blocks()
    a, s = found
    rows = kron_obd_rows(w, a, s, repo_variant=True)
    np.testing.assert_allclose(rows, np.diag(s) * (w**2 @ a).sum(axis=1) / 2)
    rows = kron_obs_rows(w, a, s, repo_variant=True)
    np.testing.assert_allclose(rows, (w**2 @ a).sum(axis=1) / np.diag(np.linalg.inv(s)) / 2)


def test_matrices_of_kernels_meet_the_patches(drawn):
    """W a for a patch a is the convolution."""
    x = normal(1, 3, 3, 2)
    patch = np.asarray(x)[0].transpose(2, 0, 1).reshape(-1)
    middle = conv(x, drawn["a"])[0, 1, 1]
    layer = jprune.trace(small, drawn, x).layers["a"]
    filters = filters_of(layer, drawn["a"])
    np.testing.assert_allclose(filters @ patch, middle, rtol=1e-10)
    np.testing.assert_array_equal(with_filters(layer, filters), drawn["a"])


def residual(v, x):
    x = jnp.tanh(x @ v["a"])
    return (x + jnp.tanh(x @ v["b"]) @ v["c"]) @ v["d"]


RESIDUAL = {"a": (3, 5), "b": (5, 4), "c": (4, 5), "d": (5, 2)}


def residual_case():
    variables = {name: normal(*shape) for name, shape in RESIDUAL.items()}
    x = normal(40, 3)
    groups = jprune.trace(residual, variables, x)
    return variables, groups, {"image": x, "label": jnp.arange(40) % 2}


def test_the_producers_of_a_residual_stream_add_up():
    variables, groups, batch = residual_case()
    found = factors(residual, variables, [batch])
    rows = {name: kron_obd_rows(variables[name].T, *map(np.asarray, found[name])) for name in "abc"}
    scores = unit_scores(groups, variables, found, "kron_obd")
    np.testing.assert_allclose(scores["a"], rows["a"] + rows["c"], rtol=1e-10)
    np.testing.assert_allclose(scores["b"], rows["b"], rtol=1e-10)


def test_compensation_moves_every_producer_and_keeps_the_prediction():
    variables, groups, batch = residual_case()
    found = factors(residual, variables, [batch])
    masks = {"a": np.arange(5) != 2, "b": np.ones(4, bool)}
    moved = compensate(groups, variables, masks, found, "kron_obs", damping=0.0)
    for name in "ac":
        assert (moved[name][:, 2] == 0).all()
        assert (moved[name] != variables[name]).any()
        cut = variables[name].at[:, 2].set(0)
        change = lambda kernel, name=name: (kernel - variables[name]).T
        assert damage(change(moved[name]), found[name]) <= damage(change(cut), found[name])
    assert moved["b"] is variables["b"]
    assert moved["d"] is variables["d"]


def test_criteria_score_units():
    variables, groups, batch = residual_case()
    layers = layers_of(residual, groups, variables, batch["image"])
    for form in FORMS:
        criterion = criteria.kronecker(residual, cross_entropy, groups, layers, form, key=KEY)
        scores = jprune.run_criterion(criterion, variables, [batch])
        assert {name: score.shape for name, score in scores.items()} == {"a": (5,), "b": (4,)}
        assert all((score > 0).all() for score in scores.values())


# Bad input


def test_curvature_that_is_no_curvature_is_refused():
    found, w = blocks()
    broken = found._replace(inputs=found.inputs * np.nan)
    with pytest.raises(
        errors.ArgumentError, match=r"curvature at conv1 is NaN or infinite \(factor A"
    ):
        rotated(w.T, broken, "conv1")
    negative = found._replace(outputs=-found.outputs)
    with pytest.raises(errors.ArgumentError, match="curvature at conv1 is negative: the factor S"):
        rotated(w.T, negative, "conv1")
    variables, groups, batch = residual_case()
    good = factors(residual, variables, [batch])
    bad = {**good, "b": good["b"]._replace(outputs=-good["b"].outputs)}
    with pytest.raises(errors.ArgumentError, match="curvature at b is negative"):
        unit_scores(groups, variables, bad, "kron_obd")


def test_eigenvalues_of_nothing_cost_nothing():
    dead = Factors(np.diag([1.0, 0.0, 1e-12]), np.eye(2))
    turned = rotated(np.ones((3, 2)), dead)
    assert sorted(turned.damage.sum(axis=1).tolist()) == [0.0, 0.0, 1.0]


def test_a_factor_without_an_inverse_asks_for_damping():
    singular = Factors(np.eye(2), np.diag([1.0, 0.0]))
    with pytest.raises(errors.ArgumentError, match=r"no inverse.*Write damping=1e-3"):
        kron_obs_rows(np.ones((2, 2)), *singular)


def test_arguments_out_of_range_are_refused():
    variables, groups, batch = residual_case()
    layers = layers_of(residual, groups, variables, batch["image"])
    of = lambda **options: kfac(residual, cross_entropy, groups, layers, **options)
    with pytest.raises(errors.ArgumentError, match="labels='true'; write 'data' or 'model'"):
        of(labels="true")
    with pytest.raises(errors.ArgumentError, match="are drawn and need a key"):
        of(labels="model")
    with pytest.raises(errors.ArgumentError, match="are drawn and need a key"):
        of(labels="data", key=KEY)
    with pytest.raises(errors.ArgumentError, match="inputs='rows', bias=False"):
        of(labels="data", inputs="rows")
    with pytest.raises(errors.ArgumentError, match="only patches have a bias column"):
        of(labels="data", inputs="channels", bias=True)
    with pytest.raises(errors.ArgumentError, match="kfac got no layer"):
        kfac(residual, cross_entropy, groups, {}, labels="data")
    make = lambda *args, **options: criteria.kronecker(
        residual, cross_entropy, groups, layers, *args, labels="data", **options
    )
    with pytest.raises(errors.ArgumentError, match="form='obd'; write one of c_obd"):
        make("obd")
    with pytest.raises(errors.ArgumentError, match="repo_variant=True is for kron_obd"):
        make("c_obd", repo_variant=True)
    with pytest.raises(errors.ArgumentError, match="damping=-1"):
        make("c_obs", damping=-1)


def test_a_net_without_layers_says_so():
    fn = lambda v, x: x * v["scale"]
    variables, x = {"scale": normal(3)}, normal(2, 3)
    groups = jprune.trace(fn, variables, x)
    with pytest.raises(errors.ArgumentError, match="no layer has Kronecker factors"):
        layers_of(fn, groups, variables, x)
    with pytest.raises(errors.ArgumentError, match="nothing to prune"):
        unit_scores(groups, variables, {}, "kron_obd")
    assert curvature.layers_of is layers_of
