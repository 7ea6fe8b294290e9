"""The spellings are one net: the same function, the same training, the same groups."""

import functools

import jax
import numpy as np
import pytest

import jprune
from jprune.learners.feature_boosting import Boosting, prepared
from jprune.learners.input_gates import boostable_layers
from jprune.train.net import Net
from tests.contracts import spellings
from tests.contracts.own import KEY
from tests.contracts.spellings import FIRST
from tests.law import relative_error

OTHERS = [name for name in spellings.MAKERS if name != "nnx"]


@pytest.fixture(scope="module")
def images():
    return spellings.images_and_labels()[0][:16]


def outputs(spelling, images):
    """Logits, logits of a training step, and the variables after it, in canonical names."""
    task = spelling.task
    variables = task.init(KEY)
    trained, new = jax.jit(task.train_fn)(variables, images, KEY)
    after = spelling.canonical(task.update(variables, new))
    return jax.jit(task.fn)(variables, images), trained, after


@pytest.mark.parametrize("name", spellings.MAKERS)
def test_every_leaf_has_its_canonical_number(name):
    spelling = spellings.of(name)
    found = spelling.canonical(spelling.task.init(KEY))
    right = spellings.numbers()
    assert found.keys() == right.keys()
    for leaf, value in right.items():
        np.testing.assert_array_equal(found[leaf], value)


@pytest.mark.parametrize("name", OTHERS)
def test_the_spellings_compute_the_same_function_and_statistics(name, images):
    right, found = (outputs(spellings.of(each), images) for each in ("nnx", name))
    np.testing.assert_allclose(found[0], right[0], atol=1e-5)
    np.testing.assert_allclose(found[1], right[1], atol=1e-5)
    moved = 0.0
    for leaf, value in right[2].items():
        np.testing.assert_allclose(found[2][leaf], value, atol=1e-5)
        moved += np.abs(value - spellings.numbers()[leaf]).sum()
    assert moved > 0.1, "a training step moves statistics"


@pytest.mark.parametrize("name", spellings.MAKERS)
def test_the_spellings_have_the_same_groups(name):
    """The same units, and every leaf that they stand in, by the same canonical axes and roles."""
    groups = traced(spellings.of(name))
    names = spellings.of(name).groups()
    assert {names[group]: size for group, size in groups.sizes.items()} == spellings.GROUPS
    assert all(groups.exact.values())
    assert places(name) == places("nnx")


def traced(spelling):
    task = spelling.task
    return jprune.trace(task.fn, jax.eval_shape(task.init, KEY), task.example)


def places(name):
    """{(group, canonical leaf, canonical axis, roles)}."""
    spelling = spellings.of(name)
    groups, names = traced(spelling), spelling.groups()
    leaves = {leaf.path: (canonical, leaf.axes) for canonical, leaf in spelling.leaves.items()}
    found = set()
    for group, of_group in groups.places.items():
        for place in of_group:
            if place.leaf in leaves:  # hidden averages are of Haiku alone
                leaf, axes = leaves[place.leaf]
                of_leaf = len(spellings.SHAPES[leaf])
                axis = (axes.index(place.axis) if axes else place.axis) if of_leaf > 1 else 0
                found.add((names[group], leaf, axis, place.roles))
    return found


@pytest.mark.parametrize("name", spellings.MAKERS)
def test_the_spellings_have_the_same_branches_and_sites(name):
    groups, names = traced(spellings.of(name)), spellings.of(name).groups()
    assert {names[branch.name] for branch in groups.branches} == {"branch/b", "branch/d"}
    found = [(site.kind, names[site.layer]) for site in groups.sites]
    right = traced(spellings.of("nnx"))
    names = spellings.of("nnx").groups()
    assert found == [(site.kind, names[site.layer]) for site in right.sites]


@functools.lru_cache(maxsize=2)
def means_after_a_step(name, by):
    """{canonical mean: value} after a training step, with a constant added to those of one norm."""
    task, spelling = spellings.of(name).task, spellings.of(name)
    net, leaves = Net(task), Net(task).leaves(task.init(KEY))
    moved = net.tree(net.shifted(leaves, spelling.leaves["a/mean"].path, np.full(FIRST, by)))
    new = jax.jit(task.train_fn)(moved, spellings.images_and_labels()[0][:16], KEY)[1]
    return spelling.canonical(task.update(moved, new))


@pytest.mark.parametrize("name", spellings.MAKERS)
def test_what_is_added_to_a_mean_is_there_after_a_training_step(name):
    """mean <- momentum mean + (1 - momentum) mean of the batch, whatever a library makes it of."""
    before, after = means_after_a_step(name, 0.0), means_after_a_step(name, 0.5)
    for leaf in ("a/mean", "a/var", "c/mean"):
        expected = 0.5 * spellings.MOMENTUM if leaf == "a/mean" else 0
        np.testing.assert_allclose(after[leaf] - before[leaf], expected, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_gates_begin_at_the_scales_of_every_spelling(name):
    """Signs of scales go into kernels and means, and shifts are divided by their sizes."""

    def begin(name):
        spelling, net = spellings.of(name), Net(spellings.of(name).task)
        layers = boostable_layers(net.task, net.groups, net.shapes)
        # Scales of both signs: the last ones are turned.
        turn = lambda leaf: leaf * np.sign(np.arange(leaf.size) - 3.5).reshape(leaf.shape)
        leaves = net.leaves(net.task.init(KEY))
        for layer in spellings.NORMED:
            path = spelling.leaves[f"{layer}/scale"].path
            leaves[path] = turn(np.asarray(leaves[path]))
        variables, levels = prepared(net.groups, layers, Boosting(start="scale"), net.tree(leaves))
        names = spelling.groups()
        return spelling.canonical(variables), {names[k]: level for k, level in levels.items()}

    assert relative_error(begin("nnx"), begin(name)) < 1e-6
