"""Reconstruction: what sites show, least squares and its ridge rule, targets in residual nets."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jprune
from jprune import errors
from jprune.base import Problem
from jprune.graph import taps
from jprune.reconstruct import cutoff, least_squares, merges, relative_error
from jprune.reconstruct.moments import contributions, moments
from jprune.reconstruct.windows import Windows, aimed, collect, look
from tests.nets import FIRST_CUT, conv, draw

KEY = jax.random.key(3)


def problem_of(seed, rows=60, units=5, window=3, outputs=4, **options):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, units, window))
    weight = rng.normal(size=(units, window, outputs))
    targets = np.tensordot(inputs, weight, 2) + 0.3 * rng.normal(size=(rows, outputs))
    keep = np.array([True, True, False, True, False])[:units]
    return Problem(inputs, targets, weight, keep, **options)


@given(st.integers(0, 10**6), st.booleans())
def test_least_squares_is_that_of_numpy(seed, bias):
    problem = problem_of(seed, ridge=0.0, bias=bias)
    weight, constant = least_squares(problem)
    kept = problem.inputs[:, problem.keep].reshape(60, -1)
    kept = np.hstack([kept, np.ones((60, 1))]) if bias else kept
    expected = np.linalg.lstsq(kept, problem.targets)[0]
    np.testing.assert_allclose(weight[problem.keep].reshape(9, 4), expected[:9], atol=1e-9)
    np.testing.assert_allclose(constant, expected[9] if bias else np.zeros(4), atol=1e-9)
    assert not weight[~problem.keep].any()
    residual = problem.targets - kept @ expected
    error = (residual**2).sum() / (problem.targets**2).sum()
    assert relative_error(problem, weight, constant) == pytest.approx(error)


def test_rows_have_weights():
    """A row that counts twice is that row twice; one that counts 0 is not there."""
    problem = problem_of(0, ridge=0.0, bias=True)
    counts = np.arange(60) % 3
    twice = problem._replace(
        inputs=np.repeat(problem.inputs, counts, axis=0),
        targets=np.repeat(problem.targets, counts, axis=0),
    )
    for a, b in zip(least_squares(problem._replace(rows=counts)), least_squares(twice)):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_every_output_may_have_units_of_its_own():
    problem = problem_of(1, ridge=0.0)
    keep = np.random.default_rng(2).uniform(size=(5, 4)) < 0.6
    weight, _ = least_squares(problem._replace(keep=keep))
    for output in range(4):
        alone = problem._replace(
            keep=keep[:, output],
            targets=problem.targets[:, output : output + 1],
            weight=problem.weight[..., output : output + 1],
        )
        np.testing.assert_allclose(weight[..., output], least_squares(alone)[0][..., 0], atol=1e-9)


@pytest.mark.parametrize(("ridge", "bound"), [(0.0, 1e-9), (1e-9, 1e-6), (None, 1e-4)])
def test_rank_deficient_least_squares_stays_near_the_old_weights(ridge, bound):
    """Unit 1 is unit 0 again: many weights fit, and the nearest to the old ones is taken."""
    problem = problem_of(4, ridge=ridge)
    inputs = problem.inputs.copy()
    inputs[:, 1] = inputs[:, 0]
    targets = np.tensordot(inputs, problem.weight, 2)
    problem = problem._replace(inputs=inputs, targets=targets, keep=np.array([1, 1, 1, 1, 0], bool))
    weight, _ = least_squares(problem)
    moved = (weight - problem.weight)[:4]
    np.testing.assert_allclose(moved[0], moved[1], atol=bound)
    kept, missing = (
        inputs[:, :4].reshape(60, -1),
        np.tensordot(inputs[:, 4:], problem.weight[4:], 2),
    )
    nearest = np.linalg.pinv(kept) @ missing
    np.testing.assert_allclose(moved.reshape(12, 4), nearest, atol=100 * bound)


def test_fewer_rows_than_unknowns():
    """Rows that could be fitted exactly are not: the rule has a stronger ridge there."""
    problem = problem_of(5, rows=6)
    weight, _ = least_squares(problem)
    assert np.isfinite(weight).all()
    assert relative_error(problem, weight) > 1e-6
    exact, _ = least_squares(problem._replace(ridge=0.0))
    assert relative_error(problem, exact) < 1e-20
    change = lambda new: np.linalg.norm((new - problem.weight)[problem.keep])
    assert change(weight) < change(exact)
    given = least_squares(problem._replace(ridge=1e-2))[0]
    np.testing.assert_array_equal(weight, given)


def test_dead_units_keep_their_weights():
    problem = problem_of(6)
    inputs = problem.inputs.copy()
    inputs[:, 3] = 0
    weight, _ = least_squares(problem._replace(inputs=inputs))
    np.testing.assert_array_equal(weight[3], problem.weight[3])
    weight, _ = least_squares(problem._replace(inputs=0 * inputs))
    np.testing.assert_array_equal(weight[problem.keep], problem.weight[problem.keep])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.zeros((59, 4))}, r"targets \[n, outputs\]"),
        ({"keep": np.ones(6, bool)}, r"keep \[units\] or"),
        ({"inputs": np.zeros((0, 5, 3)), "targets": np.zeros((0, 4))}, "one row or more"),
        ({"ridge": -1.0}, "ridge=-1.0; write 0 or more"),
    ],
)
def test_bad_problems(change, message):
    with pytest.raises(errors.ArgumentError, match=message):
        least_squares(problem_of(0)._replace(**change))


def test_contributions_are_sums_over_all_rows_and_outputs():
    problem = problem_of(7)
    z = np.einsum("nuw,uwo->uno", problem.inputs, problem.weight) * problem.keep[:, None, None]
    gram, cross = contributions(problem, moments(problem))
    np.testing.assert_allclose(gram, np.einsum("ino,jno->ij", z, z), atol=1e-9)
    np.testing.assert_allclose(cross, np.einsum("ino,no->i", z, problem.targets), atol=1e-9)


def net(name):
    (found,) = (net for net in FIRST_CUT if net.name == name)
    variables, (x,) = draw(found)
    return found.fn, variables, x, jprune.trace(found.fn, variables, x)


@pytest.mark.parametrize("points", [3, 1000])
def test_windows_times_the_kernel_are_the_outputs(points):
    """Strides, padding, a flattened input: X W = Y row by row, at the positions that are drawn."""
    for name, sites in (
        ("lenet", ("conv2/kernel", "dense1/kernel", "dense2/kernel")),
        ("resnet_projected", ("conv1", "conv2", "project")),
    ):
        fn, variables, x, groups = net(name)
        found = look(fn, groups, sites, points)(variables, x, KEY)
        flat = dict(zip(groups.leaves, jax.tree.leaves(variables)))
        for site in sites:
            kernel = jnp.moveaxis(flat[site], -2, 0)
            kernel = kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])
            said = jnp.tensordot(found[site].inputs, kernel, 2)
            np.testing.assert_allclose(said, found[site].outputs, rtol=1e-4, atol=1e-5)
            _, shapes = jax.eval_shape(taps(fn, groups, ("out",)), variables, x)
            positions = np.prod(shapes[site, "out"].shape[1:-1], dtype=int)
            assert len(said) == len(x) * min(points, positions)


def test_two_nets_are_seen_at_the_same_positions():
    """And every kind of value at those: a row is one position of one image."""
    fn, variables, x, groups = net("resnet_identity")
    see = look(fn, groups, ("conv2a", "conv2b"), 4)
    one = see(variables, x, KEY)
    other = {**variables, "head": jax.tree.map(lambda leaf: 2 * leaf, variables["head"])}
    two = see(other, x, KEY)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    p, seen = variables["norm2a"], one["conv2a"]
    scale = p["scale"] / jnp.sqrt(p["var"] + 1e-3)
    np.testing.assert_allclose(
        seen.norm, (seen.outputs - p["mean"]) * scale + p["shift"], rtol=1e-4, atol=1e-4
    )
    assert not np.array_equal(
        one["conv2a"].outputs, see(variables, x, jax.random.key(4))["conv2a"][1]
    )


def test_a_kernel_that_is_read_twice_is_seen_twice():
    fn = lambda v, x: conv(jnp.tanh(conv(jnp.tanh(conv(x, v["a"])), v["b"])), v["b"])
    rng = np.random.default_rng(0)
    v = {
        "a": jnp.asarray(rng.normal(size=(3, 3, 2, 4))),
        "b": jnp.asarray(rng.normal(size=(3, 3, 4, 4))),
    }
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 2)))
    groups = jprune.trace(fn, v, x)
    found = look(fn, groups, ("b", "b@2"), 2)(v, x, KEY)
    assert found["b"].inputs.shape == found["b@2"].inputs.shape == (4, 4, 9)
    assert not np.array_equal(found["b"].inputs, found["b@2"].inputs)


def test_the_aim_of_a_branch_makes_up_for_its_shortcut():
    """He et al.: Y1 - Y1' + Y2, taken back through the norm."""
    rng = np.random.default_rng(0)
    scale, shift = np.array([2.0, -0.5, 0.0]), np.array([1.0, 3.0, 4.0])
    outputs, branch = rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
    shortcut, cut = rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
    behind = lambda values: values * scale + shift
    dense = Windows(None, branch, behind(branch), shortcut + behind(branch))
    now = Windows(None, outputs, behind(outputs), cut + behind(outputs))
    aim = aimed(now, dense)
    wanted = shortcut - cut + behind(branch)
    np.testing.assert_allclose(behind(aim)[:, :2], wanted[:, :2])
    np.testing.assert_array_equal(aim[:, 2], branch[:, 2])  # says nothing through a scale of 0
    np.testing.assert_array_equal(aimed(now._replace(join=None), dense), branch)


def test_the_last_layer_of_a_branch_sees_its_sum():
    fn, variables, x, groups = net("resnet_identity")
    found = look(fn, groups, ("conv1a", "conv2a"), 5)(variables, x, KEY)
    assert found["conv1a"].join is None
    assert found["conv2a"].join.shape == found["conv2a"].norm.shape
    # sigmoid(norm) ends a branch here: what the layer says is not what goes into the sum.
    curved = lambda v, x: x + jax.nn.sigmoid(conv(jnp.tanh(conv(x, v["a"])), v["b"]))
    v = {"a": jnp.ones((3, 3, 2, 4)), "b": jnp.ones((3, 3, 4, 2))}
    x = jnp.ones((2, 5, 6, 2))
    groups = jprune.trace(curved, v, x)
    assert look(curved, groups, ("b",), 5)(v, x, KEY)["b"].join is None


def test_calibration_without_batches_or_with_nan():
    fn, variables, x, groups = net("vgg")
    see = look(fn, groups, ("conv2",), 2)
    with pytest.raises(errors.ArgumentError, match="no calibration batch"):
        collect(see, variables, [], KEY)
    with pytest.raises(errors.ArgumentError, match="conv2 on calibration images are not finite"):
        collect(see, variables, [x * jnp.nan], KEY)


def test_the_cutoff_of_a_narrow_crowd_takes_no_memory_for_one_value_far_off():
    """The width of bins follows the crowd, and their number the whole range: 4.5 million here."""
    saliencies = 2.0 * np.exp(1e-5 * np.random.default_rng(0).normal(size=64 * 63))
    saliencies[0] = 1e-3
    tracemalloc.start()
    threshold = cutoff(saliencies)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert threshold == pytest.approx(2.0, rel=1e-4)
    assert most < 2e6


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_the_cutoff_is_the_mode_of_a_smoothed_histogram(seed, size):
    rng = np.random.default_rng(seed)
    saliencies = np.exp(rng.normal(size=size) * rng.uniform(0.1, 3))
    counts, edges = np.histogram(np.log(saliencies), bins="fd")
    smooth = np.convolve(np.pad(counts, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    modes = [n for n, count in enumerate(smooth) if count == smooth.max()]
    middles = [np.exp((edges[n] + edges[n + 1]) / 2) for n in modes]
    assert any(cutoff(saliencies) == pytest.approx(middle, rel=1e-6) for middle in middles)


def test_a_unit_of_zeros_goes_first_where_scales_are_free():
    """It is 0 times any other unit, at distance 0."""
    weights = np.array([[1.0, 0.0], [0.0, 0.0], [0.9, 0.1]])
    step = next(merges(weights, np.ones((3, 1)), normalize=True))
    assert (step.gone, step.factor, step.saliency) == (1, 0, 0)
