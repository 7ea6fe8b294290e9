"""Checkpoints give back what was saved, or say what they cannot hold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jprune import errors
from jprune.forms import Factored
from jprune.runs import checkpoint


class Pair(NamedTuple):
    first: object
    second: object


def through(folder, state, template=None):
    checkpoint.save(folder, 3, state, {"seed": 1})
    return checkpoint.load(folder, template).state


def same(one, other):
    """Whether two leaves have one type and one value."""
    if isinstance(one, jax.Array) and jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
        return bool(jnp.array_equal(jax.random.key_data(one), jax.random.key_data(other)))
    kind = lambda leaf: getattr(leaf, "dtype", type(leaf))
    return kind(one) == kind(other) and np.array_equal(np.asarray(one), np.asarray(other))


STATES = {
    "wide integers": {"n": np.array([7, 2**40]), "m": np.int64(-(2**50))},
    "doubles": {"x": np.array([1e300, 1 / 3])},
    "keys": {"one": jax.random.key(7), "many": jax.random.split(jax.random.key(1), 3)},
    "keys of another kind": {"k": jax.random.key(7, impl="rbg")},
    "nothing": {"e": jnp.zeros((0, 3)), "f": jnp.zeros((4, 0), jnp.int32), "g": None},
    "numbers": {"i": 3, "x": 0.1, "b": True, "c": 2j},
    "narrow": {"h": jnp.ones(2, jnp.bfloat16), "i": jnp.array([-3, 4], jnp.int8)},
    "dots": {"head.bias": jnp.ones(2), "head": {"bias": jnp.zeros(2)}},
    "percents": {"a%2Eb": jnp.ones(2), "a.b": jnp.zeros(2), "a%": {".": jnp.ones(3)}},
    "slashes": {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
    "lists": {"l": [jnp.ones(2), [jnp.zeros(1), None], {"x": 1}]},
}


@pytest.mark.parametrize("with_template", [False, True])
@pytest.mark.parametrize("name", STATES)
def test_what_is_saved_comes_back(tmp_path, name, with_template):
    state = STATES[name]
    found = through(tmp_path / "a", state, state if with_template else None)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert all(jax.tree.leaves(jax.tree.map(same, state, found)))
    # The same for trees that other programs read.
    checkpoint.save_tree(tmp_path / "b", state)
    found = checkpoint.load_tree(tmp_path / "b")
    assert all(jax.tree.leaves(jax.tree.map(same, state, found)))


def test_named_tuples_and_leaf_types_need_a_template(tmp_path):
    params = {"w.x": jnp.ones((3, 4)), "k": jnp.ones(2)}
    tx = optax.chain(optax.adam(1e-2), optax.add_noise(0.1, 0.5, jax.random.key(3)))
    factored = Factored(jnp.ones((3, 2)), jnp.ones((2, 1)), jnp.ones((1, 4)))
    state = {"tx": tx.init(params), "pair": Pair(jnp.ones(2), ()), "kernel": factored}
    found = through(tmp_path, state, jax.eval_shape(lambda: state))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert all(jax.tree.leaves(jax.tree.map(same, state, found)))


CHANGES = [
    (jnp.array(33_554_433, jnp.int32), jnp.zeros((), jnp.float32), False),
    (jnp.array(16_777_216, jnp.int32), jnp.zeros((), jnp.float32), True),
    (jnp.array([3, 300], jnp.int32), jnp.zeros(2, jnp.int8), False),
    (jnp.array([3, -100], jnp.int32), jnp.zeros(2, jnp.int8), True),
    (jnp.array([-1], jnp.int8), jnp.zeros(1, jnp.uint8), False),
    (jnp.array([0.5, 1.1]), jnp.zeros(2, ml_dtypes.bfloat16), False),
    (jnp.array([0.5, jnp.nan, -jnp.inf]), jnp.zeros(3, ml_dtypes.bfloat16), True),
    (jnp.array([1.5]), jnp.zeros(1, jnp.int32), False),
    (np.array([2**40]), jnp.zeros(1, jnp.int32), False),
    (np.array([2**53 + 1]), np.zeros(1), False),
    (np.array([2**31 - 1]), jnp.zeros(1, jnp.int32), True),
    (jax.random.key(1), jnp.zeros((), jnp.uint32), False),
]


@pytest.mark.parametrize(("saved", "template", "fits"), CHANGES)
def test_values_are_kept_or_the_type_is_refused(tmp_path, saved, template, fits):
    state, wanted = {"head": {"n": saved}}, {"head": {"n": template}}
    if not fits:
        with pytest.raises(errors.CheckpointError, match=r"head/n is of type .*cannot hold its va"):
            through(tmp_path, state, wanted)
        return
    found = through(tmp_path, state, wanted)["head"]["n"]
    assert found.dtype == template.dtype
    np.testing.assert_array_equal(np.asarray(found, np.float64), np.asarray(saved, np.float64))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            {"w": jnp.ones((4, 5)), "b": jnp.ones(3)},
            r"w has shape \[2, 3\] there and \[4, 5\] here",
        ),
        ({"w": jnp.ones((2, 3)), "c": jnp.ones(3)}, "it has no c"),
        ({"w": jnp.ones((2, 3))}, "it has an unexpected b"),
        ({"w": jnp.ones((2, 3)), "b": jnp.ones((0, 3))}, r"b has shape \[3\] there and \[0, 3\]"),
    ],
)
def test_another_net_is_refused_without_advice_to_delete(tmp_path, template, message):
    """The folder may be one of the user's own: nothing above it is jprune's."""
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        through(tmp_path / "weights", {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, template)
    assert "elete" not in str(caught.value)
    assert str(tmp_path / "weights") in str(caught.value)


@pytest.mark.parametrize(
    ("leaf", "message"), [("text", "noise is a str"), (np.array(["a"]), "noise is a ndarray")]
)
def test_what_no_checkpoint_holds_is_named_when_it_is_saved(tmp_path, leaf, message):
    with pytest.raises(errors.CheckpointError, match=message):
        checkpoint.save(tmp_path, 1, {"noise": leaf}, {})
    with pytest.raises(errors.CheckpointError, match=message):
        checkpoint.save_tree(tmp_path / "a", {"noise": leaf})


def test_a_damaged_checkpoint_says_so(tmp_path):
    checkpoint.save(tmp_path, 1, {"w": jnp.ones((2, 3))}, {})
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(errors.CheckpointError, match=r"has no checkpoint that is whole: .*DIGESTS"):
        checkpoint.load(tmp_path)
