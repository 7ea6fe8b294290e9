"""One residual block in several layouts and under vmap: the same sites, joins and branches."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import errors
from jprune.cost.samples import sample_macs
from tests.law import quick, relative_error

SIZES = {"stem": (4, 8), "one": (8, 6), "two": (6, 8)}
"""{convolution: (inputs, outputs)}; `one` has a norm behind it, the others a bias."""
LAYOUTS = {
    "NHWC": ("NHWC", "HWIO", False),
    "NHWC under vmap": ("NHWC", "HWIO", True),
    "NCHW": ("NCHW", "OIHW", False),
    "CHW under vmap": ("NCHW", "OIHW", True),
    "NHWC, kernels [out, window, in]": ("NHWC", "OHWI", False),
    "NWC": ("NWC", "WIO", False),
    "NCW": ("NCW", "OIW", False),
    "CW under vmap": ("NCW", "OIW", True),
}
"""{name: (data, kernels, one image at a time)}."""
PLAIN = {2: "NHWC", 1: "NWC"}
"""{number of window axes: the layout that others are compared with}."""


def order(source, target):
    """The permutation that turns one layout into another."""
    return tuple(source.index(letter) for letter in target)


def in_layout(name):
    """The net, its variables and its images in a layout: the same numbers in all."""
    data, kernel, one_image = LAYOUTS[name]
    window = len(data) - 2
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.4, jnp.float32)
    channel = [-1 if letter == "C" else 1 for letter in data[1:]]
    per_channel = lambda size: draw(size).reshape([size if n == -1 else 1 for n in channel])
    plain = "HW"[2 - window :] + "IO"
    variables = {"out": draw(8, 10)}
    for layer, (inputs, outputs) in SIZES.items():
        weight = draw(*(3, 5)[:window], inputs, outputs)
        variables[layer] = {"w": weight.transpose(order(plain, kernel))}
        for leaf in ("mean", "scale", "shift") if layer == "one" else ("bias",):
            variables[layer][leaf] = per_channel(outputs)
    x = draw(2, *(9, 7)[:window], 4)
    x = x.transpose(order("N" + plain[:-2] + "C", data))

    def convolve(x, weight):
        numbers = (data, kernel, data)
        return jax.lax.conv_general_dilated(
            x, weight, (1,) * window, "SAME", dimension_numbers=numbers
        )

    def of_batch(v, x):
        x = jax.nn.relu(convolve(x, v["stem"]["w"]) + v["stem"]["bias"])
        hidden = convolve(x, v["one"]["w"]) - v["one"]["mean"]
        hidden = jax.nn.silu(hidden * v["one"]["scale"] + v["one"]["shift"])
        x = jax.nn.relu(x + (convolve(hidden, v["two"]["w"]) + v["two"]["bias"]))
        places = tuple(axis for axis, letter in enumerate(data) if letter in "HW")
        return jnp.tanh(x).mean(places) @ v["out"]

    def of_each(v, x):
        return jax.vmap(lambda image: of_batch(v, image[None])[0])(x)

    return (of_each if one_image else of_batch), variables, x


def view_of(name):
    """Sites, branches and affine leaves, without the axes."""
    fn, variables, x = in_layout(name)
    groups = jprune.trace(fn, variables, x)
    sites = [(site.kind, site.layer, site.groups) for site in groups.sites]
    affine = {path: list(layer.affine.items()) for path, layer in groups.layers.items()}
    return sites, groups.branches, affine


def plain_of(name):
    return PLAIN[len(LAYOUTS[name][0]) - 2]


def test_the_plain_block_has_these_sites_and_this_branch():
    sites, (branch,), affine = view_of("NHWC")
    around = {kind: [layer for k, layer, _ in sites if k == kind] for kind in ("act", "join")}
    assert around == {"act": ["stem/w", "one/w", "two/w"], "join": ["two/w"]}
    assert branch.name == "branch/two/w"
    assert {path.split("/")[0] for path in branch.leaves} == {"one", "two"}
    assert len(branch.leaves) == 6
    assert [role for _, role in affine["one/w"]] == ["mean", "scale", "shift"]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in PLAIN.values()])
def test_sites_branches_and_affine_leaves_are_those_of_channels_last(name):
    assert view_of(name) == view_of(plain_of(name))


@pytest.mark.parametrize("name", ["NCHW", "CHW under vmap", "CW under vmap"])
def test_gates_and_removed_branches_do_the_same(name):
    def results(name):
        fn, variables, x = in_layout(name)
        groups = jprune.trace(fn, variables, x)
        found = []
        for kind in ("norm", "act", "join"):
            rng = np.random.default_rng(1)
            for shape in ((), (2,)):  # for all examples, and for each
                gates = {"stem/w": jnp.asarray(rng.random((*shape, 8)), jnp.float32)}
                found.append(jprune.gated(fn, groups, kind)(variables, gates, x))
        masks = {"branch/two/w": np.array([False]), "stem/w": np.arange(8) != 3}
        small = jprune.slim_params(groups, masks, variables)
        assert small["one"] == dict.fromkeys(("w", "mean", "scale", "shift"))
        found.append(jprune.slim(fn, groups, masks)(small, x))
        return found

    expected, found = quick(lambda: (results(plain_of(name)), results(name)))
    assert relative_error(expected, found) < 1e-5


SWAPPED = {
    "once and back": (lambda t: t, lambda t: t.swapaxes(1, 2).swapaxes(1, 2)),
    "tokens last": (lambda t: t.swapaxes(1, 2), lambda t: t.swapaxes(1, 2)),
    "a new axis": (lambda t: t[:, None], lambda t: t[:, None]),
}
"""{name: (what is done to tokens before a layer, and to its result)}."""


@pytest.mark.parametrize("name", SWAPPED)
def test_a_branch_behind_moves_has_its_own_name(name):
    rng = np.random.default_rng(0)
    shapes = {"embed": (3, 8), "one": (8, 6), "two": (6, 8), "out": (8, 4)}
    variables = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    x = jnp.ones((2, 12, 3))
    away, behind = SWAPPED[name]

    def net(v, x):
        tokens = x @ v["embed"]
        branch = jax.nn.relu(tokens @ v["one"]) @ v["two"]
        total = away(tokens) + behind(branch)
        return (
            total.reshape(2, 8, 12).sum(2) @ v["out"]
            if name == "tokens last"
            else (total.reshape(2, 12, 8).sum(1) @ v["out"])
        )

    groups = jprune.trace(net, variables, x)
    assert groups.branches == (jprune.base.Branch("branch/two", ("one", "two")),)
    assert [site.layer for site in groups.sites if site.kind == "join"] == ["two"]


def rows_net(one_row):
    """A dense net with a branch, one row at a time or not, whose layers have no bias."""

    def one(v, x):
        x = jnp.tanh(v["stem"] @ x)
        return v["out"] @ jnp.tanh(x + v["two"] @ jnp.tanh(v["one"] @ x))

    def batch(v, x):
        x = jnp.tanh(x @ v["stem"].T)
        return jnp.tanh(x + jnp.tanh(x @ v["one"].T) @ v["two"].T) @ v["out"].T

    return (lambda v, x: jax.vmap(lambda row: one(v, row))(x)) if one_row else batch


def test_gates_of_examples_where_channels_stand_first():
    """vmap of kernel @ row gives [outputs, examples]."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (6, 3), "one": (7, 6), "two": (6, 7), "out": (4, 6)}
    variables = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    gates = {"one": jnp.asarray(rng.random((5, 7)), jnp.float32)}
    open_branch = {"branch/two": jnp.asarray(rng.random((5, 1)), jnp.float32)}
    there = {"one": jnp.asarray(rng.random((5, 7)) < 0.5, jnp.float32)}

    def results(fn):
        groups = jprune.trace(fn, variables, x)
        gated = [jprune.gated(fn, groups, at)(variables, gates, x) for at in ("norm", "act")]
        gated.append(jprune.gated(fn, groups, "join")(variables, open_branch, x))
        return gated, sample_macs(fn, groups)(variables, there, x)

    assert relative_error(results(rows_net(False)), results(rows_net(True))) < 1e-5


def haiku_pair():
    """Inference and training of a Haiku net, whose hidden averages inference does not read."""

    def forward(x, training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3)(x), training)
        return hk.Linear(4)(jnp.tanh(x).mean((1, 2)))

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 3)), jnp.float32)
    variables = dict(zip(("params", "state"), net.init(jax.random.key(0), x, True)))
    inference = lambda v, x: net.apply(v["params"], v["state"], x, False)[0]
    training = lambda v, x: net.apply(v["params"], v["state"], x, True)
    return inference, training, variables, x


def test_the_message_for_another_mode_names_a_way_that_works():
    inference, training, variables, x = haiku_pair()

    def slimmed(groups):
        masks = {name: np.arange(size) < 5 for name, size in groups.sizes.items()}
        small = jprune.slim_params(groups, masks, variables)
        return jprune.slim(training, groups, masks)(small, x)

    with pytest.raises(errors.StructureError, match=r"twin=this_one"):
        slimmed(jprune.trace(inference, variables, x))
    out, _ = slimmed(jprune.trace(inference, variables, x, twin=training))
    assert out.shape == (2, 4)
