"""Criteria against identities and numbers of methods/checks.md [18], and their errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import criteria, errors
from jprune.allocate import global_topk
from jprune.base import Budget, Criterion
from tests.nets import FIRST_CUT, conv, draw, norm

NET = FIRST_CUT[1]


def labels(count):
    return jnp.arange(count) % 4


def cross_entropy(out, batch):
    return -jax.nn.log_softmax(out)[jnp.arange(len(out)), batch["label"]]


@functools.cache
def case(number=1, dtype=jnp.float64):
    net = FIRST_CUT[number]
    variables, (x,) = draw(net, dtype=dtype)
    groups = jprune.trace(net.fn, variables, x)
    return variables, groups, {"image": x, "label": labels(len(x))}


def mean_loss(fn, variables, batch):
    return cross_entropy(fn(variables, batch["image"]), batch).mean()


@functools.cache
def gate_scores(number=1):
    """Scores of the gate form, compiled once for all tests."""
    variables, groups, batch = case(number)
    criterion = criteria.taylor(FIRST_CUT[number].fn, cross_entropy, groups, form="gate")
    return jprune.run_criterion(criterion, variables, [batch])


@functools.cache
def gradient(number=1):
    """The gradient of the mean loss, compiled once for all tests."""
    variables, _, batch = case(number)
    return gradient_of(FIRST_CUT[number].fn, variables, batch)


def gradient_of(fn, variables, batch):
    return jax.jit(jax.grad(functools.partial(mean_loss, fn)))(variables, batch)


def first_of(fn, variables, x):
    return fn(variables, x)[0]


def single_examples(batch):
    return [
        {name: array[i : i + 1] for name, array in batch.items()}
        for i in range(len(batch["image"]))
    ]


def test_magnitude_is_the_norm_of_a_filter():
    variables, groups, _ = case(dtype=jnp.float32)
    for order in (1, 2):
        scores = jprune.run_criterion(criteria.magnitude(order), variables, ())
        units = jprune.to_units(groups, scores)["conv2"]
        kernel = np.asarray(variables["conv2"])
        expected = [(np.abs(kernel[..., i]) ** order).sum() for i in range(7)]
        np.testing.assert_allclose(units, expected, rtol=1e-5)


def test_random_is_a_function_of_the_key_and_differs_between_leaves():
    score = lambda key: jprune.run_criterion(
        criteria.random(jax.random.key(key)), {"a": jnp.ones(50), "b": jnp.ones(50)}, ()
    )
    assert jnp.array_equal(score(0)["a"], score(0)["a"])
    assert not jnp.array_equal(score(0)["a"], score(1)["a"])
    assert not jnp.array_equal(score(0)["a"], score(0)["b"])


def test_statistics_have_no_scores():
    variables = {"params": {"w": jnp.ones((2, 1))}, "stats": {"mean": jnp.zeros(2)}}
    fn = lambda v, x: (x - v["stats"]["mean"]) @ v["params"]["w"]
    loss = lambda out, batch: out[:, 0] ** 2
    batch = {"image": jnp.ones((3, 2))}
    for criterion in (
        criteria.magnitude(),
        criteria.random(jax.random.key(0)),
        criteria.taylor(fn, loss),
    ):
        scores = jprune.run_criterion(criterion, variables, [batch])
        assert scores["stats"] == {"mean": None}
        assert scores["params"]["w"].shape == (2, 1)
        assert global_topk(scores, Budget(density=0.5))["stats"]["mean"] is None


def test_examples_of_weight_0_do_not_count():
    fn = lambda v, x: x @ v["a"] @ v["b"]
    variables = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones((3, 4))}
    batch = {"image": jnp.array([[1.0, 2], [0, 1]]), "label": labels(2)}
    padded = {name: jnp.concatenate([array, array[:1]]) for name, array in batch.items()}
    padded["weight"] = jnp.array([1.0, 1.0, 0.0])
    groups = jprune.trace(fn, variables, batch["image"])
    for settings in ({}, {"form": "gate"}, {"form": "gate", "per_example": True}):
        criterion = criteria.taylor(fn, cross_entropy, groups, **settings, at="in")
        plain, weighted = (jprune.run_criterion(criterion, variables, [b]) for b in (batch, padded))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, weighted)


def test_masked_units_and_weights_score_minus_infinity():
    variables, groups, _ = case(dtype=jnp.float32)
    mask = np.arange(groups.sizes["conv2"]) > 2
    of_units = {name: jnp.ones(size) for name, size in groups.sizes.items()}
    criterion = Criterion(lambda v: (), lambda s, v, b: s, lambda s, v: of_units, False)
    score = jprune.run_criterion(criteria.masked(criterion, {"conv2": mask}), variables, ())
    assert (score["conv2"][:3] == -jnp.inf).all()
    assert jnp.isfinite(score["conv2"][3:]).all()
    assert jnp.isfinite(score["conv1"]).all()
    weights = jprune.run_criterion(
        criteria.masked(criteria.magnitude(), jprune.expand(groups, {"conv2": mask})), variables, ()
    )
    assert (weights["conv2"][..., :3] == -jnp.inf).all()
    assert jnp.isfinite(weights["conv2"][..., 3:]).all()
    wrong = criteria.masked(criterion, {"conv2": mask[:3]})
    with pytest.raises(errors.StructureError, match=r"shape \(3,\)"):
        jprune.run_criterion(wrong, variables, ())
    of_weights = criteria.masked(criteria.magnitude(), {"conv9": mask})
    with pytest.raises(errors.StructureError, match=r"expand\(groups, masks\)"):
        jprune.run_criterion(of_weights, variables, ())


def test_a_gate_behind_a_convolution_is_the_sum_over_its_weights_and_bias(float64):
    """[18] P1: dE/dgate = sum over the filter's weights and bias of g w."""
    variables, _, _ = case(0)
    score, slope = gate_scores(0), gradient(0)
    for layer in ("conv1", "conv2", "dense1"):
        both = jax.tree.map(lambda g, w: g * w, slope[layer], variables[layer])
        kernel = both["kernel"].reshape(-1, both["bias"].size).sum(0)
        expected = (kernel + both["bias"]) ** 2
        np.testing.assert_allclose(score[f"{layer}/kernel"], expected, rtol=1e-9)


def test_a_gate_behind_batch_norm_is_gamma_and_beta_times_their_gradients(float64):
    """[18] P2, in inference and in training mode."""

    def train(v, x):
        for name in ("1", "2", "3"):
            h = conv(x, v["conv" + name])
            mean, var = h.mean((0, 1, 2)), h.var((0, 1, 2))
            p = {**v["norm" + name], "mean": mean, "var": var}
            x = jax.nn.relu(norm(h, p))
        out = x.mean((1, 2)) @ v["head"]["kernel"] + v["head"]["bias"]
        return out, {}

    variables, groups, batch = case()
    criterion = criteria.taylor(train, cross_entropy, groups, form="gate", has_aux=True)
    training = (
        jprune.run_criterion(criterion, variables, [batch]),
        gradient_of(functools.partial(first_of, train), variables, batch),
    )
    for score, slope in ((gate_scores(), gradient()), training):
        for number in "123":
            p, g = variables["norm" + number], slope["norm" + number]
            expected = (p["scale"] * g["scale"] + p["shift"] * g["shift"]) ** 2
            np.testing.assert_allclose(score["conv" + number], expected, rtol=1e-9)


def test_separate_and_joint_forms(float64):
    variables, groups, batch = case()
    product = np.asarray(gradient()["conv2"] * variables["conv2"]).reshape(-1, 7)
    separate = jprune.run_criterion(criteria.taylor(NET.fn, cross_entropy), variables, [batch])
    np.testing.assert_allclose(
        jprune.to_units(groups, separate)["conv2"], (product**2).sum(0), rtol=1e-9
    )
    joint = jprune.run_criterion(
        criteria.taylor(NET.fn, cross_entropy, groups, form="joint"), variables, [batch]
    )
    np.testing.assert_allclose(joint["conv2"], product.sum(0) ** 2, rtol=1e-9)


def test_gradients_per_example_are_those_of_single_examples(float64):
    variables, groups, batch = case()
    criterion = criteria.taylor(NET.fn, cross_entropy, groups, form="gate", per_example=True)
    score = jprune.run_criterion(criterion, variables, [batch])
    one = criteria.taylor(NET.fn, cross_entropy, groups, form="gate")
    singles = [
        jprune.run_criterion(one, variables, [example]) for example in single_examples(batch)
    ]
    for name in groups.names:
        np.testing.assert_allclose(
            score[name], np.mean([single[name] for single in singles], axis=0), rtol=1e-9
        )


def test_second_order_on_a_quadratic_is_the_true_change(float64):
    """For a loss quadratic in the gates the second-order form is exact: (E(z) - E(z with 0))^2."""
    fn = lambda v, x: x @ v["a"] @ v["b"]
    loss = lambda out, batch: ((out - batch["label"][:, None]) ** 2).sum(axis=1)
    rng = np.random.default_rng(0)
    variables = {
        "a": jnp.asarray(rng.normal(size=(3, 5))),
        "b": jnp.asarray(rng.normal(size=(5, 2))),
    }
    batch = {"image": jnp.asarray(rng.normal(size=(7, 3))), "label": jnp.arange(7.0)}
    groups = jprune.trace(fn, variables, batch["image"])
    score = jprune.run_criterion(
        criteria.taylor(fn, loss, groups, form="gate", order=2), variables, [batch]
    )["a"]
    total = lambda v: loss(fn(v, batch["image"]), batch).mean()
    for unit in range(5):
        without = {**variables, "a": variables["a"].at[:, unit].set(0)}
        np.testing.assert_allclose(score[unit], (total(variables) - total(without)) ** 2, rtol=1e-9)


def test_a_shared_gate_is_divided_by_the_number_of_its_sites(float64):
    net = FIRST_CUT[2]
    variables, groups, batch = case(2)
    score = gate_scores(2)["stem"]
    gated = jprune.gated(net.fn, groups, "norm")
    gates = gradient_of(lambda g, x: gated(variables, {"stem": g}, x), jnp.ones(8), batch)
    np.testing.assert_allclose(score, gates**2 / 3, rtol=1e-9)


@pytest.mark.parametrize(("momentum", "expected"), [(0.9, 1.2), (0.0, 3.0), (None, 2.0)])
def test_running_means(momentum, expected):
    """[18] P3: contributions 1.0 then 3.0."""
    fn, loss = lambda v, x: x * v["w"], lambda out, batch: out
    criterion = criteria.taylor(fn, loss, momentum=momentum)
    batches = [{"image": jnp.sqrt(jnp.array([c]))} for c in (1.0, 3.0)]
    score = jprune.run_criterion(criterion, {"w": jnp.array(1.0)}, batches)
    assert float(score["w"]) == pytest.approx(expected)


def test_rounds_of_several_batches():
    fn, loss = lambda v, x: x * v["w"], lambda out, batch: out
    criterion = criteria.taylor(fn, loss, momentum=0.5, every=2)
    batches = [{"image": jnp.sqrt(jnp.array([c]))} for c in (1.0, 3.0, 5.0, 7.0, 100.0)]
    score = jprune.run_criterion(criterion, {"w": jnp.array(1.0)}, batches)
    assert float(score["w"]) == pytest.approx(0.5 * 2 + 0.5 * 6)


def test_errors_say_what_to_write():
    fn, loss = NET.fn, cross_entropy
    for kwargs, sentence in (
        ({"form": "filter"}, "separate, joint, gate"),
        ({"form": "gate"}, "pass groups="),
        ({"order": 2}, 'form="gate"'),
        ({"momentum": 1.5}, "in \\[0, 1\\)"),
        ({"per_example": True}, 'form="gate"'),
    ):
        with pytest.raises(errors.ArgumentError, match=sentence):
            criteria.taylor(fn, loss, **kwargs)
    with pytest.raises(errors.ArgumentError, match="L1"):
        criteria.magnitude(3)
    with pytest.raises(errors.ArgumentError, match="got no batch"):
        jprune.run_criterion(criteria.taylor(fn, loss), {}, ())


def small_net(kind=np.float32):
    """`(fn, variables, groups)`: two dense layers with a ReLU between."""
    rng = np.random.default_rng(0)
    fn = lambda v, x: jax.nn.relu(jnp.abs(x @ v["first"])) @ v["second"]
    first = rng.normal(size=(4, 5)) + (1j * rng.normal(size=(4, 5)) if kind is complex else 0)
    variables = {"first": jnp.asarray(first), "second": jnp.asarray(rng.normal(size=(5, 3)))}
    return fn, variables, jprune.trace(fn, variables, jnp.ones((1, 4)))


def test_scores_per_example_are_means_over_examples_whatever_the_batches():
    fn, variables, groups = small_net()
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(18, 4)).astype(np.float32), rng.integers(0, 3, 18)
    x[16:] *= 5  # the two of the last batch are unlike the others
    parts = [np.arange(8), np.arange(8, 16), np.arange(16, 18)]
    uneven = [{"image": x[part], "label": y[part]} for part in parts]
    padded = [
        {"image": x[rows], "label": y[rows], "weight": (np.arange(8) < len(part)).astype(float)}
        for part in parts
        for rows in [np.resize(part, 8)]
    ]
    criterion = criteria.taylor(fn, cross_entropy, groups, form="gate", at="act", per_example=True)
    whole, *others = (
        jprune.run_criterion(criterion, variables, batches)["first"]
        for batches in ([{"image": x, "label": y}], uneven, padded)
    )
    for scores in others:
        np.testing.assert_allclose(scores, whole, rtol=1e-4)


def test_gates_need_a_site_and_say_which_there_are():
    fn, _, groups = small_net()
    with pytest.raises(errors.ArgumentError, match=r"no group .* 'join'. Write at='act' or at='in"):
        criteria.taylor(fn, cross_entropy, groups, form="gate", at="join")


@pytest.mark.parametrize("name", ["separate", "joint", "gate", "magnitude"])
def test_scores_of_complex_kernels_are_real(name):
    fn, variables, groups = small_net(complex)
    batch = {"image": np.random.default_rng(2).normal(size=(8, 4)), "label": np.arange(8) % 3}
    taylor = lambda form: jprune.run_criterion(
        criteria.taylor(fn, cross_entropy, groups, form=form, at="act"), variables, [batch]
    )["first"]
    if name == "magnitude":
        scores = jprune.run_criterion(criteria.magnitude(), variables, ())["first"]
        np.testing.assert_allclose(scores, np.abs(variables["first"]), rtol=1e-6)
    else:
        scores = taylor(name)
    assert not np.iscomplexobj(scores)
    # The joint score of a unit is that of its gate: w -> z w, dE/dz = sum Re(g w).
    if name == "joint":
        np.testing.assert_allclose(scores, taylor("gate"), rtol=1e-3)


def test_random_units_are_in_random_order_whatever_their_fan_in():
    fn = lambda v, x: jax.nn.relu(jax.nn.relu(x @ v["wide"]) @ v["narrow"]) @ v["out"]
    shapes = {"wide": (64, 32), "narrow": (32, 32), "out": (32, 3)}
    variables = {name: jnp.ones(shape) for name, shape in shapes.items()}
    groups = jprune.trace(fn, variables, jnp.ones((1, 64)))
    fractions = []
    for seed in range(8):
        scores = jprune.run_criterion(criteria.random(jax.random.key(seed), groups), variables, ())
        masks = global_topk(scores, Budget(density=0.5))
        fractions.append([np.mean(masks["wide"]), np.mean(masks["narrow"])])
    # Standard deviation of the mean of 8 draws of half of 2 x 32: 0.022.
    np.testing.assert_allclose(np.mean(fractions, axis=0), 0.5, atol=0.12)
