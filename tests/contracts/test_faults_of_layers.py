"""What a layer, a kernel, its axes and its bias are: the same net in two spellings, one method.

A bias is what its role says, whatever its rank; a layer is a contraction, wherever its leaves
stand in the tree; the axes of a kernel are what the contraction makes of them.
"""

import dataclasses
import math

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.train.net import Net
from tests.contracts.own import (
    KEY,
    SHORT,
    by_path,
    channels_first,
    conv,
    draw,
    kernels,
    no_loss,
    recipe_of,
    run,
    task_of,
    up_to,
)

DENSE = dataclasses.replace(SHORT, name="train")
LONGER = dataclasses.replace(SHORT, max_steps=4)
"""Training in which a pull shows."""
HALF = Budget(density=0.5)


# ---- biases of any rank -------------------------------------------------------------------------


def differences(recipe, stage, **of_task):
    """{path: how far a leaf is away where biases are [1, 1, 1, C] and not [C]} after a stage.

    Haiku's norms have such shapes, and Equinox' biases [C, 1, 1]. The function is the same, so what
    any method does must be the same.
    """

    def fn(v, x):
        x = jax.nn.relu(conv(x, v["params"]["c"]["kernel"]) + v["params"]["c"]["bias"])
        x = jax.nn.relu(conv(x, v["params"]["e"]["kernel"]) + v["params"]["e"]["bias"])
        return x.mean((1, 2)) @ v["params"]["fc"]["kernel"] + v["params"]["fc"]["bias"]

    nets = []
    for shape in ((8,), (1, 1, 1, 8)):
        params = kernels({"c": (3, 3, 2, 8), "e": (3, 3, 8, 8), "fc": (8, 3)}, bias=True)
        for name in ("c", "e"):
            params[name]["bias"] = params[name]["bias"].reshape(shape)
        task = task_of(fn, params, (5, 5, 2), **of_task)
        nets.append(by_path(up_to(recipe, task, stage)[1].variables))
    right, other = nets
    away = {p: float(np.abs(other[p].ravel() - right[p].ravel()).max()) for p in right}
    return {path: round(far, 4) for path, far in away.items() if far > 1e-5}


PENALTIES = {
    "weight decay": ("train", lambda: (DENSE,)),
    "l1 of han": ("train", lambda: recipes.find("han")(HALF, DENSE, SHORT, l1=0.5)),
    "decay of admm": ("admm", lambda: recipes.find("struct_admm")(HALF, None, LONGER, rounds=1)),
    "pull of csgd": (
        "pull",
        lambda: recipes.find("csgd")(HALF, None, LONGER, clusters="even", strength=0.5),
    ),
}
"""{what moves weights: (stage, recipe)}."""


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_move_biases_of_any_shape_alike(penalty):
    """The loss has no gradient here, so that penalties alone move anything."""
    stage, recipe = PENALTIES[penalty]
    assert not differences(recipe(), stage, loss=no_loss)


@pytest.mark.parametrize("method", ["l1", "han", "obs"])
def test_pruning_of_single_weights_leaves_biases_of_any_shape(method):
    """Those of kernels compete, biases and norms stay; and a density is that of all kernels."""
    options = {"l1": {"per": "weight"}, "han": {"rounds": 1, "q": 1.0}}.get(method, {})
    assert not differences(recipes.find(method)(HALF, None, SHORT, **options), "prune")


def masked_affine(task) -> list[str]:
    """Biases, scales and offsets that l1 per weight has masks for."""
    recipe = recipes.find("l1")(HALF, None, SHORT, per="weight")
    masks = by_path(up_to(recipe, task, "prune")[1].masks)
    assert masks, "kernels have masks"
    return [path for path in masks if path.rpartition("/")[2] in ("bias", "b", "scale", "offset")]


def test_biases_of_equinox_have_no_mask():
    class Net(eqx.Module):
        first: eqx.nn.Conv2d
        out: eqx.nn.Linear

        def __call__(self, x):
            return self.out(jax.nn.relu(self.first(x)).mean((1, 2)))

    net = Net(eqx.nn.Conv2d(2, 8, 3, key=KEY), eqx.nn.Linear(8, 3, key=KEY))
    params, static = eqx.partition(net, eqx.is_array)
    fn = lambda v, x: jax.vmap(eqx.combine(v["params"], static))(x)
    assert not masked_affine(task_of(fn, params, (2, 5, 5)))


def test_scales_and_offsets_of_haiku_have_no_mask():
    def forward(x, training):
        x = hk.Conv2D(8, 3)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, training))
        return hk.Linear(3)(x.mean((1, 2)))

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    params, stats = net.init(KEY, jnp.ones((1, 5, 5, 2)), True)
    fn = lambda v, x: net.apply(v["params"], v["stats"], x, False)[0]
    assert not masked_affine(task_of(fn, params, (5, 5, 2), stats=stats))


def test_a_random_net_begins_with_the_biases_that_it_had():
    """edge_popup redraws kernels; biases of any shape stay as they begin."""
    found = differences(recipes.find("edge_popup")(HALF, DENSE), "redraw")
    assert not [path for path in found if "bias" in path]


# ---- biases of branches -------------------------------------------------------------------------


def two_branches(contractions_first):
    """`(fn, params)`: a hidden layer read by two layers with biases, written in either order."""

    def fn(v, x):
        stem, a, b, out = (v["params"][name] for name in ("stem", "a", "b", "out"))
        x = jax.nn.relu(x @ stem["kernel"] + stem["bias"])
        if contractions_first:
            one, two = x @ a["kernel"], x @ b["kernel"]
            one, two = one + a["bias"], two + b["bias"]
        else:
            one = x @ a["kernel"] + a["bias"]
            two = x @ b["kernel"] + b["bias"]
        return (jax.nn.relu(one) + jax.nn.sigmoid(two)) @ out["kernel"] + out["bias"]

    return fn, kernels({"stem": (6, 12), "a": (12, 8), "b": (12, 8), "out": (8, 3)}, bias=True)


def test_a_refitted_bias_is_that_of_the_layer_whatever_is_written_first():
    """channel_lasso: both orders are one function, so masks and refitted weights are the same."""
    nets = {}
    for contractions_first in (False, True):
        fn, params = two_branches(contractions_first)
        images = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
        task = task_of(fn, params, (6,), images=images)
        _, pruned = up_to(recipes.find("channel_lasso")(HALF, None, SHORT), task, "prune")
        nets[contractions_first] = by_path(pruned.variables)
    for path, right in nets[False].items():
        np.testing.assert_allclose(nets[True][path], right, atol=1e-3, err_msg=path)


@pytest.mark.parametrize("contractions_first", [False, True])
def test_a_dead_unit_goes_where_its_readers_have_biases(contractions_first):
    """Unit 3 has no inputs and says relu(bias) to two readers that have biases to take that up."""
    fn, params = two_branches(contractions_first)
    params["stem"]["bias"][:] = 0.5
    task = task_of(fn, params, (6,))
    variables = task.init(KEY)
    masks = jax.tree.map(lambda w: np.ones(w.shape, bool) if w.ndim > 1 else None, variables)
    masks["params"]["stem"]["kernel"][:, 3] = False
    recipe = recipes.find("han")(HALF, None, SHORT, rounds=1, q=1.0)
    remove = next(stage for stage in recipe if stage.name == "remove_dead")
    pruned, _ = remove(Pruned(jprune.apply_masks(variables, masks), masks), task, KEY)
    read = by_path(pruned.masks)["params/a/kernel"].any(axis=1)
    assert np.flatnonzero(~read).tolist() == [3]


# ---- flat trees ---------------------------------------------------------------------------------


def two_layers(flat):
    """A task of two layers in a tree of layers, or in a flat one; leaves in the same order."""
    leaves = draw({"b1": (20,), "w1": (6, 20), "b2": (3,), "w2": (20, 3)})
    leaves["w2"] *= 4
    nested = {n: {"bias": leaves[f"b{n}"], "kernel": leaves[f"w{n}"]} for n in "12"}
    renamed = {f"{n}_{leaf}": nested[n][leaf] for n in "12" for leaf in ("bias", "kernel")}

    def fn(v, x):
        params = v["params"]
        leaf = lambda n, name: params[f"{n}_{name}"] if flat else params[n][name]
        x = jax.nn.relu(x @ leaf("1", "kernel") + leaf("1", "bias"))
        return x @ leaf("2", "kernel") + leaf("2", "bias")

    return task_of(fn, renamed if flat else nested, (6,))


def masks_of_both(recipe, stage):
    """Masks after a stage, in the order of leaves: of the nested tree, and of the flat one."""
    both = []
    for flat in (False, True):
        _, pruned = up_to(recipe, two_layers(flat), stage)
        both.append([np.asarray(mask) for mask in jax.tree.leaves(pruned.masks)])
    return both


def test_thresholds_of_dns_are_of_a_layer_in_flat_trees_too():
    """Thresholds are mu + c sd of |w| in a layer: c_rate=(0, 1) is one number for each of two."""
    recipe = recipes.find("dns")(HALF, None, SHORT, c_rate=(0.0, 1.0), correct=False)
    nested, flat = masks_of_both(recipe, "surgery")
    count = lambda masks: sorted(int(mask.sum()) for mask in masks)
    assert count(nested) == count(flat)


def test_blocks_of_obs_are_of_a_layer_in_flat_trees_too():
    recipe = recipes.find("obs")(HALF, None, SHORT, block=128, samples=None)
    nested, flat = masks_of_both(recipe, "prune")
    assert len(nested) == len(flat) == 2
    for one, other in zip(nested, flat):
        np.testing.assert_array_equal(one, other)


def test_dense_layers_are_retrained_before_convolutions_in_flat_trees_too():
    """han(alternate=True) on {"c", "d"}: c is contracted by a convolution, d is not."""
    params = draw({"c": (3, 3, 1, 4), "d": (4, 3)})
    fn = lambda v, x: jax.nn.relu(conv(x, v["params"]["c"])).mean((1, 2)) @ v["params"]["d"]
    task = task_of(fn, params, (6, 6, 1))
    budget = Budget(density=0.6)
    recipe = recipes.find("han")(budget, None, SHORT, rounds=1, q=1.0, alternate=True)
    pruned, moved = Pruned(task.init(KEY), None), []
    for number, stage in enumerate(recipe):
        before = by_path(pruned.variables)
        pruned, _ = stage(pruned, task, jax.random.fold_in(KEY, number))
        if isinstance(stage, Train):
            after = by_path(pruned.variables)
            moved.append([path for path in after if (after[path] != before[path]).any()])
    assert moved == [["params/d"], ["params/c"]]


@pytest.mark.parametrize("method", ["l1", "han", "dns", "obd"])
def test_weights_in_a_list_meet_a_budget_in_macs(method):
    """Keras' flat lists are trees as good as dictionaries: the masks are those of a dictionary."""
    options = {"l1": {"per": "weight"}, "han": {"rounds": 1, "q": 1.0}, "obd": {"rounds": 1}}
    recipe = recipe_of(method, Budget(macs=0.5), dense=False, **options.get(method, {}))
    both = []
    for names in ("abc", None):
        leaves = list(draw({"a": (6, 8), "b": (8,), "c": (8, 3)}).values())
        params = leaves if names is None else dict(zip(names, leaves))

        def fn(v, x):
            first, bias, second = jax.tree.leaves(v["params"])
            return jax.nn.relu(x @ first + bias) @ second

        pruned = run(recipe, task_of(fn, params, (6,)))
        both.append([np.asarray(mask) for mask in jax.tree.leaves(pruned.masks)])
    assert len(both[0]) == len(both[1]) >= 2
    for one, other in zip(*both):
        np.testing.assert_array_equal(one, other)


# ---- axes of kernels ----------------------------------------------------------------------------

LAYOUTS = {
    "obs": {"samples": None, "batches": 2},
    "ssl columns": {"families": "shape"},
    "struct_admm columns": {"groups": "column", "rounds": 1},
    "kron_obd": {},
    "kron_obs": {},
    "data_free": {},
    "csgd": {"clusters": "even", "strength": 0.5},
    "channel_lasso": {"points": 25},
    "thinet": {"rounds": 1, "points": 25, "filters": "all"},
}
"""{method, and what is special: options}."""


@pytest.mark.parametrize("row", LAYOUTS)
def test_a_method_keeps_the_same_weights_of_both_layouts(row):
    """Kernels HWIO, or channels first and OIHW: the same net in another layout is the same net."""
    method, both = row.partition(" ")[0], []
    for first in (False, True):
        task = channels_first(first)
        recipe = recipe_of(method, HALF, dense=False, **LAYOUTS[row])
        _, pruned = up_to(recipe, task, "merge" if method == "csgd" else "prune")
        masks = by_path(Net(task).weight_masks(pruned.masks))
        turned = lambda mask: mask.transpose(2, 3, 1, 0) if mask.ndim > 2 else mask.T
        both.append({path: turned(m) if first else m for path, m in masks.items()})
    hwio, oihw = both
    assert not all(mask.all() for mask in hwio.values()), "something is pruned"
    assert {path: int((oihw[path] != mask).sum()) for path, mask in hwio.items()} == dict.fromkeys(
        hwio, 0
    )


def test_a_random_net_has_the_fan_in_of_the_contraction():
    """|w| = sqrt(2 / fan in), and the fan-in of an OIHW kernel [7, 4, 3, 5] is 4 * 3 * 5 = 60."""

    def fn(v, x):
        x = conv(x, v["params"]["c"]["kernel"], layout="NCHW")
        return jax.nn.relu(x).mean((2, 3)) @ v["params"]["d"]["kernel"]

    task = task_of(fn, draw({"c": {"kernel": (7, 4, 3, 5)}, "d": {"kernel": (7, 3)}}), (4, 6, 8))
    _, drawn = up_to(recipes.find("edge_popup")(HALF, DENSE), task, "redraw")
    size = float(np.abs(drawn.variables["params"]["c"]["kernel"]).max())
    assert abs(size - math.sqrt(2 / 60)) < 1e-5
