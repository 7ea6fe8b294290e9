"""Every method on one net in six spellings: the same masks and weights, or the same refusal.

The dense net is not trained, where a method can do without; fine-tuning has two steps, with decay.
Keys, data and numbers are the same, so whatever differs is read off ranks, axes or names.
"""

import functools
from typing import NamedTuple

import numpy as np
import pytest

from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.train.net import Net, are_units
from tests.contracts import own, spellings

DRAWN = {
    "random": "a unit's number is drawn with its group's, in the order of the groups' names",
    "erk": "the weights that are masked are drawn leaf by leaf, in the order and shape of leaves",
    "set": "as of erk, and so is what grows",
    "rigl": "as of erk",
    "edge_popup": "scores and signs are drawn leaf by leaf, in the order and the shape of leaves",
    "movement": "Adam's first steps move all scores alike, so that rounding puts them in order",
}
"""{method whose numbers depend on the order, the names or the shape of leaves: why}.

What is compared of them is how much of every leaf or group they keep.
"""
BUDGETS = {**own.OF_ITS_OWN, "random": Budget(density=0.6)}
REFUSED = ("subset_sum",)
"""Methods that do not take a net with convolutions."""

WRONG: dict[str, dict[str, str]] = {}
"""{method: {spelling: what differs, and why}}."""
KNOWN = {
    f"test_a_method_does_the_same_to_every_spelling[{method}-{name}]": reason
    for method, names in WRONG.items()
    for name, reason in names.items()
}

TRAINED = (
    "edge_popup",
    "erk",
    "from_scratch",
    "less_is_more",
    "lottery_ticket",
    "metapruning",
    "nm",
    "rigl",
    "set",
    "scratch_e",
    "scratch_b",
    "variational",
    "snip",
    "grasp",
    "synflow",
    "tas",
)
"""Methods that have no recipe without the dense training."""


class Outcome(NamedTuple):
    """What a method makes of the net, in canonical names."""

    refusal: str | None
    """The type of the error."""
    masks: dict[str, np.ndarray]
    """{group, branch or leaf: what is kept}."""
    held: dict[str, int]
    """{leaf: numbers that it holds}, whatever form it has."""
    values: dict[str, np.ndarray]
    """{leaf: values}, of those that are arrays; 0 where they are masked."""


@functools.lru_cache(maxsize=2)
def outcome(method: str, name: str) -> Outcome:
    """What a method makes of a spelling; an error after the first training batch is raised."""
    spelling, drawn = spellings.of(name), []
    task = own.watched(spelling.task, drawn)
    try:
        recipe = own.recipe_of(
            method,
            BUDGETS.get(method, Budget(macs=0.6)),
            dense=method in TRAINED,
            **own.OPTIONS.get(method, {}),
        )
        pruned = own.run(recipe, task)
    except errors.JpruneError as error:
        if drawn:
            raise
        return Outcome(type(error).__name__, {}, {}, {})
    alive = spelling.canonical(Net(spelling.task).weight_masks(pruned.masks))
    values = spelling.canonical(pruned.variables)
    values = {leaf: value * alive.get(leaf, True) for leaf, value in values.items()}
    return Outcome(None, masks_of(spelling, pruned), held(spelling, pruned), values)


def masks_of(spelling: spellings.Spelling, pruned: Pruned) -> dict[str, np.ndarray]:
    if pruned.masks is None:
        return {}
    if are_units(Net(spelling.task).groups, pruned.masks):
        names = spelling.groups()
        return {names[name]: np.asarray(mask) for name, mask in pruned.masks.items()}
    return spelling.canonical(pruned.masks)


def held(spelling: spellings.Spelling, pruned: Pruned) -> dict[str, int]:
    sizes = {path: array.size for path, array in own.by_path(pruned.variables).items()}
    below = lambda path, of: path == of or path.startswith(f"{of}/")
    return {
        name: sum(size for path, size in sizes.items() if below(path, leaf.path))
        for name, leaf in spelling.leaves.items()
    }


def counts(masks: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("name", spellings.MAKERS)
@pytest.mark.parametrize("method", recipes.METHODS)
def test_a_method_does_the_same_to_every_spelling(method, name):
    right, found = outcome(method, "nnx"), outcome(method, name)
    assert (right.refusal is not None) == (method in REFUSED)
    assert found.refusal == right.refusal
    assert counts(found.masks) == counts(right.masks)
    assert found.held == right.held
    if method in DRAWN:
        return
    for leaf, mask in right.masks.items():
        np.testing.assert_array_equal(found.masks[leaf], mask, err_msg=leaf)
    assert found.values.keys() == right.values.keys()
    for leaf, values in right.values.items():
        np.testing.assert_allclose(found.values[leaf], values, atol=1e-3, err_msg=leaf)
